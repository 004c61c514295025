// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package session keeps one gRPC session to every replica of the manager: it
// passes on what the replicas assign, withdraw and release, and sends them
// reports. The rules of order are hub.proto's.
//
// Replicas are found through the EndpointSlices of the hub's Service, not by
// DNS, so that an agent knows each of them and when one is gone for good. A
// session that breaks is opened again after a random time, within what
// replicas asked for so that a cluster's agents do not come at once, and longer
// while attempts fail; what the replica assigned is kept meanwhile, so that a
// short cut loses no looks, and forgotten once the replica is gone.
//
// What a replica describes is decoded once in a session and handed on with each
// assignment that names it. It is bounded; an assignment whose description is
// not there goes on without, and its subject is not confirmed.
//
// What is told of policies waits for what is told of Pods. What is told of the
// node goes to every replica, the newest alone.
//
// A replica may also ask for a trace. It is answered beside everything else,
// so that neither assignments nor releases wait for it, and answers wait for
// reports.
//
// Each session reads the token anew and trusts the newest certificates, for the
// hub's name alone and with TLS 1.3: the token is sent to nobody else. What a
// replica says is bounded in size and otherwise believed: it decides what is
// asked of this node, and can keep it busy. The package decides nothing about
// assignments or releases.
package session

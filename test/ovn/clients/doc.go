// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package clients holds the clients of internal/ovs against real servers:
// ovsdb-server with OVN's northbound schema, standalone and as a raft cluster,
// plain and with TLS, and ovs-vswitchd. Each test starts its own, in a
// directory of its own, and ends them.
//
// The tests need the programs of Debian's packages openvswitch-switch,
// openvswitch-common and ovn-central, and no daemon that runs. Those of
// ovs-vswitchd need root, for a network namespace of its own.
package clients

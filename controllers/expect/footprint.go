// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/types"
)

// Footprint names parts of a Cluster. A Result has the footprint of all that
// it was computed from, a change the footprint of all that it changed. The
// contract between them: computed again after a change whose footprint has
// nothing in common with the result's, the result is the same but for
// NotAsked and Next. No part holds an element twice.
type Footprint struct {
	// Everything meets any other footprint.
	Everything bool
	// Sets are label sets: those whose policies, or what these mean, were
	// looked at or have changed.
	Sets []*LabelSet
	// Pods are Pods that were looked at or have changed, whether they are an
	// end of a flow or were passed over.
	Pods []types.UID
	// Addresses are those of which it was looked at, or changed, who has them.
	Addresses []netip.Addr
	// Nodes are nodes that were looked at, or of which changed, whether they
	// are awaited.
	Nodes []string
	// Ranges is set if the pod CIDRs or addresses of any nodes were looked at
	// or have changed.
	Ranges bool
	// Ports are names of container ports of which it was looked at, or
	// changed, which numbers they stand for.
	Ports []PortName
	// Policies are subjects: see ForPolicy. Those that have changed, or for
	// which has changed what their own result says beside what the Pods say that
	// were looked at: who shares their name, whether all policies of their
	// namespace are understood, or that they select a Pod which was there before.
	Policies []types.NamespacedName
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hubv1

// Northbound stands in the place of a node's name for OVN's northbound
// database: cmd/northbound is its agent, and judges both ends of each flow,
// wherever they are. It is no valid name of a Node, nor spec.nodeName of a Pod,
// as these have no colon. So nothing runs there, no Release goes there, and no
// node's agent can be taken for it.
const Northbound = "kube-ovn:northbound"

const (
	// NorthboundTitle is what people are told that it is called.
	NorthboundTitle = "OVN's northbound database"
	// NorthboundPlace is the same where the names of nodes stand beside it.
	NorthboundPlace = NorthboundTitle + " (" + Northbound + ")"
)

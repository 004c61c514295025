// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hubv1

// Kinds of remarks, of State.remarks.
const (
	// RemarkTwoVariants: iptables-legacy and iptables-nft both hold rules, so
	// that what one of them prints is half of what counts.
	RemarkTwoVariants = "TwoIptablesVariants"
	// RemarkSourceRewritten: packets between Pods leave this node with another
	// source, so that no other node can tell whose they are.
	RemarkSourceRewritten = "SourceRewritten"
	// RemarkBridgeUnfiltered: packets that stay on one bridge pass no rules,
	// as net.bridge.bridge-nf-call-iptables is off.
	RemarkBridgeUnfiltered = "BridgeUnfiltered"
	// RemarkIPVS: virtual servers are in the kernel, whose packets take other
	// ways.
	RemarkIPVS = "IPVS"
	// RemarkUnlinkedServices: ClusterIPs are not in all of OVN's address sets in
	// which Kube-OVN up to 1.15 puts them.
	RemarkUnlinkedServices = "UnlinkedServices"
	// RemarkUnjudgedPorts: of some Pods on OVN's ports nothing can be concluded,
	// and the text says why.
	RemarkUnjudgedPorts = "UnjudgedPorts"
	// RemarkUnenforcedFamily: the engine does not enforce an address family.
	RemarkUnenforcedFamily = "UnenforcedFamily"
)

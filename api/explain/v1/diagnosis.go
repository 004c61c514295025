// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explainv1

import "time"

// Diagnosis is what one replica of the manager sees of the installation. It is
// for administrators: it names nodes and Pods of every namespace.
type Diagnosis struct {
	// Version is that of the replica's build.
	Version string `json:"version"`
	// Time is when this was said, by the replica's clock.
	Time time.Time `json:"time"`
	// Certificate is the one that the replica serves to the API server, to
	// agents and to the plugin.
	Certificate Certificate `json:"certificate"`
	// Nodes are those of the cluster that should have an agent, by name:
	// Windows nodes are left out.
	Nodes []NodeView `json:"nodes"`
	// Northbound is the same of OVN's northbound database; nil if it is not asked.
	Northbound *NodeView `json:"northbound,omitempty"`
	// Ungated are Pods without a gate that should have one; nil if this
	// replica does not count them.
	Ungated *Ungated `json:"ungated,omitempty"`
}

// Certificate says until when a certificate is valid.
type Certificate struct {
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	// Error says why there is none.
	Error string `json:"error,omitempty"`
}

// NodeView is what a replica sees of a node.
type NodeView struct {
	Name string `json:"name"`
	// Ready is the node's own condition.
	Ready bool `json:"ready"`
	// Since is when the node's agent connected; zero if it is not connected.
	Since time.Time `json:"since,omitzero"`
	// Version is that of the agent's build, of the last that was connected.
	Version string `json:"version,omitempty"`
	// Unsupported is empty, or says why the dataplane cannot be seen.
	Unsupported string `json:"unsupported,omitempty"`
	// Dataplanes are those that hold rules: "iptables-legacy", "iptables-nft",
	// "nftables", "ipset", "ovn".
	Dataplanes []string `json:"dataplanes,omitempty"`
	Remarks    []Remark `json:"remarks,omitempty"`
}

// Remark is something that a person should know of a node. Kind is one of
// those that package hubv1 names, or one of a newer agent.
type Remark struct {
	Kind string `json:"kind"`
	Text string `json:"text,omitempty"`
}

// Ungated are Pods in namespaces that are to be gated, which have no gate.
type Ungated struct {
	// Total counts them, Pods are the first of them as "namespace/name".
	Total int      `json:"total"`
	Pods  []string `json:"pods,omitempty"`
}

// MaxUngated bounds Ungated.Pods: enough to see which workloads they are of.
const MaxUngated = 20

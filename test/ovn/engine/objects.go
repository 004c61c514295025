// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Shape is what differs between releases and settings of Kube-OVN. The zero
// value is none that exists: take Release115 or Release116.
type Shape struct {
	// InlineBlocks writes an ipBlock into an ACL of its own. Without it the
	// block is in the rule's set of allowed addresses and its exceptions in the
	// set of excepted ones, where they are exceptions from all peers, and a rule
	// without any peer has an ACL that matches nothing.
	InlineBlocks bool
	// ClusterIPs puts the ClusterIPs of the Services that select a peer beside
	// the peer's address.
	ClusterIPs bool
	// Lax denies TCP, UDP and SCTP only. A policy's annotation goes before it.
	Lax bool
}

// Release115 is the shape of Kube-OVN up to 1.15.4. Later ones of 1.15 have
// inline blocks as well.
func Release115() Shape { return Shape{ClusterIPs: true} }

// Release116 is the shape of Kube-OVN 1.16.
func Release116() Shape { return Shape{InlineBlocks: true} }

// Cluster is what the API server has.
type Cluster struct {
	Policies []*networkingv1.NetworkPolicy
	// Pods count once they are allocated: see Allocate. Of a named port that
	// has several numbers in one namespace, the first Pod's counts.
	Pods       []*corev1.Pod
	Namespaces []*corev1.Namespace
	// Services matter only with ClusterIPs.
	Services []*corev1.Service
	// Nodes get an ACL that lets them reach their Pods, once there is any
	// policy.
	Nodes []*corev1.Node
}

// Objects are the rows of a cluster's policies.
type Objects struct {
	// Policies are ordered by namespace and name.
	Policies []Policy
	// Nodes are the port groups of nodes, which exist already, by name.
	Nodes []NodeGroup
}

// Policy is what one NetworkPolicy comes to.
type Policy struct {
	Key             types.NamespacedName
	PortGroup       PortGroup
	Ingress, Egress Direction
	// Gateway are the ACLs for neighbour discovery.
	Gateway []ACL
}

// PortGroup is a row of Port_Group.
type PortGroup struct {
	Name        string
	ExternalIDs map[string]string
	// Ports are names of logical ports. Those that do not exist are left out
	// when it is written.
	Ports []string
}

// Direction is one direction of a policy.
type Direction struct {
	// Isolated: the policy is about this direction. Without it there is nothing
	// else, and what was there is taken away.
	Isolated bool
	// Rules is how many rules the policy has; address sets of others go.
	Rules       int
	AddressSets []AddressSet
	ACLs        []ACL
}

// AddressSet is a row of Address_Set.
type AddressSet struct {
	Name        string
	ExternalIDs map[string]string
	// Addresses are sorted, each once.
	Addresses []string
}

// ACL is a row of ACL.
type ACL struct {
	Name, Direction, Match, Action string
	Priority                       int
	ExternalIDs, Options           map[string]string
}

// NodeGroup is what the port group of a node gets.
type NodeGroup struct {
	Name string
	ACLs []ACL
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PolicyStatus says whether the NetworkPolicy of the same name and namespace is
// in force, and where. Policy Gate makes one for each NetworkPolicy and removes
// it with it; nothing in it is to be written by anybody else. What it says is
// read from the kernels of the nodes: that packets which the policy allows would
// pass, and that packets which it does not allow would not.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=policystatuses,singular=policystatus,shortName=pst,categories=policygate
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`,description="Whether every node that hosts Pods of the policy enforces it."
// +kubebuilder:printcolumn:name="Nodes",type=string,JSONPath=`.status.nodes.summary`,description="Nodes that enforce the policy, of those that host its Pods."
// +kubebuilder:printcolumn:name="Pods",type=integer,JSONPath=`.status.pods.selected`,description="Pods that the policy selects."
// +kubebuilder:printcolumn:name="Pending",type=integer,JSONPath=`.status.pods.pending`,description="Gated Pods among them whose gate is shut."
// +kubebuilder:printcolumn:name="Took",type=string,JSONPath=`.status.lastProgrammed.took`,description="Time from this generation of the policy to its being in force on every node."
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Programmed")].reason`,description="Why."
// +kubebuilder:printcolumn:name="Lagging",type=string,priority=1,JSONPath=`.status.laggingNodes[0].name`,description="The first node that does not enforce the policy."
// +kubebuilder:printcolumn:name="Lacks",type=string,priority=1,JSONPath=`.status.laggingNodes[0].reason`,description="What is wrong there."
type PolicyStatus struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is that of the object; its name and namespace are the policy's.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// status says whether the policy is in force and on which nodes it is not,
	// as was read from the nodes' kernels.
	// +optional
	Status PolicyStatusStatus `json:"status,omitempty,omitzero"`
}

// PolicyStatusStatus is what was observed of a NetworkPolicy.
// +kubebuilder:validation:MinProperties=1
type PolicyStatusStatus struct {
	// conditions are Programmed and Degraded. Programmed is True while every
	// node that hosts Pods of the policy enforces its present generation, False
	// while one is known not to, and Unknown while that cannot be told. Degraded
	// is True while something is wrong that waiting does not mend: rules that
	// were in force and are no more, an engine that does not realize what the
	// policy says, or nodes that nobody can see into.
	//
	// Reasons of Programmed: InForce and NoPods (True), Lagging and Drifted
	// (False), NotUnderstood and Unknown (Unknown). Reasons of Degraded: Drifted,
	// EngineDeviates, Unseen and NotUnderstood (True), AsExpected (False).
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// observedGeneration is the metadata.generation of the NetworkPolicy that
	// all of this is about. While it is lower than the policy's own, nothing is
	// said of the policy's latest edit yet.
	// +kubebuilder:validation:Minimum=0
	// +optional
	ObservedGeneration *int64 `json:"observedGeneration,omitempty"`
	// nodes counts the nodes that host Pods which the policy selects: only they
	// have to enforce it. It is not there if a policy cannot be understood.
	// +optional
	Nodes NodeCounts `json:"nodes,omitempty,omitzero"`
	// pods counts the Pods that the policy selects, gated or not. It follows
	// within half a minute.
	// +optional
	Pods PodCounts `json:"pods,omitempty,omitzero"`
	// laggingNodes are nodes that do not enforce the policy, by name: the first
	// ten.
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=10
	// +optional
	LaggingNodes []LaggingNode `json:"laggingNodes,omitempty"`
	// laggingNodesLeftOut counts the others.
	// +kubebuilder:validation:Minimum=0
	// +optional
	LaggingNodesLeftOut *int32 `json:"laggingNodesLeftOut,omitempty"`
	// deviations are what the policy engine does not carry out of this policy,
	// though it is at work, so that nobody waits for it: at most ten.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=10
	// +optional
	Deviations []Deviation `json:"deviations,omitempty"`
	// lastProgrammed says when a generation of the policy was last in force on
	// every node. It stays when the policy is edited.
	// +optional
	LastProgrammed LastProgrammed `json:"lastProgrammed,omitempty,omitzero"`
}

// NodeCounts counts nodes.
// +kubebuilder:validation:MinProperties=1
type NodeCounts struct {
	// summary is programmed and desired as "2/3".
	// +kubebuilder:validation:MinLength=3
	// +kubebuilder:validation:MaxLength=32
	// +optional
	Summary string `json:"summary,omitempty"`
	// desired are the nodes that host Pods which the policy selects, without
	// those that have not been ready for long.
	// +kubebuilder:validation:Minimum=0
	// +optional
	Desired *int32 `json:"desired,omitempty"`
	// programmed are those of them that enforce the policy.
	// +kubebuilder:validation:Minimum=0
	// +optional
	Programmed *int32 `json:"programmed,omitempty"`
}

// PodCounts counts Pods that the policy selects. Pods on the host's network and
// finished ones are not among them: no policy concerns them.
// +kubebuilder:validation:MinProperties=1
type PodCounts struct {
	// selected are all of them.
	// +kubebuilder:validation:Minimum=0
	// +optional
	Selected *int32 `json:"selected,omitempty"`
	// gated are those that have Policy Gate's readiness gate.
	// +kubebuilder:validation:Minimum=0
	// +optional
	Gated *int32 `json:"gated,omitempty"`
	// pending are those whose gate is shut.
	// +kubebuilder:validation:Minimum=0
	// +optional
	Pending *int32 `json:"pending,omitempty"`
}

// LaggingNode is a node that does not enforce the policy.
type LaggingNode struct {
	// name is the node's, or kube-ovn:northbound: OVN's northbound database, in
	// which Kube-OVN writes policies for all nodes, and which is not among those
	// that status.nodes counts.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +required
	Name string `json:"name,omitempty"`
	// reason is one word for what is wrong. NotAdmitting: connections that the
	// policy allows would be refused. NotIsolating: connections that it does not
	// allow would pass. Inconclusive: it cannot be told what the node would do.
	// NoAnswer: its agent has not answered yet. NoAgent: no agent is connected
	// from it. Unsupported: its agent cannot see into its dataplane.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +required
	Reason string `json:"reason,omitempty"`
	// message says the same in words. It names no object of another namespace.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +optional
	Message string `json:"message,omitempty"`
	// since is when the node was first seen not to enforce the policy.
	// +required
	Since *metav1.Time `json:"since,omitempty"`
}

// Deviation is a part of the policy that the policy engine does not carry out.
type Deviation struct {
	// message says what. It names no object of another namespace.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +required
	Message string `json:"message,omitempty"`
	// nodes are where, by name: the first five. None: everywhere.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=5
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +optional
	Nodes []string `json:"nodes,omitempty"`
	// nodesLeftOut counts the others.
	// +kubebuilder:validation:Minimum=0
	// +optional
	NodesLeftOut *int32 `json:"nodesLeftOut,omitempty"`
}

// LastProgrammed says when the policy was last in force everywhere.
// +kubebuilder:validation:MinProperties=1
type LastProgrammed struct {
	// time is when.
	// +required
	Time *metav1.Time `json:"time,omitempty"`
	// generation is the metadata.generation of the policy that was.
	// +kubebuilder:validation:Minimum=0
	// +optional
	Generation *int64 `json:"generation,omitempty"`
	// took is how long that took, from the generation's being seen to the last
	// node's being in force, such as "412ms" or "1m3s". It is not there for a
	// generation that is older than Policy Gate's present leader.
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=32
	// +optional
	Took string `json:"took,omitempty"`
}

// PolicyStatusList is a list of PolicyStatus.
//
// +kubebuilder:object:root=true
type PolicyStatusList struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is that of the list.
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	// items are the objects.
	// +required
	Items []PolicyStatus `json:"items"`
}

// Types of conditions of a PolicyStatus.
const (
	// PolicyProgrammed: every node that hosts Pods of the policy enforces it.
	PolicyProgrammed = "Programmed"
	// PolicyDegraded: something is wrong that waiting does not mend.
	PolicyDegraded = "Degraded"
)

// Reasons of the condition Programmed.
const (
	// PolicyReasonInForce (True): all nodes enforce this generation.
	PolicyReasonInForce = "InForce"
	// PolicyReasonNoPods (True): no node has to, as the policy selects no Pod
	// that has an address.
	PolicyReasonNoPods = "NoPods"
	// PolicyReasonLagging (False): a node does not enforce this generation yet.
	PolicyReasonLagging = "Lagging"
	// PolicyReasonDrifted (False): a node did enforce this generation, and does
	// so no more.
	PolicyReasonDrifted = "Drifted"
	// PolicyReasonNotUnderstood (Unknown): a policy of this namespace cannot be
	// read, so that nothing can be said of any.
	PolicyReasonNotUnderstood = "NotUnderstood"
	// PolicyReasonUnknown (Unknown): no node is known not to enforce the policy,
	// but there are some that nobody can ask, or that have not answered yet.
	PolicyReasonUnknown = "Unknown"
)

// Reasons of the condition Degraded: PolicyReasonDrifted, PolicyReasonNotUnderstood
// and the following.
const (
	// PolicyReasonAsExpected (False): nothing is wrong.
	PolicyReasonAsExpected = "AsExpected"
	// PolicyReasonEngineDeviates (True): the engine does not carry out part of
	// the policy.
	PolicyReasonEngineDeviates = "EngineDeviates"
	// PolicyReasonUnseen (True): some nodes have no agent, or a dataplane that
	// it cannot see into.
	PolicyReasonUnseen = "Unseen"
)

// Reasons of a lagging node.
const (
	// LagNotAdmitting: connections that the policy allows would be refused.
	LagNotAdmitting = "NotAdmitting"
	// LagNotIsolating: connections that the policy does not allow would pass.
	LagNotIsolating = "NotIsolating"
	// LagInconclusive: it cannot be told what the node would do.
	LagInconclusive = "Inconclusive"
	// LagNoAnswer: the node's agent has not answered yet.
	LagNoAnswer = "NoAnswer"
	// LagNoAgent: no agent is connected from the node.
	LagNoAgent = "NoAgent"
	// LagUnsupported: the agent cannot see into the node's dataplane.
	LagUnsupported = "Unsupported"
)

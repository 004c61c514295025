// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explainv1

import (
	"time"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// State is how it stands with a Pod, in one word.
type State string

// States.
const (
	// Held: the gate is shut, and what is awaited is in Nodes.
	Held State = "Held"
	// NoAddress: the gate is shut, and there is nothing to ask about yet.
	NoAddress State = "NoAddress"
	// Open: the gate is open.
	Open State = "Open"
	// Ended: the Pod has finished or is being deleted, and nobody waits for
	// its gate.
	Ended State = "Ended"
	// NotGated: the Pod has no gate. Why says what it lacks for one.
	NotGated State = "NotGated"
	// NotSeen: the Pod has a gate, and this replica has not taken it up yet.
	NotSeen State = "NotSeen"
	// NotFound: there is no such Pod.
	NotFound State = "NotFound"
)

// Explanation is all that is known of one Pod's gate. It is for administrators:
// it names objects and rules of every namespace.
type Explanation struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	State     State  `json:"state"`
	// Why says what a Pod lacks that is NotGated; empty in other states.
	Why string `json:"why,omitempty"`
	// Time is when this was said, by the manager's clock.
	Time time.Time `json:"time"`

	UID       string   `json:"uid,omitempty"`
	Node      string   `json:"node,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	// Reason and Message are the Pod's condition; empty if it has none.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	// Addressed is when the addresses were first seen, Deadline when the
	// timeout runs out. Both are zero without addresses.
	Addressed time.Time `json:"addressed,omitzero"`
	Deadline  time.Time `json:"deadline,omitzero"`

	// Listed says whether the API server's lists of policies and namespaces
	// have come in since the Pod was seen; before that nothing is released.
	Listed bool `json:"listed"`
	// Computed says whether what must be confirmed is known. If it is not,
	// Notes say why.
	Computed bool     `json:"computed"`
	Notes    []string `json:"notes,omitempty"`
	// NotAsked counts the flows beyond the limit.
	NotAsked int `json:"notAsked,omitempty"`
	// Nodes are those that were asked: those that hold the Pod first.
	Nodes []Node `json:"nodes,omitempty"`
}

// Node is what one node says of the Pod.
type Node struct {
	Name string `json:"name"`
	// Own: the Pod runs there.
	Own bool `json:"own,omitempty"`
	// Holds: the Pod waits for this node.
	Holds bool `json:"holds,omitempty"`
	// Optional: it is asked and not awaited.
	Optional bool `json:"optional,omitempty"`
	// Connected: its agent is. Unsupported: the agent cannot see the node's
	// dataplane. Stalled: nothing was confirmed there for long.
	Connected   bool `json:"connected"`
	Unsupported bool `json:"unsupported,omitempty"`
	Stalled     bool `json:"stalled,omitempty"`
	// Answered and Confirmed are its report on what it is asked now.
	Answered  bool `json:"answered"`
	Confirmed bool `json:"confirmed"`
	// Unenforced is the family that it left out, "v4" or "v6"; empty if none.
	Unenforced string `json:"unenforced,omitempty"`
	// Expectations counts what it is asked; Required and Advisory what of it
	// did not hold.
	Expectations int `json:"expectations"`
	Required     int `json:"required"`
	Advisory     int `json:"advisory,omitempty"`
	// Excused are rules that are known not to be realized there.
	Excused []string `json:"excused,omitempty"`
	// Lacks are some of the expectations that did not hold.
	Lacks []Lack `json:"lacks,omitempty"`
}

// Lack is an expectation that did not hold.
type Lack struct {
	// Flow is nil if the node could judge nothing at all.
	Flow *Flow `json:"flow,omitempty"`
	// Want is Allowed or Denied; empty without a flow.
	Want tracev1.Verdict `json:"want,omitempty"`
	// Advisory: it is asked and not awaited.
	Advisory bool `json:"advisory,omitempty"`
	// Why is the rule that demands it, Reason what the node reported.
	Why    string `json:"why,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Now is what the node said when it was asked again for this explanation,
	// nil if it was not asked.
	Now *Ruling `json:"now,omitempty"`
}

// Flow is a new connection.
type Flow struct {
	// Protocol is "tcp", "udp" or "sctp".
	Protocol string `json:"protocol"`
	// Source and Destination are IP addresses.
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Port        uint16 `json:"port"`
	// SourcePod and DestinationPod are "namespace/name"; empty if the address
	// is no Pod's, or that of several.
	SourcePod      string `json:"sourcePod,omitempty"`
	DestinationPod string `json:"destinationPod,omitempty"`
}

// Ruling is what a node's kernel would do with a flow, and by what.
type Ruling struct {
	Verdict tracev1.Verdict `json:"verdict"`
	// Reason is the rule that decided, or what could not be decided.
	Reason string `json:"reason,omitempty"`
	// Error says why the node did not answer. Then the verdict is
	// Inconclusive.
	Error string `json:"error,omitempty"`
	// NearMisses are rules that would have matched if but one set had held one
	// more element; at most tracev1.MaxNearMisses.
	NearMisses []tracev1.NearMiss `json:"nearMisses,omitempty"`
}

// NewRuling returns what of a node's trace an explanation needs.
func NewRuling(n tracev1.Node) *Ruling {
	r := &Ruling{Verdict: n.Verdict, Reason: n.Reason, Error: n.Error}
	seen := map[tracev1.NearMiss]bool{}
	for i := range n.Hops {
		for _, m := range n.Hops[i].NearMisses {
			if !seen[m] && len(r.NearMisses) < tracev1.MaxNearMisses {
				seen[m] = true
				r.NearMisses = append(r.NearMisses, m)
			}
		}
	}
	return r
}

// Exit statuses of "explain". 1 says that there is no answer: a wrong command
// line, no such Pod or policy, or an error on the way.
const (
	ExitNotHeld = 0
	ExitError   = 1
	ExitHeld    = 2
	ExitUnknown = 3
)

// ExitStatus returns the exit status that tells a script of the state.
func (s State) ExitStatus() int {
	switch s {
	case Open, Ended, NotGated:
		return ExitNotHeld
	case Held, NoAddress:
		return ExitHeld
	case NotFound:
		return ExitError
	case NotSeen:
	}
	return ExitUnknown
}

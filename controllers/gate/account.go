// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/controllers/expect"
)

// Account is all that a Ledger knows of one gated Pod. Its texts are for
// administrators: they name objects of any namespace.
type Account struct {
	UID             types.UID
	Namespace, Name string
	Node            string
	IPs             []netip.Addr
	// Open says whether the gate is open. Of an open gate, what follows but for
	// Reason and Message is empty.
	Open bool
	// Reason and Message are the Pod's condition; empty if it has none.
	Reason, Message string
	// Addressed is when the addresses were first seen, zero without any.
	Addressed time.Time
	// Deadline is when the timeout runs out, zero without addresses.
	Deadline time.Time
	// Listed says whether the API server's lists of policies and namespaces
	// have come in since the Pod was seen.
	Listed bool
	// Computed says whether what must be confirmed is known. If it is not,
	// Notes say why.
	Computed bool
	// NotAsked counts the flows beyond the limit.
	NotAsked int
	Notes    []expect.Note
	// Nodes are those that were asked, by name.
	Nodes []NodeAccount
}

// NodeAccount is what one node said of the Pod.
type NodeAccount struct {
	Name string
	// Own: the Pod runs there. Optional: it is asked and not awaited.
	Own, Optional bool
	// Connected: its agent has a session. Unsupported: the agent cannot see
	// the node's dataplane. Stalled: it is in quarantine.
	Connected, Unsupported, Stalled bool
	// Answered and Confirmed are its report on what it is asked now.
	Answered, Confirmed bool
	// Unenforced is the family that it left out, "v4" or "v6"; empty if none.
	Unenforced string
	// Expectations counts what it is asked; Required and Advisory what of it
	// did not hold.
	Expectations, Required, Advisory int
	// Excused are rules that are known not to be realized there.
	Excused []string
	// Lacks are at most three expectations that did not hold, required first.
	Lacks []Lack
}

// Lack is an expectation that did not hold.
type Lack struct {
	// Flow is zero if the assignment as a whole could not be judged.
	Flow     flow.Flow
	Want     flow.Answer
	Advisory bool
	// Why is the rule that demands it, Reason what the node said.
	Why, Reason string
}

// Account returns what the ledger knows of a Pod; false if it is not gated, or
// not known. The error is that of ctx.
func (l *Ledger) Account(context.Context, types.NamespacedName) (Account, bool, error) {
	return Account{}, false, nil
}

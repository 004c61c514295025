// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/demand"
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
func (l *Ledger) Account(ctx context.Context, name types.NamespacedName) (Account, bool, error) {
	found := make(chan *dossier, 1)
	l.inbox.Post(func() {
		if ctx.Err() == nil {
			found <- l.dossier(name)
		}
	})
	select {
	case <-ctx.Done():
		return Account{}, false, ctx.Err()
	case d := <-found:
		if d == nil {
			return Account{}, false, nil
		}
		return d.account(), true, nil
	}
}

// dossier is what an account is written from: what the ledger does not change
// any more, so that it need not wait for the writing.
type dossier struct {
	Account
	nodes []nodeDossier
}

type nodeDossier struct {
	NodeAccount
	demand  demand.Demand
	excused []uint32
	unmet   []*hubv1.Unmet
}

// dossier returns what is known of a Pod, or nil.
func (l *Ledger) dossier(name types.NamespacedName) *dossier {
	e := l.names[name]
	if e == nil {
		return nil
	}
	_, shut := l.shut[e.pod.uid]
	d := &dossier{Account: Account{
		UID: e.pod.uid, Namespace: e.pod.namespace, Name: e.pod.name, Node: e.pod.node, IPs: slices.Clone(e.pod.ips),
		Open: !shut, Reason: e.pod.condition.Reason, Message: e.pod.condition.Message,
	}}
	if !shut {
		return d
	}
	d.Addressed = e.addressed
	if !e.addressed.IsZero() {
		d.Deadline = state{addressed: e.addressed, held: e.held(), timeout: e.pod.settings.Timeout}.deadline()
	}
	d.Listed = l.barrier.Passed(e.pod.uid)
	d.Notes = e.notes
	if e.assignment == nil {
		return d
	}
	d.Computed, d.NotAsked = true, e.assignment.NotAsked
	d.nodes = make([]nodeDossier, len(e.inquiries))
	for i, q := range e.inquiries {
		n, a := q.node, &q.answer
		d.nodes[i] = nodeDossier{
			NodeAccount: NodeAccount{
				Name: q.name, Own: q.name == e.pod.node, Optional: q.optional,
				Connected: n.connected, Unsupported: n.unseen(), Stalled: n.quarantined(e.pod.namespace),
				Answered: a.given, Confirmed: a.confirmed, Unenforced: a.without,
				Expectations: q.demand.Len(), Required: int(a.unmetRequired), Advisory: int(a.unmetAdvisory),
			},
			demand: q.demand, excused: q.excused, unmet: a.unmet,
		}
	}
	return d
}

// account writes the account.
func (d *dossier) account() Account {
	for i := range d.nodes {
		n := &d.nodes[i]
		whys := n.demand.Whys()
		for _, why := range n.excused {
			if int64(why) < int64(len(whys)) {
				n.Excused = append(n.Excused, whys[why].Rule.Why)
			}
		}
		for _, u := range n.unmet {
			lack := Lack{Reason: u.GetReason()}
			if k, _ := kindOf(u.GetReason()); k == refuted || k == untold {
				if e, ok := n.demand.Expectation(u.GetExpectation(), d.IPs); ok {
					lack.Flow, lack.Want, lack.Advisory, lack.Why = e.Flow, e.Want, e.Advisory, e.Why
				}
			}
			n.Lacks = append(n.Lacks, lack)
		}
		d.Nodes = append(d.Nodes, n.NodeAccount)
	}
	return d.Account
}

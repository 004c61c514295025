// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// Surveyor says what is known of the node's dataplane as a whole, by what is
// loaded there.
type Surveyor interface {
	// Survey returns the dataplanes and remarks on them; what else a State has
	// is not its business. It is called with each audit.
	Survey(ctx context.Context) (*hubv1.State, error)
}

// States takes what is to be told of the node to the manager's replicas.
type States interface {
	// Tell must not block and must not call back. A state replaces an earlier
	// one, and must not be changed.
	Tell(state *hubv1.State)
}

const (
	// maxRemarks is hub.proto's.
	maxRemarks = 16
	// lately is for how long what an answer has shown of the node counts: what
	// is asked about is asked again in each audit, of which some may miss it.
	lately = 4 * auditEvery
	// sourceRewritten begins the reason of an Inconclusive answer whose packet
	// may leave the node with another source. It is agent/trace's.
	sourceRewritten = flow.SourceRewritten + ": "
)

// node is what is known of the node as a whole.
type node struct {
	// surveyed is what the surveyor said last, or nil.
	surveyed *hubv1.State
	// told is what was told last, or nil.
	told *hubv1.State
	// resourced is how the source of a packet between Pods may be rewritten,
	// as an answer has said, the last one at resourcedAt.
	resourced   string
	resourcedAt time.Time
}

// State examines the node now and returns what there is to tell of it. It must
// not be changed. If ctx ends before, it returns what was known.
func (c *Confirmer) State(ctx context.Context) *hubv1.State {
	c.examine(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.node.told == nil {
		return c.state()
	}
	return c.node.told
}

// examine finds out what could hide the dataplane, and what is to be told of
// the node.
func (c *Confirmer) examine(ctx context.Context) {
	select {
	case c.auditing <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-c.auditing }()
	auditCtx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	why := c.dataplane.Audit(auditCtx)
	var surveyed *hubv1.State
	var err error
	if c.surveyor != nil {
		surveyed, err = c.surveyor.Survey(auditCtx)
	}
	if ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case why != "" && c.unsupported == "":
		c.log.Info("The dataplane cannot be seen: nothing is confirmed", "why", why)
		c.metrics.drifted(driftUnsupported)
	case why == "" && c.unsupported != "":
		c.log.Info("The dataplane can be seen again")
	}
	c.unsupported = why
	if err != nil {
		c.log.V(1).Info("The node could not be surveyed: what was known of it stands", "reason", err.Error())
	} else if surveyed != nil {
		c.node.surveyed = surveyed
	}
	if state := c.state(); !proto.Equal(state, c.node.told) {
		c.node.told = state
		if c.states != nil {
			c.states.Tell(state)
		}
	}
}

// state returns what there is to tell of the node.
func (c *Confirmer) state() *hubv1.State {
	remarks := slices.Clone(c.node.surveyed.GetRemarks())
	for f, unenforced := range c.enforcement.unenforced {
		if unenforced {
			remarks = append(remarks, &hubv1.Remark{
				Kind: hubv1.RemarkUnenforcedFamily,
				Text: "the policy engine was not seen to enforce " + family(f).String() + " here, while it does the other family",
			})
		}
	}
	if at := c.node.resourcedAt; !at.IsZero() && c.clock.Since(at) < lately {
		remarks = append(remarks, &hubv1.Remark{
			Kind: hubv1.RemarkSourceRewritten,
			Text: printable("packets between Pods may leave this node with another source: " + c.node.resourced),
		})
	}
	slices.SortStableFunc(remarks, func(a, b *hubv1.Remark) int {
		return cmp.Or(strings.Compare(a.GetKind(), b.GetKind()), strings.Compare(a.GetText(), b.GetText()))
	})
	return &hubv1.State{
		Unsupported: printable(c.unsupported),
		Dataplanes:  c.node.surveyed.GetDataplanes(),
		Remarks:     remarks[:min(len(remarks), maxRemarks)],
	}
}

// resource takes in how the source of a packet may be rewritten. Of several
// rules that do, the first is told as long as any does.
func (n *node) resource(by string, at time.Time) {
	if n.resourcedAt.IsZero() || at.Sub(n.resourcedAt) >= lately {
		n.resourced = by
	}
	n.resourcedAt = at
}

// resourced returns by which rule the source of a packet between Pods may be
// rewritten, as one of the answers says, or "".
func resourced(questions []Question, answers []Answer) string {
	for i, a := range answers {
		if a.Verdict.Answer != flow.Inconclusive || questions[i].External {
			continue
		}
		if by, ok := strings.CutPrefix(a.Verdict.Reason, sourceRewritten); ok {
			return by
		}
	}
	return ""
}

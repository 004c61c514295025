// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"strings"

	"github.com/policygate/policygate/agent/ruleset"
)

// Bounds of what is recorded: nobody reads more steps, and no rule that
// somebody wrote is longer.
const (
	mostSteps   = 2_000
	longestRule = 1_000
)

// record takes the steps of a walk, and the rules that nearly matched.
type record struct {
	speller Speller
	steps   []Step
	misses  []miss
	muted   bool
}

// mute takes no more steps until unmute gets what it returned. The record may
// be nil.
func (r *record) mute() bool {
	if r == nil {
		return false
	}
	was := r.muted
	r.muted = true
	return was
}

func (r *record) unmute(was bool) {
	if r != nil {
		r.muted = was
	}
}

// note records a step, if anybody wants it. A cause says why it is only a
// possibility. States that differ may take one step together.
func (w *walk) note(at place, c *cause, effect ...string) {
	r := w.record
	if r == nil || r.muted || w.exhausted && len(r.steps) >= mostSteps {
		return
	}
	if len(r.steps) == mostSteps {
		w.exhausted = true
		r.steps = append(r.steps, Step{Hook: w.at, Base: r.steps[mostSteps-1].Base, Effect: "and so on: there are more steps than are shown"})
		return
	}
	step := Step{
		Hook: w.at, Base: Clean(at.base.name()), Chain: Clean(at.chain.Name), Depth: max(w.depth-1, 0),
		Effect: Clean(strings.Join(effect, "")), Maybe: Clean(c.text()),
	}
	if at.rule != nil {
		step.Rule = printable(at.text(), longestRule)
	}
	if len(r.steps) > 0 {
		last := &r.steps[len(r.steps)-1]
		same := step
		same.Maybe = last.Maybe
		if *last == same {
			// It is certain if it is so for one of them.
			if step.Maybe == "" {
				last.Maybe = ""
			}
			return
		}
	}
	r.steps = append(r.steps, step)
}

// effect says what a target other than Decide does.
func effect(t *ruleset.Target) string {
	switch t.Kind {
	case ruleset.Continue:
		if t.Name != "" {
			return "passes " + t.Name + " and goes on"
		}
		return "goes on"
	case ruleset.Accept:
		return "accepts"
	case ruleset.Drop:
		if strings.HasPrefix(t.Name, "REJECT") {
			return "rejects"
		}
		return "drops"
	case ruleset.Return:
		return "returns"
	case ruleset.Jump:
		return "jumps to " + chainName(t)
	case ruleset.Goto:
		return "goes to " + chainName(t)
	case ruleset.SetMark:
		return fmt.Sprintf("sets mark %#x/%#x", t.Value, t.Mask)
	case ruleset.SetConnMark:
		return fmt.Sprintf("sets the connection's mark %#x/%#x", t.Value, t.Mask)
	case ruleset.SaveMark:
		return "saves the mark to the connection"
	case ruleset.RestoreMark:
		return "restores the mark from the connection"
	case ruleset.NoTrack:
		return "keeps the packet from being tracked"
	case ruleset.NewDestination:
		return "rewrites the destination"
	case ruleset.NewSource:
		return "rewrites the source"
	case ruleset.UnknownTarget, ruleset.Decide:
	}
	return "does what is not known"
}

func chainName(t *ruleset.Target) string {
	if t.Chain == nil {
		return "no chain"
	}
	return t.Chain.Name
}

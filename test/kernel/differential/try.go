// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/api/flow"
)

// Outcome is what was said of a flow and what happened to it.
type Outcome struct {
	Flow    flow.Flow
	Verdict flow.Verdict
	Fate    Fate
	// Wrong says what does not agree, "" if nothing does.
	Wrong string
}

// Try loads a ruleset and compares verdicts with what happens.
func (n *Node) Try(ctx context.Context, r *Ruleset, flows []flow.Flow) ([]Outcome, error) {
	if err := n.Load(ctx, r); err != nil {
		return nil, err
	}
	look, err := n.netfilter.Look(ctx)
	if err != nil {
		return nil, fmt.Errorf("look: %w", err)
	}
	// Verdicts come first: what packets leave behind, such as connections,
	// must not be needed for them.
	questions := make([]kernel.Question, len(flows))
	for i, f := range flows {
		questions[i] = kernel.Question{Flow: f, External: true}
	}
	answers, err := look.Together(ctx, questions)
	if err != nil {
		return nil, fmt.Errorf("ask: %w", err)
	}
	fates, err := n.Send(flows)
	if err != nil {
		return nil, err
	}
	outcomes := make([]Outcome, len(flows))
	for i, f := range flows {
		outcomes[i] = Outcome{Flow: f, Verdict: answers[i].Verdict, Fate: fates[i]}
		outcomes[i].Wrong = n.wrong(outcomes[i])
	}
	return outcomes, nil
}

// wrong compares. An Inconclusive verdict is never wrong.
func (n *Node) wrong(o Outcome) string {
	from, to := n.at[o.Flow.Src], n.at[o.Flow.Dst]
	switch {
	case o.Verdict.Answer == flow.Allowed && !o.Fate.Arrived:
		return "allowed, but it did not arrive"
	case o.Verdict.Answer == flow.Denied && o.Fate.Arrived:
		return "denied, but it arrived"
	case o.Verdict.Answer == flow.Allowed && o.Fate.Source != o.Flow.Src && to.onward && (from.host == nil || !strings.HasPrefix(from.port, "eth")):
		return "allowed, but where it is judged next it comes from " + o.Fate.Source.String()
	}
	return ""
}

// Explain returns a verdict in words: for each way that the flow may take, the
// steps of its walk.
func (n *Node) Explain(ctx context.Context, r *Ruleset, f flow.Flow) (string, error) {
	if err := n.Load(ctx, r); err != nil {
		return "", err
	}
	look, err := n.netfilter.Look(ctx)
	if err != nil {
		return "", fmt.Errorf("look: %w", err)
	}
	explanations, err := look.Explain(ctx, f)
	if err != nil {
		return "", fmt.Errorf("explain %s: %w", f, err)
	}
	var b strings.Builder
	for _, e := range explanations {
		fmt.Fprintf(&b, "%+v: %s\n", e.Path, e.Verdict)
		for _, s := range e.Steps {
			fmt.Fprintf(&b, "  %s %s %s: %s %s %s\n", s.Hook, s.Base, s.Chain, s.Rule, s.Effect, s.Maybe)
		}
	}
	return b.String(), nil
}

// Shrink leaves out rules for as long as a flow's verdict is wrong without
// them, and returns what is left and its outcome.
func (n *Node) Shrink(ctx context.Context, r *Ruleset, o Outcome) (*Ruleset, Outcome) {
	return shrink(r, o, func(less *Ruleset) (Outcome, bool) {
		// What cannot be loaded without some rules keeps them.
		again, err := n.Try(ctx, less, []flow.Flow{o.Flow})
		if err != nil {
			return Outcome{}, false
		}
		return again[0], again[0].Wrong != ""
	})
}

// shrink leaves out rules, many at once and then fewer, for as long as try
// says that what is left will do.
func shrink(r *Ruleset, o Outcome, try func(*Ruleset) (Outcome, bool)) (*Ruleset, Outcome) {
	for size := r.rules(); size > 0; {
		smaller := false
		for first := 0; first < r.rules(); {
			less := r.without(first, first+size)
			if again, ok := try(less); ok {
				r, o, smaller = less, again, true
				continue
			}
			first += size
		}
		if size > 1 {
			size = (size + 1) / 2
		} else if !smaller {
			break
		}
	}
	return r, o
}

// reasons find what an Inconclusive verdict is about, the first that matches
// by its first group: what was found to stand in the way, a condition or
// target that is not understood, and at last what is understood but depends
// on what nobody knows.
var reasons = []*regexp.Regexp{
	regexp.MustCompile(`(DestinationRewritten|SourceRewritten|NoRoute|have one priority|nested jumps|rules visited|several ways|more than one target|a condition after the target|payload written|dormant|link layer)`),
	regexp.MustCompile(`(-[mj] \S+) \(revision`),
	regexp.MustCompile(`(expression \S+|(?:ct|meta|rt) key \d+|(?:transport|network|link|inner) header)`),
	regexp.MustCompile(`(-j (?:NFQUEUE|TPROXY|SYNPROXY|HMARK|CT|TTL|HL|DNAT|REDIRECT|NETMAP|TRACE)\b)`),
	regexp.MustCompile(`(?: |^)(limit|quota|numgen|exthdr|socket|osf|hash|byteorder|fib|rt|range|dynset|mark set)(?: |:|$)`),
	regexp.MustCompile(`(-m (?:physdev|rpfilter|addrtype|set)|--sports?|--ports)`),
	regexp.MustCompile(`(-m \S+)`),
}

// class returns a short name for an Inconclusive verdict's reason.
func class(reason string) string {
	for _, r := range reasons {
		if found := r.FindStringSubmatch(reason); found != nil {
			return found[1]
		}
	}
	return "others"
}

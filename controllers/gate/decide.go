// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
)

const (
	// quiet is how long a Pod may wait before anything is written about it:
	// most are confirmed sooner and cost one write in all.
	quiet = 3 * time.Second
	// maxNamed bounds the nodes that a message names, and maxMessage its bytes:
	// an Event's note may have no more. The others are what its parts may have,
	// so that they fit in there with what stands between them.
	maxNamed     = 5
	maxMessage   = 1024
	maxWaiting   = 900
	maxMissing   = 300
	maxDeviating = 350
	maxExcused   = 250
	maxFamily    = 100
)

// state is everything that the decision about one Pod is made of.
type state struct {
	// addressed is when the Pod's present addresses were first seen; zero if
	// it has none.
	addressed time.Time
	// held is when the hold of the Pod's present sandbox started; zero if it
	// did not or the Pod has none.
	held time.Time
	// timeout and onTimeout are the Pod's settings.
	timeout   time.Duration
	onTimeout string
	// current is true if the span and its assignments were computed after the
	// barrier passed for the Pod.
	current bool
	// moved is true if the gate was opened for other addresses, an earlier
	// sandbox or an earlier boot of the node.
	moved bool
	// suspected is true if it was already suspected that a rule is not realized
	// for anybody.
	suspected bool
	// notAsked counts the flows beyond the limit.
	notAsked int
	// obscure is true if nothing was computed because a policy was not
	// understood.
	obscure bool
	// span are the nodes that were assigned the Pod, sorted by name. Empty if
	// it is not computed.
	span []spanNode
}

// spanNode is what is known of one node of the span.
type spanNode struct {
	name string
	// own is true for the node that the Pod runs on.
	own bool
	// optional is true if the node is asked and need not be awaited.
	optional bool
	// connected is true if the node's agent has a session.
	connected bool
	// unseen is true if the agent cannot see the node's dataplane.
	unseen bool
	// stalled is true if the node is in quarantine.
	stalled bool
	// confirmed is true if it confirmed the current assignment.
	confirmed bool
	// answered is true if it answered the current assignment.
	answered bool
	// deviates says what the node's engine does not realize though the node
	// has confirmed, fit for the Pod's owner.
	deviates []string
	// without is the address family that it left out, "v4" or "v6", for its
	// engine does not enforce it; empty if none.
	without string
	// awaits says what is unmet, fit for the Pod's owner; empty if the node
	// has not answered.
	awaits string
}

// outcome is what a condition says.
type outcome struct {
	reason, message string
}

// decision is what to do about one Pod.
type decision struct {
	// open is the outcome to open the gate with, or nil: not now.
	open *outcome
	// shut is the outcome to tell while the gate is shut, or nil: nothing yet.
	shut *outcome
	// urgent is true if shut must be told without delay.
	urgent bool
	// suspect is true if older Pods are to be asked of from now on.
	suspect bool
	// next is when the passage of time alone may change the decision; zero if
	// never.
	next time.Time
}

// overdue reports whether the Pod was not confirmed in time.
func (d decision) overdue() bool {
	return d.open != nil && d.open.reason == v1alpha1.ReasonPartiallyConfirmed ||
		d.shut != nil && d.shut.reason == v1alpha1.ReasonTimeout
}

// decide decides about a Pod whose gate is shut. It never opens a gate that
// the Pod's own node did not confirm, nor one before the barrier.
func decide(s state, now time.Time) decision {
	if s.addressed.IsZero() {
		return decision{}
	}
	deadline := s.deadline()
	timedOut := !now.Before(deadline)
	own, awaited, excused := s.sort()

	if s.current && own && len(awaited) == 0 {
		return decision{open: s.confirmed(excused, now)}
	}
	if timedOut {
		return s.overdue(own, awaited, excused)
	}
	d := decision{}
	switch {
	case s.moved:
		d.shut = &outcome{
			reason:  v1alpha1.ReasonAddressChanged,
			message: "the Pod's sandbox, its addresses or its node's boot changed after the gate had opened: " + s.waiting(awaited),
		}
		d.urgent = true
		d.next = deadline
	case now.Sub(s.addressed) >= quiet:
		d.shut = &outcome{reason: v1alpha1.ReasonWaiting, message: s.waiting(awaited)}
		d.next = deadline
	default:
		d.next = earlier(deadline, s.addressed.Add(quiet))
	}
	if half := deadline.Add(-s.timeout / 2); now.Before(half) {
		d.next = earlier(d.next, half)
	} else {
		// A rule that is not realized for older Pods either is found out
		// before the timeout, so that the next Pod need not run into it.
		d.suspect = !s.suspected && slices.ContainsFunc(awaited, func(n spanNode) bool { return n.answered })
	}
	return d
}

// overdue decides about a Pod that was not confirmed in time.
func (s state) overdue(own bool, awaited, excused []spanNode) decision {
	if own && s.current && s.onTimeout == v1alpha1.OnTimeoutStart {
		return decision{open: &outcome{
			reason: v1alpha1.ReasonPartiallyConfirmed,
			message: fmt.Sprintf("confirmed on %s within %s; missing: %s",
				s.count(), s.timeout, joined(names(awaited), ", ", maxMissing)) + s.remarks(excused),
		}}
	}
	return decision{urgent: true, shut: &outcome{
		reason:  v1alpha1.ReasonTimeout,
		message: fmt.Sprintf("not confirmed within %s: %s", s.timeout, s.waiting(awaited)),
	}}
}

// deadline returns when the timeout runs out. The hold counts from its own
// start, and so do we, if there is one.
func (s state) deadline() time.Time {
	if !s.held.IsZero() {
		return s.held.Add(s.timeout)
	}
	return s.addressed.Add(s.timeout)
}

// sort returns whether the own node has confirmed, the nodes that are awaited,
// and those that have not confirmed but do not hold the Pod. An own node is
// never excused, and a span without one confirms nothing.
func (s state) sort() (own bool, awaited, excused []spanNode) {
	for _, n := range s.span {
		switch {
		case n.confirmed:
			own = own || n.own
		case !n.own && (n.optional || n.unseen || n.stalled):
			excused = append(excused, n)
		default:
			awaited = append(awaited, n)
		}
	}
	return own, awaited, excused
}

// confirmed is the outcome when nobody is awaited.
func (s state) confirmed(excused []spanNode, now time.Time) *outcome {
	o := &outcome{
		reason:  v1alpha1.ReasonConfirmed,
		message: fmt.Sprintf("confirmed on %s in %s", s.count(), rounded(now.Sub(s.addressed))),
	}
	if deviations := s.deviations(); deviations != "" {
		o.reason = v1alpha1.ReasonEngineDeviates
		o.message += "; the policy engine does not realize " + deviations
	}
	o.message += s.remarks(excused)
	return o
}

// deviations says what is not realized on which nodes that have confirmed; ""
// if nothing.
func (s state) deviations() string {
	nodes := map[string][]string{}
	for _, n := range s.span {
		for _, what := range n.deviates {
			if n.confirmed {
				nodes[what] = append(nodes[what], n.name)
			}
		}
	}
	texts := make([]string, 0, len(nodes))
	for _, what := range slices.Sorted(maps.Keys(nodes)) {
		texts = append(texts, what+" on "+joined(nodes[what], ", ", maxFamily))
	}
	return joined(texts, "; ", maxDeviating)
}

// count returns how many nodes of how many have confirmed, and whether the
// northbound database is among what has.
func (s state) count() string {
	confirmed, nodes, beside := 0, 0, ""
	for _, n := range s.span {
		switch {
		case n.name == hubv1.Northbound && n.confirmed:
			beside = " and " + hubv1.NorthboundTitle
		case n.name == hubv1.Northbound:
		default:
			nodes++
			if n.confirmed {
				confirmed++
			}
		}
	}
	plural := "s"
	if nodes == 1 {
		plural = ""
	}
	return fmt.Sprintf("%d/%d node%s%s", confirmed, nodes, plural, beside)
}

// place returns what people call a node of the span, behind "waiting for".
func place(name string) string {
	if name == hubv1.Northbound {
		return hubv1.NorthboundPlace
	}
	return name
}

// remarks says what the confirmation does not cover.
func (s state) remarks(excused []spanNode) string {
	var remarks []string
	if len(excused) > 0 {
		var reasons []string
		for _, n := range excused {
			why := "stalled"
			switch {
			case n.optional:
				why = "beyond the limit of foreign nodes"
			case n.unseen && n.name == hubv1.Northbound:
				why = "it cannot be read"
			case n.unseen:
				why = "its dataplane cannot be seen"
			}
			reasons = append(reasons, n.name+" ("+why+")")
		}
		remarks = append(remarks, "not awaited: "+joined(reasons, ", ", maxExcused))
	}
	for _, family := range []string{"v4", "v6"} {
		var nodes []string
		for _, n := range s.span {
			if n.confirmed && n.without == family {
				nodes = append(nodes, n.name)
			}
		}
		if len(nodes) > 0 {
			remarks = append(remarks, family+" not enforced on "+joined(nodes, ", ", maxFamily))
		}
	}
	if s.notAsked > 0 {
		remarks = append(remarks, fmt.Sprintf("%d flows beyond the limit were not asked", s.notAsked))
	}
	if len(remarks) == 0 {
		return ""
	}
	return "; " + strings.Join(remarks, "; ")
}

// waiting says what the Pod waits for. It holds nothing that changes with
// time, so that it is written again only if something happened.
func (s state) waiting(awaited []spanNode) string {
	switch {
	case s.obscure:
		return "a policy that may concern this Pod is not understood, so nobody knows what must be confirmed"
	case len(s.span) == 0:
		return "what must be confirmed is not known yet"
	}
	if len(awaited) == 0 && s.current {
		return "the Pod's own node is not among those that could confirm it"
	}
	if len(awaited) == 0 {
		return "waiting for the API server to list policies and namespaces"
	}
	texts := make([]string, len(awaited))
	for i, n := range awaited {
		switch {
		case !n.connected && n.name == hubv1.Northbound:
			texts[i] = "no agent is connected that sees " + place(n.name)
		case !n.connected:
			texts[i] = "no agent is connected on " + n.name
		case n.unseen && n.name == hubv1.Northbound:
			texts[i] = place(n.name) + " cannot be read by its agent"
		case n.unseen:
			texts[i] = "the agent on " + n.name + " cannot see into that node's dataplane"
		case n.awaits != "":
			texts[i] = "waiting for " + place(n.name) + ": " + n.awaits
		case n.answered:
			texts[i] = "waiting for " + place(n.name) + ": its agent looks once more"
		default:
			texts[i] = "waiting for " + place(n.name) + ": its agent has not answered yet"
		}
		if n.stalled {
			texts[i] += " (stalled: it has confirmed nothing for long)"
		}
	}
	return joined(texts, "; ", maxWaiting)
}

func names(nodes []spanNode) []string {
	all := make([]string, len(nodes))
	for i, n := range nodes {
		all[i] = n.name
	}
	return all
}

// joined puts texts together that each stand for a node, as far as they are few
// and fit into so many bytes, and says how many there are beside. One that does
// not fit by itself is cut.
func joined(texts []string, separator string, most int) string {
	if len(texts) == 0 {
		return ""
	}
	// beside tells of those that are not named.
	beside := func(named int) string {
		if named == len(texts) {
			return ""
		}
		return fmt.Sprintf("%sand %d more", separator, len(texts)-named)
	}
	for named := min(len(texts), maxNamed); named > 0; named-- {
		text := strings.Join(texts[:named], separator) + beside(named)
		if len(text) <= most {
			return text
		}
	}
	return cut(texts[0], most-len(beside(1))) + beside(1)
}

// cut returns text with at most so many bytes, of which three say that it was
// cut.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:max(most-3, 0)], "") + "..."
}

// rounded returns d as people read it: milliseconds below ten seconds.
func rounded(d time.Duration) time.Duration {
	if d < 10*time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(100 * time.Millisecond)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/e2e/chaos/packet"
)

const (
	// settleEdit is how long an edit may take to get to everybody: a watch
	// event and a list, with a machine that is busy in between.
	settleEdit = 2 * time.Second
	// settleBegin is how long a fault that is in force may take to come about.
	settleBegin = time.Second
	// settleFault is how long after its end a fault can still change rules or
	// cut flows: what was restarted comes up and begins with its rules.
	settleFault = 5 * time.Second
	// settleEnd is how long after a Pod's end its kubelet may say so: it takes
	// the network down first.
	settleEnd = 2 * time.Second
	// lateEnd is how much later it may be that the kubelet of a busy node says so
	// (seen: 4 s).
	lateEnd = 15 * time.Second
	// blink is the longest time for which kube-router may refuse, by itself, a
	// flow that it has let through.
	blink = 3 * time.Second
)

// Window is a fault and the time in which it was in force.
type Window struct {
	Kind, Target string
	// Begin is before the fault could show, Began when it was in force, Ending
	// before it is ended, End after what failed runs again; zero until then.
	// Before Began nobody can say what it does.
	Begin, Began, Ending, End time.Time
	Severs                    func(a, b string) bool
	Rewrites                  []string
}

// rewrites says whether the fault may have changed rules in the time from one
// to another: by its beginning or by its end. In between nobody does.
func (w Window) rewrites(from, to time.Time) bool {
	beginning := Window{Begin: w.Begin, End: w.Began.Add(settleBegin)}
	ending := Window{Begin: w.Ending, End: w.End}
	return beginning.meets(from, to, 0) || !w.Ending.IsZero() && ending.meets(from, to, settleFault)
}

// meets says whether the window, with that time after its end, and the time
// from one to another overlap.
func (w Window) meets(from, to time.Time, after time.Duration) bool {
	return w.Begin.Before(to) && (w.End.IsZero() || w.End.Add(after).After(from))
}

// aftermath is for how long after the end of the fault an engine may not know
// what was edited: client-go doubles the pause between two attempts to watch,
// and lets chance double it again, for as long as the API server is away.
func (w Window) aftermath() time.Duration { return max(settleFault, 2*w.End.Sub(w.Begin)) }

// Edit is a change of a namespace's policies.
type Edit struct {
	Namespace string
	// Begin is before the change, End after it; zero until then.
	Begin, End    time.Time
	Before, After Intent
}

// unasked says whether the edit lets a flow through by taking away what kept it
// from passing at the end that is not the gate's, and leaves no rule there that
// names it: then there is nothing that a gate could ask for.
func (e Edit) unasked(o Opening, l Look) bool {
	named := l.To.IP != o.IP && e.After.Isolated(l.To.Role) || l.To.IP == o.IP && e.After.Confined(l.From.Role)
	return !named && !e.Before.Allows(l.From.Role, l.To.Role, l.Port) && e.After.Allows(l.From.Role, l.To.Role, l.Port)
}

// lingers says whether the edit takes away the rule that let a flow through. No
// rule names the flow any more, so a gate asks for its end only by chance, as
// that of a stranger.
func (e Edit) lingers(l Look) bool {
	from, to := l.From.Role, l.To.Role
	admitted := e.Before.Isolated(to) && e.Before.In(from, to, l.Port) && !e.After.In(from, to, l.Port)
	letOut := e.Before.Confined(from) && e.Before.Out(from, to, l.Port) && !e.After.Out(from, to, l.Port)
	return !l.Want && (admitted || letOut)
}

// History is what happened: faults and edits by their beginning.
type History struct {
	Faults []Window
	Edits  []Edit
}

// Opening is a gate that opened.
type Opening struct {
	Namespace, Pod, UID, Node string
	Role                      Role
	IP                        netip.Addr
	Reason, Message           string
	// Created is when the Pod was created, by the API server's clock in whole
	// seconds; Addressed when its address was first seen.
	Created, Addressed time.Time
	// At is when the observer saw it, Stamped what the condition says.
	At, Stamped time.Time
}

// since is when the gate was opened at the latest.
func (o Opening) since() time.Time {
	if !o.Stamped.IsZero() && o.Stamped.Before(o.At) {
		return o.Stamped
	}
	return o.At
}

// Party is one end of a flow.
type Party struct {
	Name, Node string
	Role       Role
	IP         netip.Addr
	// Gone is when it was first known to end; zero if it lives.
	Gone time.Time
}

// String names the party for people.
func (p Party) String() string {
	if p.Node == "" {
		return fmt.Sprintf("%s %s", p.Name, p.IP)
	}
	return fmt.Sprintf("%s %s on %s", p.Name, p.IP, p.Node)
}

// Look is one flow, asked with a packet.
type Look struct {
	From, To Party
	Port     uint16
	// Want says that the flow is to be let through.
	Want bool
	Got  packet.Verdict
	// Detail is what was seen.
	Detail string
	// Sent is before the packet, Answered after its answer.
	Sent, Answered time.Time
	// Recovered is how long after a refusal the same flow was let through;
	// zero if it was not.
	Recovered time.Duration
	// Dialled says that the client itself sent it.
	Dialled bool
	// Unproven says why the answer proves nothing, empty if it may.
	Unproven string
}

// Outcome is what a look says of an opening.
type Outcome int

const (
	// Proven: it was as it is to be.
	Proven Outcome = iota
	// Void: the look proves nothing.
	Void
	// Blinked: refused, by the engine's own doing, for a moment.
	Blinked
	// Wrong: the gate opened wrongly.
	Wrong
)

// Judge says what a look says of an opening, and why if it is Void. blinks is
// for how long the engine may refuse by itself what it has let through.
func (h History) Judge(o Opening, l Look, blinks time.Duration) (Outcome, string) {
	if (l.Got == packet.Admitted) == l.Want {
		return Proven, ""
	}
	if why := h.void(o, l); why != "" {
		return Void, why
	}
	if l.Want && l.Recovered > 0 && l.Recovered <= blinks {
		return Blinked, ""
	}
	return Wrong, ""
}

// void says why a look that is not as it is to be proves nothing, or nothing.
func (h History) void(o Opening, l Look) string {
	if l.Unproven != "" {
		return l.Unproven
	}
	if l.Want && o.Reason != v1alpha1.ReasonConfirmed {
		return "the gate opened as " + o.Reason
	}
	for _, p := range []Party{l.From, l.To} {
		// A Pod's end is known some time after its network's.
		margin := time.Duration(0)
		if l.Want {
			margin = settleEnd
		}
		if !p.Gone.IsZero() && p.Gone.Before(l.Answered.Add(margin)) {
			return "one end of the flow is going"
		}
	}
	for _, e := range h.Edits {
		if e.Namespace != o.Namespace || !e.Begin.Before(l.Answered) {
			continue
		}
		if e.End.IsZero() || e.End.After(o.Created) && e.End.Add(settleEdit).After(o.since()) {
			return "the policies are being edited"
		}
		if (l.Want && e.unasked(o, l) || e.lingers(l)) && h.late(e, o.since()) {
			return "a policy was removed, which no gate waits for"
		}
	}
	for _, f := range h.Faults {
		if why := f.void(o, l); why != "" {
			return why
		}
	}
	return ""
}

// late says whether a fault kept an edit from being carried out until a time.
func (h History) late(e Edit, until time.Time) bool {
	return slices.ContainsFunc(h.Faults, func(w Window) bool {
		after := w.aftermath()
		return w.meets(e.Begin, e.End.Add(settleEdit), after) && w.meets(until, until, after)
	})
}

func (w Window) void(o Opening, l Look) string {
	if w.Begin.After(o.since()) && w.Begin.Before(l.Answered) {
		return "a fault has begun: " + w.Kind
	}
	if !w.meets(o.since(), l.Answered, settleFault) {
		return ""
	}
	if w.Began.IsZero() {
		return "a fault is beginning: " + w.Kind
	}
	concerned := slices.Contains(w.Rewrites, l.From.Node) || slices.Contains(w.Rewrites, l.To.Node)
	if concerned && w.rewrites(o.since(), l.Answered) {
		return "a fault changes rules: " + w.Kind
	}
	// What did come back came through.
	across := l.From.Node != "" && l.To.Node != "" && w.Severs != nil && w.Severs(l.From.Node, l.To.Node)
	if l.Want && l.Got == packet.Silent && across {
		return "the nodes are cut off from each other: " + w.Kind
	}
	return ""
}

// Ended says whether nothing that is sent from now on can say anything of an
// opening.
func (h History) Ended(o Opening, now time.Time) bool {
	for _, w := range h.Faults {
		if w.Begin.After(o.since()) && w.Begin.Before(now) {
			return true
		}
	}
	for _, e := range h.Edits {
		if e.Namespace == o.Namespace && e.Begin.After(o.since()) && e.Begin.Before(now) {
			return true
		}
	}
	return false
}

// Near returns the faults that were in force at a time or within half a minute
// before it.
func (h History) Near(at time.Time) []Window {
	var near []Window
	for _, w := range h.Faults {
		if w.meets(at, at, 30*time.Second) {
			near = append(near, w)
		}
	}
	return near
}

// Calm returns how much of the time from one to another no fault was in force.
func (h History) Calm(from, to time.Time) time.Duration {
	calm := to.Sub(from)
	for _, w := range h.Faults {
		begin, end := w.Begin, w.End
		if begin.Before(from) {
			begin = from
		}
		if end.IsZero() || end.After(to) {
			end = to
		}
		if end.After(begin) {
			calm -= end.Sub(begin)
		}
	}
	return max(calm, 0)
}

// Disturbed says whether a fault was in force in the time from one to another.
func (h History) Disturbed(from, to time.Time) bool {
	return slices.ContainsFunc(h.Faults, func(w Window) bool { return w.meets(from, to, 0) })
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explainv1

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// WriteText writes the explanation for people: how it stands with the Pod, what
// each node that holds it lacks and by which rule, and what to do next. Control
// characters of a hostile answer do not come through.
func (e *Explanation) WriteText(w io.Writer) error {
	out := &text{Writer: bufio.NewWriter(w)}
	out.heading(e)
	for i := range e.Nodes {
		out.node(&e.Nodes[i])
	}
	out.line(0, "")
	out.line(0, "What to do:")
	for _, advice := range e.advice() {
		out.line(1, "%s", advice)
	}
	return out.Flush()
}

// text writes lines; the first error is that of Flush.
type text struct{ *bufio.Writer }

// line writes a line, indented by two spaces a level.
func (t *text) line(level int, format string, args ...any) {
	line := tracev1.Printable(strings.Repeat("  ", level) + fmt.Sprintf(format, args...))
	_, _ = t.WriteString(strings.TrimRight(line, " ") + "\n")
}

// heading says how it stands with the Pod.
func (t *text) heading(e *Explanation) {
	name := "Pod " + e.Namespace + "/" + e.Pod
	switch e.State {
	case NotFound:
		t.line(0, "There is no %s.", name)
		return
	case NotGated:
		t.line(0, "%s is not held by Policy Gate: it has no gate.", name)
		if e.Why != "" {
			t.line(1, "%s", e.Why)
		}
		return
	case Ended:
		t.line(0, "%s has ended: nobody waits for its gate.", name)
		return
	case NotSeen:
		t.line(0, "%s has a gate, and the manager has not taken it up yet.", name)
		return
	case NoAddress:
		t.line(0, "%s is held: it has no address yet, so there is nothing to ask about.", name)
	case Open:
		t.line(0, "%s is not held: its gate is open.", name)
	case Held:
		t.line(0, "%s is held: %s.", name, e.awaited())
	default:
		t.line(0, "%s: it cannot be told how it stands with it (%s).", name, e.State)
	}
	t.place(e)
	if e.Reason != "" {
		t.line(1, "Its condition says %s", strings.TrimSuffix(e.Reason+": "+e.Message, ": "))
	}
	if e.NotAsked > 0 {
		t.line(1, "%d of its connections are beyond the limit and were not asked about.", e.NotAsked)
	}
	for _, note := range e.Notes {
		t.line(1, "Note: %s", note)
	}
}

// place says where the Pod is, and since when.
func (t *text) place(e *Explanation) {
	var words []string
	if e.Node != "" {
		words = append(words, "on node "+e.Node)
	}
	if len(e.Addresses) > 0 {
		words = append(words, "with "+strings.Join(e.Addresses, " and "))
	}
	if !e.Addressed.IsZero() && e.State == Held {
		words = append(words, "for "+Rounded(e.Time.Sub(e.Addressed)))
	}
	if !e.Deadline.IsZero() && e.State == Held {
		if left := e.Deadline.Sub(e.Time); left > 0 {
			words = append(words, "its timeout runs out in "+Rounded(left))
		} else {
			words = append(words, "its timeout ran out "+Rounded(-left)+" ago")
		}
	}
	if len(words) > 0 {
		t.line(1, "%s.", tracev1.Capital(strings.Join(words, ", ")))
	}
}

// awaited says what a Pod that is held waits for.
func (e *Explanation) awaited() string {
	nodes, holding, unwritten := 0, 0, false
	for i := range e.Nodes {
		n := &e.Nodes[i]
		if n.northbound() {
			unwritten = n.Holds
			continue
		}
		nodes++
		if n.Holds {
			holding++
		}
	}
	beside := ""
	if unwritten {
		beside = ", nor has " + hubv1.NorthboundTitle
	}
	switch {
	case !e.Computed:
		return "what must be confirmed for it is not known yet"
	case holding == 1 && nodes == 1:
		return "the one node that is asked has not confirmed" + beside
	case holding == 1:
		return fmt.Sprintf("1 of the %d nodes that are asked has not confirmed%s", nodes, beside)
	case holding > 1:
		return fmt.Sprintf("%d of the %d nodes that are asked have not confirmed%s", holding, nodes, beside)
	case unwritten:
		return hubv1.NorthboundTitle + " has not confirmed"
	case !e.Listed:
		return "the API server's lists of policies and namespaces have not come in yet"
	}
	return "every node has confirmed, and its gate is about to be opened"
}

// node says what one node lacks.
func (t *text) node(n *Node) {
	t.line(0, "")
	name := "Node " + n.Name
	switch {
	case n.northbound():
		name = hubv1.NorthboundPlace
	case n.Own:
		name += ", its own,"
	}
	t.line(0, "%s %s", name, n.words())
	if n.Unenforced != "" {
		t.line(1, "Its policy engine does not enforce %s, which was left out.", n.Unenforced)
	}
	for _, excused := range n.Excused {
		t.line(1, "Known not to be realized there: %s", excused)
	}
	if n.Confirmed {
		return
	}
	for i := range n.Lacks {
		t.lack(n, &n.Lacks[i])
	}
	// An assignment that could not be judged at all is one lack.
	if more := n.Required + n.Advisory - len(n.Lacks); more > 0 {
		t.line(1, "and %d more that do not hold there", more)
	}
}

// northbound reports whether it is no node, but OVN's northbound database.
func (n *Node) northbound() bool { return n.Name == hubv1.Northbound }

// words says how it stands with the node, behind its name.
func (n *Node) words() string {
	switch {
	case n.Confirmed:
		return fmt.Sprintf("has confirmed: %s.", held(n.Expectations))
	case n.Holds && !n.Connected && n.northbound():
		return "holds it: no agent is connected that sees it."
	case n.Unsupported && n.northbound():
		return "is not awaited: its agent cannot read it."
	case n.Holds && len(n.Lacks) > 0 && n.Required > 0 && n.northbound():
		return fmt.Sprintf("holds it: by what is written there, %d of %d connections would not fare as the policies demand.", n.Required, n.Expectations)
	case n.Holds && !n.Connected:
		return "holds it: no agent is connected from there."
	case n.Holds && n.Unsupported:
		return "holds it: its agent cannot see the node's dataplane."
	case n.Holds && !n.Answered:
		return "holds it: its agent has not answered yet."
	case n.Holds && n.Required == 0 && len(n.Lacks) == 0:
		return "holds it: everything held on its last look, and a second one confirms."
	case n.Holds && !slices.ContainsFunc(n.Lacks, func(l Lack) bool { return l.Flow != nil }):
		return "holds it: its rules could not be judged."
	case n.Holds:
		return fmt.Sprintf("holds it: %d of %d connections would not fare as the policies demand.", n.Required, n.Expectations)
	case n.Optional:
		return "is not awaited: it is beyond the limit of nodes that only policies of other namespaces ask about."
	case n.Unsupported:
		return "is not awaited: its agent cannot see the node's dataplane."
	case n.Stalled:
		return "is not awaited: nothing was confirmed there for a long time."
	}
	return "is not awaited."
}

func held(expectations int) string {
	switch expectations {
	case 0:
		return "nothing is asked of it"
	case 1:
		return "the one connection that it is asked about fares as it has to"
	}
	return fmt.Sprintf("all %d connections that it is asked about fare as they have to", expectations)
}

// lack says what is demanded, by which rule, what the node would do instead
// and what it would need.
func (t *text) lack(n *Node, l *Lack) {
	if l.Flow == nil {
		t.line(1, "%s", l.Reason)
		return
	}
	demand := "has to be refused"
	if l.Want == tracev1.Allowed {
		demand = "has to be let in"
	}
	if l.Advisory {
		demand += " (asked, not awaited)"
	}
	t.line(1, "%s %s", l.Flow, demand)
	if l.Why != "" {
		t.line(2, "demanded by: %s", l.Why)
	}
	if l.Now == nil || l.Now.Error != "" {
		t.line(2, "%s reported: %s", n.Name, l.Reason)
		if l.Now != nil {
			t.line(2, "asked again, it did not answer: %s", l.Now.Error)
		}
	} else {
		t.line(2, "%s", l.Now.words(n.Name, l.Want))
		t.misses(l)
	}
	t.line(2, "see all of it: %s", l.Flow.command())
}

// ruleOf returns the rule with its chain, as iptables-save writes it.
func ruleOf(m tracev1.NearMiss) string {
	if m.Chain == "" || strings.HasPrefix(m.Rule, "-A ") {
		return m.Rule
	}
	return "chain " + m.Chain + ": " + m.Rule
}

// words says what the node would do now.
func (r *Ruling) words(node string, want tracev1.Verdict) string {
	because := ""
	if r.Reason != "" {
		because = ": " + r.Reason
	}
	if r.Verdict == want {
		return "asked again just now, " + node + " does so by now" + because
	}
	switch r.Verdict {
	case tracev1.Allowed:
		return node + " would let it in" + because
	case tracev1.Denied:
		return node + " would refuse it" + because
	case tracev1.Inconclusive:
	}
	return "it cannot be told what " + node + " would do" + because
}

// misses writes the rules for want of which the node would do something else.
func (t *text) misses(l *Lack) {
	misses, enough := l.misses()
	fate := "refused"
	if l.Want == tracev1.Allowed {
		fate = "let in"
	}
	for _, m := range misses {
		switch {
		case enough && m.Matched:
			t.line(2, "it would be %s but for this rule, which %s:", fate, m.Words())
		case enough:
			t.line(2, "it would be %s by this rule, which %s:", fate, m.Words())
		default:
			t.line(2, "closest, but not enough alone, is this rule, which %s:", m.Words())
		}
		t.line(3, "%s: %s", m.Base, ruleOf(m))
	}
}

// misses returns the near misses with any of which the node would do what is
// demanded, and true; if there are none, those that come closest.
func (l *Lack) misses() (misses []tracev1.NearMiss, enough bool) {
	if l.Now == nil || l.Now.Verdict == l.Want {
		return nil, false
	}
	for _, m := range l.Now.NearMisses {
		if m.Verdict == l.Want {
			misses = append(misses, m)
		}
	}
	if len(misses) == 0 {
		return l.Now.NearMisses, false
	}
	return misses, true
}

// String returns "tcp 10.0.0.1 (shop/client) -> 10.0.0.2:3306 (shop/mysql)".
func (f *Flow) String() string {
	name := func(address, pod string) string {
		if pod == "" {
			return address
		}
		return address + " (" + pod + ")"
	}
	return f.Protocol + " " + name(f.Source, f.SourcePod) + " -> " +
		name(net.JoinHostPort(f.Destination, strconv.Itoa(int(f.Port))), f.DestinationPod)
}

// command returns the command that traces the flow. It goes by addresses, as
// a Pod may have one of each family.
func (f *Flow) command() string {
	command := "kubectl policygate trace " + f.Source + " " + net.JoinHostPort(f.Destination, strconv.Itoa(int(f.Port)))
	if f.Protocol != "tcp" {
		command += " --protocol " + f.Protocol
	}
	return command
}

// Rounded returns the duration as people say it, such as "412ms", "12s" or
// "3m10s".
func Rounded(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		d = d.Round(time.Second)
		return joined(int(d/time.Minute), "m", int(d%time.Minute/time.Second), "s")
	case d < 48*time.Hour:
		d = d.Round(time.Minute)
		return joined(int(d/time.Hour), "h", int(d%time.Hour/time.Minute), "m")
	}
	return strconv.Itoa(int(d/(24*time.Hour))) + "d"
}

// joined leaves out a second part of zero.
func joined(a int, unit string, b int, smaller string) string {
	if b == 0 {
		return strconv.Itoa(a) + unit
	}
	return strconv.Itoa(a) + unit + strconv.Itoa(b) + smaller
}

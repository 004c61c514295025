// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/coverage"
)

const (
	// answerTime is how long a status is kept after a change of what is asked:
	// nodes where the engine has nothing to do answer sooner.
	answerTime = time.Second
	// syncTime is how long a node must have taken back what it had confirmed
	// before that shows: within a sync of its own kube-router refuses for 0.5
	// to 1.8 s what it allowed before and allows behind it.
	syncTime = 2 * time.Second
	// vouchedTime is how long a node that had confirmed counts on after it was
	// asked about other Pods of the same generation. It looks at what it was
	// asked behind what Pods wait for.
	vouchedTime = 15 * time.Second
	// foundingTime is how long nodes have to answer a replica that was just
	// elected, before it believes them rather than what it finds.
	foundingTime = 30 * time.Second
	// absence is how long what a node's agent said counts without it, and
	// returned how much longer once it is there again and has yet to look.
	absence  = 30 * time.Second
	returned = 10 * time.Second
	// deviationTime is how long an engine must rest on not carrying out a rule
	// before it is taken for one that never will. The longest sync that was
	// measured took 13.3 s.
	deviationTime = time.Minute

	// maxLagging, maxDeviations and maxDeviationNodes are the API's bounds of
	// lists, maxNamed is how many nodes a message names.
	maxLagging        = 10
	maxDeviations     = 10
	maxDeviationNodes = 5
	maxNamed          = 5
	// maxText is the API's bound of messages of nodes and deviations, in bytes.
	maxText = 256
)

// state is everything that is known of one policy.
type state struct {
	generation int64
	// seen is when the generation was first seen by this replica while it was
	// elected; zero if it was there before.
	seen time.Time
	// understood is false if what must be confirmed could not be computed.
	understood bool
	pods       coverage.PolicyPods
	// deviations are what the engine does not carry out on any node.
	deviations []string
	// nodes are those that must enforce the policy, sorted by name.
	nodes []node
	// occupied is when there first was such a node, if there was none when the
	// generation was seen; else zero.
	occupied time.Time
	// former is what was decided last, or what the object says; zero if there
	// is none.
	former v1alpha1.PolicyStatusStatus
}

// node is what is known of one node about one policy.
type node struct {
	name string
	// connected is true if the node's agent has a session, unseen if it cannot
	// see into the node's dataplane.
	connected, unseen bool
	// since is when the node ceased to confirm, or was first asked; while it
	// confirms, it is when it began to.
	since time.Time
	// founding is true if it was asked by a replica that had just been elected,
	// about a generation that was there before.
	founding bool
	// lost is when the session ended in which it answered; zero if it has not.
	lost time.Time
	answer
	// vouched is true if it had confirmed another question on the generation, and
	// not answered the present one.
	vouched bool
	// had is true if it had confirmed the present question before it answered
	// otherwise, or what it lacks of it as part of another, and drifted if it was seen then to refuse or admit what it
	// must not, and has not confirmed anything since.
	had, drifted bool
	// steady is since when its engine rests on not carrying out a rule; zero if
	// it does not.
	steady time.Time
}

// answer is what a node said last of what it is asked at present; zero: nothing.
type answer struct {
	given, confirmed bool
	// lag is the reason to name if it has not confirmed, and text says the
	// same in words that are fit for the policy's owner.
	lag, text string
	// deviates says what the engine does not carry out, if the node has
	// confirmed or is steady; fit for the policy's owner.
	deviates []string
}

// decision is what a policy's status is to say.
type decision struct {
	// status is nil if there is none yet.
	status *v1alpha1.PolicyStatusStatus
	// took is how long it took the generation to be in force, if that is what
	// the decision found and nothing had before.
	took time.Duration
	// next is when time alone may change the decision; zero if never.
	next time.Time
}

// view is what a node is counted as at a time.
type view struct {
	programmed bool
	// lag and text say what is wrong, if it is not.
	lag, text string
	deviates  []string
	// answered is true if it has answered what is asked at present.
	answered bool
	// since is when it began to be, or ceased.
	since time.Time
	// shows is from when on a status that was True ceases to be for the node's
	// sake.
	shows time.Time
	// unseen is true if nobody can see into the node, and waiting does not
	// mend it.
	unseen bool
	// next is when time alone changes any of that; zero if never.
	next time.Time
}

// decide decides what the status of a policy is to say.
func decide(s state, now time.Time) decision {
	if !s.understood {
		return s.say(now, nil)
	}
	views := make([]view, len(s.nodes))
	d := decision{}
	var shows, founded time.Time
	for i := range s.nodes {
		views[i] = s.nodes[i].view(now)
		d.next = sooner(d.next, views[i].next)
		if views[i].programmed {
			continue
		}
		shows = sooner(shows, views[i].shows)
		if until := views[i].since.Add(foundingTime); s.nodes[i].founding && !views[i].answered && now.Before(until) {
			founded = sooner(founded, until)
		}
	}
	programmed := meta.FindStatusCondition(s.former.Conditions, v1alpha1.PolicyProgrammed)
	switch {
	case !founded.IsZero():
		// The nodes have yet to answer: what was found stands.
		return s.keep(d, founded)
	case now.Before(shows) && (programmed == nil || programmed.Status == metav1.ConditionTrue):
		return s.keep(d, shows)
	}
	out := s.say(now, views)
	out.next = d.next
	return out
}

// keep has the former status stand until then.
func (s state) keep(d decision, until time.Time) decision {
	if len(s.former.Conditions) > 0 {
		d.status = s.former.DeepCopy()
	}
	d.next = sooner(d.next, until)
	return d
}

// view returns what n is counted as.
func (n *node) view(now time.Time) view {
	v := view{answered: n.given, since: n.since}
	if n.given && !n.lost.IsZero() {
		until := n.lost.Add(absence)
		if n.connected {
			until = until.Add(returned)
		}
		if v.answered = now.Before(until); v.answered {
			v.next = until
		} else if n.confirmed {
			v.since = n.lost
		}
	}
	v.shows = v.since.Add(answerTime)
	switch {
	case v.answered && n.confirmed:
		v.programmed, v.deviates = true, n.deviates
		return v
	case v.answered && !n.steady.IsZero() && !n.drifted:
		v.deviates = n.deviates
		if until := n.steady.Add(deviationTime); now.Before(until) {
			v.next = sooner(v.next, until)
			v.deviates = nil
		} else {
			v.programmed, v.since = true, until
			return v
		}
	}
	if until := n.since.Add(vouchedTime); n.vouched && !n.given && n.connected && now.Before(until) {
		v.programmed, v.next = true, until
		return v
	}
	v.lag, v.text = n.lagging(v.answered)
	if v.answered && n.had {
		v.shows = v.since.Add(syncTime)
	}
	switch v.lag {
	case v1alpha1.LagUnsupported:
		v.unseen = true
	case v1alpha1.LagNoAgent:
		// An agent that is about to start, on a node that is new, is not amiss.
		until := v.since.Add(absence)
		if v.unseen = !now.Before(until); !v.unseen {
			v.next = sooner(v.next, until)
		}
	}
	if now.Before(v.shows) {
		v.next = sooner(v.next, v.shows)
	}
	return v
}

// lagging returns what is wrong with a node that has not confirmed.
func (n *node) lagging(answered bool) (lag, text string) {
	switch {
	case n.connected && n.unseen:
		return v1alpha1.LagUnsupported, "the agent cannot see into the node's dataplane"
	case answered && n.lag != "":
		return n.lag, n.text
	case !n.connected && !answered:
		return v1alpha1.LagNoAgent, "no agent is connected from the node"
	}
	return v1alpha1.LagNoAnswer, "the node's agent has not confirmed yet, nor said what is missing"
}

// say returns the status that says what the views are, or that there are none
// as the policy is not understood.
func (s state) say(now time.Time, views []view) decision {
	next := v1alpha1.PolicyStatusStatus{
		Conditions:         slices.Clone(s.former.Conditions),
		ObservedGeneration: &s.generation,
		Pods: v1alpha1.PodCounts{
			Selected: count(s.pods.Selected), Gated: count(s.pods.Gated), Pending: count(s.pods.Pending),
		},
		LastProgrammed: s.former.LastProgrammed,
	}
	programmed := 0
	for _, v := range views {
		if v.programmed {
			programmed++
		}
	}
	if s.understood {
		next.Nodes = v1alpha1.NodeCounts{
			Summary: fmt.Sprintf("%d/%d", programmed, len(views)),
			Desired: count(len(views)), Programmed: count(programmed),
		}
	}
	s.sayLagging(&next, views)
	s.sayDeviations(&next, views)
	yes, degraded := s.programmed(views), s.degraded(views, next.Deviations)
	for _, c := range []metav1.Condition{yes, degraded} {
		c.ObservedGeneration = s.generation
		c.LastTransitionTime = stamp(now)
		meta.SetStatusCondition(&next.Conditions, c)
	}
	d := decision{status: &next}
	if yes.Reason == v1alpha1.PolicyReasonInForce {
		d.took = s.sayProgrammed(&next, views, now)
	}
	return d
}

// programmed returns the condition Programmed, without times.
func (s state) programmed(views []view) metav1.Condition {
	var lagging []string
	wrong, drifted := false, false
	for i, v := range views {
		if v.programmed {
			continue
		}
		lagging = append(lagging, s.nodes[i].name+" ("+v.lag+")")
		drifted = drifted || s.drifts(i, v)
		wrong = wrong || v.lag == v1alpha1.LagNotAdmitting || v.lag == v1alpha1.LagNotIsolating
	}
	c := metav1.Condition{Type: v1alpha1.PolicyProgrammed}
	switch names := strings.Join(named(lagging), ", "); {
	case !s.understood:
		c.Status, c.Reason = metav1.ConditionUnknown, v1alpha1.PolicyReasonNotUnderstood
		c.Message = "a NetworkPolicy that may concern the same Pods cannot be read, so nothing can be told"
	case len(views) == 0:
		c.Status, c.Reason = metav1.ConditionTrue, v1alpha1.PolicyReasonNoPods
		c.Message = "no node has to enforce it: it selects no Pod that has an address"
	case len(lagging) == 0:
		c.Status, c.Reason = metav1.ConditionTrue, v1alpha1.PolicyReasonInForce
		c.Message = "in force on " + nodes(len(views))
	case drifted:
		c.Status, c.Reason = metav1.ConditionFalse, v1alpha1.PolicyReasonDrifted
		c.Message = "no longer in force on " + names
	case wrong:
		c.Status, c.Reason = metav1.ConditionFalse, v1alpha1.PolicyReasonLagging
		c.Message = "not in force yet on " + names
	default:
		c.Status, c.Reason = metav1.ConditionUnknown, v1alpha1.PolicyReasonUnknown
		c.Message = "not known to be in force on " + names
	}
	return c
}

// degraded returns the condition Degraded, without times.
func (s state) degraded(views []view, deviations []v1alpha1.Deviation) metav1.Condition {
	var drifted, unseen []string
	for i, v := range views {
		if s.drifts(i, v) {
			drifted = append(drifted, s.nodes[i].name+" ("+v.lag+")")
		}
		if v.unseen && !v.programmed {
			unseen = append(unseen, s.nodes[i].name+" ("+v.lag+")")
		}
	}
	c := metav1.Condition{Type: v1alpha1.PolicyDegraded, Status: metav1.ConditionTrue}
	switch {
	case !s.understood:
		c.Reason = v1alpha1.PolicyReasonNotUnderstood
		c.Message = "a NetworkPolicy that may concern the same Pods cannot be read, so nothing can be told"
	case len(drifted) > 0:
		c.Reason = v1alpha1.PolicyReasonDrifted
		c.Message = "was in force and is no more on " + strings.Join(named(drifted), ", ")
	case len(deviations) > 0:
		c.Reason = v1alpha1.PolicyReasonEngineDeviates
		c.Message = "the policy engine does not carry out: " + spell(deviations[0])
		if more := len(deviations) - 1; more > 0 {
			c.Message += fmt.Sprintf("; and %d more", more)
		}
	case len(unseen) > 0:
		c.Reason = v1alpha1.PolicyReasonUnseen
		c.Message = "nobody can see into " + strings.Join(named(unseen), ", ")
	default:
		c.Status, c.Reason = metav1.ConditionFalse, v1alpha1.PolicyReasonAsExpected
		c.Message = "nothing is wrong that waiting does not mend"
	}
	return c
}

// drifts reports whether the i-th node had confirmed and does what it must not.
func (s state) drifts(i int, v view) bool {
	return !v.programmed && v.answered && s.nodes[i].drifted
}

// sayLagging lists the nodes that do not enforce the policy.
func (s state) sayLagging(next *v1alpha1.PolicyStatusStatus, views []view) {
	before := map[string]*metav1.Time{}
	for _, l := range s.former.LaggingNodes {
		before[l.Name] = l.Since
	}
	left := 0
	for i, v := range views {
		switch {
		case v.programmed:
		case len(next.LaggingNodes) == maxLagging:
			left++
		default:
			since := before[s.nodes[i].name]
			if since == nil {
				since = new(stamp(v.since))
			}
			next.LaggingNodes = append(next.LaggingNodes, v1alpha1.LaggingNode{
				Name: s.nodes[i].name, Reason: v.lag, Message: cut(v.text), Since: since,
			})
		}
	}
	if left > 0 {
		next.LaggingNodesLeftOut = count(left)
	}
}

// sayDeviations lists what is not carried out: first what is so everywhere,
// then by what it is.
func (s state) sayDeviations(next *v1alpha1.PolicyStatusStatus, views []view) {
	where := map[string][]string{}
	for i, v := range views {
		for _, what := range v.deviates {
			where[what] = append(where[what], s.nodes[i].name)
		}
	}
	for _, what := range slices.Compact(slices.Sorted(slices.Values(s.deviations))) {
		next.Deviations = append(next.Deviations, v1alpha1.Deviation{Message: cut(what)})
	}
	for _, what := range slices.Sorted(maps.Keys(where)) {
		names := slices.Compact(where[what])
		deviation := v1alpha1.Deviation{Message: cut(what), Nodes: names}
		if left := len(names) - maxDeviationNodes; left > 0 {
			deviation.Nodes, deviation.NodesLeftOut = names[:maxDeviationNodes:maxDeviationNodes], count(left)
		}
		next.Deviations = append(next.Deviations, deviation)
	}
	next.Deviations = next.Deviations[:min(len(next.Deviations), maxDeviations)]
}

// sayProgrammed notes that the policy is in force, unless that was noted. It
// returns how long the generation took to be, if that is known and news.
func (s state) sayProgrammed(next *v1alpha1.PolicyStatusStatus, views []view, now time.Time) time.Duration {
	former := s.former.LastProgrammed
	again := former.Generation != nil && *former.Generation == s.generation
	was := meta.FindStatusCondition(s.former.Conditions, v1alpha1.PolicyProgrammed)
	if again && was != nil && was.Reason == v1alpha1.PolicyReasonInForce && was.ObservedGeneration == s.generation {
		return 0
	}
	next.LastProgrammed = v1alpha1.LastProgrammed{Time: new(stamp(now)), Generation: &s.generation}
	if again {
		next.LastProgrammed.Took = former.Took
		return 0
	}
	if s.seen.IsZero() {
		return 0
	}
	from := s.seen
	if s.occupied.After(from) {
		from = s.occupied
	}
	last := from
	for _, v := range views {
		if v.since.After(last) {
			last = v.since
		}
	}
	if now.Sub(last) > 2*decideInterval {
		last = now // what brought it about was no confirmation: a node left
	}
	took := max(last.Sub(from), time.Millisecond)
	next.LastProgrammed.Took = rounded(took).String()
	return took
}

// stamp returns t as the API keeps it, so that what was read compares equal
// with what was written.
func stamp(t time.Time) metav1.Time { return metav1.NewTime(t.Truncate(time.Second)) }

// rounded returns d as people read it: milliseconds below ten seconds.
func rounded(d time.Duration) time.Duration {
	if d < 10*time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(100 * time.Millisecond)
}

// named caps a list of texts that each stand for a node.
func named(texts []string) []string {
	if len(texts) <= maxNamed {
		return texts
	}
	return append(texts[:maxNamed:maxNamed], fmt.Sprintf("and %d more", len(texts)-maxNamed))
}

// nodes returns a number of nodes in words.
func nodes(n int) string {
	if n == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", n)
}

// spell returns a deviation in one line.
func spell(d v1alpha1.Deviation) string {
	if len(d.Nodes) == 0 {
		return d.Message
	}
	text := d.Message + " on " + strings.Join(d.Nodes, ", ")
	if d.NodesLeftOut != nil {
		text += fmt.Sprintf(" and %d more", *d.NodesLeftOut)
	}
	return text
}

// cut keeps a text within the API's bound. Our texts are ASCII but for names,
// which are, too.
func cut(text string) string {
	if len(text) <= maxText {
		return text
	}
	return text[:maxText-3] + "..."
}

func count(n int) *int32 {
	return new(int32(min(n, 1<<30))) //nolint:gosec // bounded
}

// sooner returns the earlier of two times, of which a zero one is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

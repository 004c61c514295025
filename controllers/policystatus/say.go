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

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
)

const (
	// maxLagging, maxDeviations and maxDeviationNodes are the API's bounds of
	// lists, maxNamed is how many nodes a message names.
	maxLagging        = 10
	maxDeviations     = 10
	maxDeviationNodes = 5
	maxNamed          = 5
	// maxText is the API's bound of messages of nodes and deviations, in bytes.
	maxText = 256
)

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
	if s.understood {
		programmed, desired := s.count(views)
		next.Nodes = v1alpha1.NodeCounts{
			Summary: fmt.Sprintf("%d/%d", programmed, desired),
			Desired: count(desired), Programmed: count(programmed),
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

// count returns how many nodes enforce the policy, and how many have to. The
// northbound database is none.
func (s state) count(views []view) (programmed, desired int) {
	for i, v := range views {
		if s.nodes[i].name == hubv1.Northbound {
			continue
		}
		desired++
		if v.programmed {
			programmed++
		}
	}
	return programmed, desired
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
		_, desired := s.count(views)
		c.Message = "in force on " + nodes(desired)
		if desired < len(views) {
			c.Message += ", and in " + hubv1.NorthboundTitle
		}
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

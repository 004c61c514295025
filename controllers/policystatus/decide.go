// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
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
	// otherwise, or had confirmed what it lacks as part of another question.
	// drifted is true if it was seen then to refuse or admit what it must not,
	// and has not confirmed anything since.
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
	database := n.name == hubv1.Northbound
	switch {
	case n.connected && n.unseen && database:
		return v1alpha1.LagUnsupported, "the agent of " + hubv1.NorthboundTitle + " cannot read it"
	case n.connected && n.unseen:
		return v1alpha1.LagUnsupported, "the agent cannot see into the node's dataplane"
	case answered && n.lag == v1alpha1.LagInconclusive && database:
		return n.lag, "it cannot be told what " + hubv1.NorthboundTitle + " has of it; its agent's log says why"
	case answered && n.lag != "" && database:
		return n.lag, "in " + hubv1.NorthboundTitle + ": " + n.text
	case answered && n.lag != "":
		return n.lag, n.text
	case !n.connected && !answered && database:
		return v1alpha1.LagNoAgent, "no agent is connected that sees " + hubv1.NorthboundTitle
	case !n.connected && !answered:
		return v1alpha1.LagNoAgent, "no agent is connected from the node"
	case database:
		return v1alpha1.LagNoAnswer, "the agent of " + hubv1.NorthboundTitle + " has not confirmed yet, nor said what is missing"
	}
	return v1alpha1.LagNoAnswer, "the node's agent has not confirmed yet, nor said what is missing"
}

// sooner returns the earlier of two times, of which a zero one is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
)

// Severity says how bad a finding is.
type Severity string

// Severities.
const (
	// OK: it is in order.
	OK Severity = "OK"
	// Warn: part of it does not work, or may not, or could not be seen.
	Warn Severity = "WARN"
	// Fail: Policy Gate does not do its work.
	Fail Severity = "FAIL"
)

// Finding is one thing that was found.
type Finding struct {
	Severity Severity `json:"severity"`
	// Subject is what it is about, in a word.
	Subject string `json:"subject"`
	// Text says what was found, in one line.
	Text string `json:"text"`
	// Do says what to do about it; empty if nothing is to be done.
	Do string `json:"do,omitempty"`
}

// Findings says what follows from the facts, in the order of what depends on
// what.
func Findings(f *Facts) []Finding {
	e := &examination{Facts: f}
	e.webhook()
	e.trial()
	e.managers()
	e.agents()
	e.replicas()
	e.certificates()
	e.nodes()
	e.northbound()
	e.versions()
	e.dataplanes()
	e.remarks()
	e.ungated()
	return e.findings
}

// examination is Findings at work.
type examination struct {
	*Facts
	findings []Finding
}

func (e *examination) add(s Severity, subject, do, format string, args ...any) {
	e.findings = append(e.findings, Finding{Severity: s, Subject: subject, Text: fmt.Sprintf(format, args...), Do: do})
}

// unread adds that something was not checked.
func (e *examination) unread(u *Unread, subject, what string) {
	e.add(Warn, subject, u.Grant, "%s: %s", what, u.Why)
}

func (e *examination) webhook() {
	const subject = "webhook"
	w := e.Webhook
	switch {
	case w.Unread != nil:
		e.unread(w.Unread, subject, "the MutatingWebhookConfiguration was not checked")
	case !w.Found:
		e.add(Fail, subject, "Install Policy Gate anew, or its part config/webhook.",
			"there is no MutatingWebhookConfiguration policygate: no Pod is given a gate")
	case len(w.Entries) == 0:
		e.add(Fail, subject, "Install Policy Gate anew, or its part config/webhook.",
			"the MutatingWebhookConfiguration policygate has no webhooks: no Pod is given a gate")
	case len(w.Bare) > 0:
		e.add(Fail, subject, "The manager's leader fills it in: see its log, and its right to patch the object.",
			"the API server has no CA bundle to trust the webhook by: %s", strings.Join(w.Bare, ", "))
	default:
		e.add(OK, subject, "", "the MutatingWebhookConfiguration is there, with a CA bundle")
	}
}

func (e *examination) trial() {
	const subject = "webhook"
	do := "See whether the API server can connect to Service " + e.Namespace + "/policygate-webhook (firewalls, network policies), and whether namespace " +
		e.Trial.Namespace + " is one that is left out."
	t := e.Trial
	switch {
	case t.Unread != nil:
		e.unread(t.Unread, subject, "whether the API server reaches the webhook was not tried")
	case t.Denied != "":
		e.add(Warn, subject, "", "the API server reaches the webhook, which denies a plain Pod: %s", t.Denied)
	case t.Unreached != "":
		e.add(Fail, subject, do, "the API server does not reach the webhook: %s", t.Unreached)
	case !t.Injected:
		e.add(Fail, subject, do,
			"a Pod that asks for a gate, tried in namespace %s, is given none: the API server does not reach the webhook, and lets Pods pass ungated", t.Namespace)
	default:
		e.add(OK, subject, "", "the API server reaches it: a Pod that was tried in namespace %s is given a gate", t.Namespace)
	}
}

func (e *examination) managers() {
	const subject = "manager"
	w := e.Manager
	switch {
	case w.Unread != nil:
		e.unread(w.Unread, subject, "the Deployment policygate-manager was not checked")
	case !w.Found:
		e.add(Fail, subject, "See --install-namespace.", "there is no Deployment policygate-manager in namespace %s", e.Namespace)
	case w.Ready == 0:
		e.add(Fail, subject, "kubectl -n "+e.Namespace+" describe pods -l app.kubernetes.io/name=policygate-manager",
			"none of its %s is ready: gates stay shut", plural(int(w.Desired), "replica"))
	case w.Ready < w.Desired:
		e.add(Warn, subject, "kubectl -n "+e.Namespace+" describe pods -l app.kubernetes.io/name=policygate-manager",
			"%d of %d replicas are ready", w.Ready, w.Desired)
	case w.Current < w.Desired:
		e.add(Warn, subject, "Wait for the rollout.", "%d of %d replicas are of the newest version", w.Current, w.Desired)
	default:
		e.add(OK, subject, "", "%d of %d replicas are ready", w.Ready, w.Desired)
	}
}

func (e *examination) agents() {
	const subject = "agents"
	w := e.Agents
	do := "kubectl -n " + e.Namespace + " get pods -o wide -l app.kubernetes.io/name=policygate-agent"
	switch {
	case w.Unread != nil:
		e.unread(w.Unread, subject, "the DaemonSet policygate-agent was not checked")
	case !w.Found:
		e.add(Fail, subject, "See --install-namespace.", "there is no DaemonSet policygate-agent in namespace %s", e.Namespace)
	case w.Ready == 0 && w.Desired > 0:
		e.add(Fail, subject, do, "none of %d is ready: gates stay shut", w.Desired)
	case w.Ready < w.Desired:
		e.add(Warn, subject, do, "%d of %d are ready", w.Ready, w.Desired)
	case w.Current < w.Desired:
		e.add(Warn, subject, "Wait for the rollout.", "%d of %d are of the newest version", w.Current, w.Desired)
	default:
		e.add(OK, subject, "", "%d of %d are ready", w.Ready, w.Desired)
	}
}

// replicas adds which replicas of the manager did not answer.
func (e *examination) replicas() {
	const subject = "manager"
	if e.Unasked != nil {
		e.unread(e.Unasked, subject, "no replica was asked what it sees")
	}
	for _, r := range e.Replicas {
		if r.Unread != nil {
			e.unread(r.Unread, subject, "Pod "+r.Pod+" was not asked what it sees")
		}
	}
}

// asked returns the replicas that answered.
func (e *examination) asked() []Replica {
	var out []Replica
	for _, r := range e.Replicas {
		if r.Diagnosis != nil {
			out = append(out, r)
		}
	}
	return out
}

// overdue is how much of a certificate's life is left when its renewal, at two
// thirds of it, must have failed for long: a sixth.
const overdue = 6

func (e *examination) certificates() {
	const subject = "certificates"
	const do = "The manager's leader renews it: see its log, and its right to update the Secrets policygate-ca and policygate-tls."
	var first time.Time
	for _, r := range e.asked() {
		c, now := r.Diagnosis.Certificate, r.Diagnosis.Time
		left := c.NotAfter.Sub(now)
		switch {
		case c.Error != "":
			e.add(Fail, subject, do, "Pod %s serves none: %s", r.Pod, c.Error)
		case left <= 0:
			e.add(Fail, subject, do, "that of Pod %s ran out %s ago", r.Pod, explainv1.Rounded(-left))
		case now.Before(c.NotBefore):
			e.add(Fail, subject, "See the clocks of the replicas' nodes.", "that of Pod %s is valid only in %s", r.Pod, explainv1.Rounded(c.NotBefore.Sub(now)))
		case left < c.NotAfter.Sub(c.NotBefore)/overdue:
			e.add(Warn, subject, do, "that of Pod %s runs out in %s, and should have been renewed", r.Pod, explainv1.Rounded(left))
		case first.IsZero() || c.NotAfter.Before(first):
			first = c.NotAfter
		}
	}
	if !first.IsZero() {
		e.add(OK, subject, "", "valid until %s", first.UTC().Format(time.RFC3339))
	}
}

// view is what all replicas together see of a node.
type view struct {
	explainv1.NodeView
	// connected counts the replicas that the agent is connected to.
	connected int
}

// views returns the nodes, by name, each as the replica sees it that has the
// newest session with its agent.
func (e *examination) views() []view {
	byName := map[string]view{}
	for _, r := range e.asked() {
		for _, n := range r.Diagnosis.Nodes {
			v, ok := byName[n.Name]
			if !ok || n.Since.After(v.Since) {
				v.NodeView = n
			}
			if !n.Since.IsZero() {
				v.connected++
			}
			byName[n.Name] = v
		}
	}
	out := make([]view, 0, len(byName))
	for _, v := range byName {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b view) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// nodes adds which nodes have no agent.
func (e *examination) nodes() {
	const subject = "nodes"
	asked := len(e.asked())
	if asked == 0 {
		return
	}
	var without, notReady, partly []string
	all := e.views()
	for _, v := range all {
		switch {
		case v.connected == 0 && v.Ready:
			without = append(without, v.Name)
		case v.connected == 0:
			notReady = append(notReady, v.Name)
		case v.connected < asked:
			partly = append(partly, v.Name)
		}
	}
	do := "See the agent's Pod there and its log: kubectl -n " + e.Namespace + " get pods -o wide -l app.kubernetes.io/name=policygate-agent"
	if len(without) > 0 {
		e.add(Fail, subject, do, "no agent is connected from %s, which %s ready: Pods that need %s wait",
			named(without), isAre(without), itThem(without))
	}
	if len(notReady) > 0 {
		e.add(Warn, subject, "", "no agent is connected from %s, which %s not ready", named(notReady), isAre(notReady))
	}
	if len(partly) > 0 {
		e.add(Warn, subject, do, "not connected to every replica of the manager: %s", named(partly))
	}
	if len(without)+len(notReady)+len(partly) == 0 {
		e.add(OK, subject, "", "agents are connected from all nodes (%d), to all replicas that were asked (%d)", len(all), asked)
	}
}

// unstamped is the version of a build outside of a repository: it says nothing.
const unstamped = "(devel)"

// versions adds who is of which version.
func (e *examination) versions() {
	const subject = "versions"
	who := map[string][]string{}
	add := func(version, name string) {
		if version != "" && version != unstamped {
			who[version] = append(who[version], name)
		}
	}
	for _, r := range e.asked() {
		add(r.Diagnosis.Version, "Pod "+r.Pod)
	}
	for _, v := range e.views() {
		add(v.Version, "agent of "+v.Name)
	}
	if len(who) == 0 {
		return
	}
	add(e.Plugin, "this command")
	if len(who) == 1 {
		for version := range who {
			e.add(OK, subject, "", "all that are known are %s", version)
		}
		return
	}
	e.add(Warn, subject, "Wait for the rollout, or install what is older anew.", "they differ: %s", grouped(who))
}

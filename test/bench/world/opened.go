// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package world

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/api/flow"
)

const (
	// unnamedPort is one that no scenario's policy names.
	unnamedPort = 61999
	// maxTried and maxStrangers bound the Pods that are tried and asked as
	// strangers.
	maxTried     = 64
	maxStrangers = 4
	// maxDemands is the number of flows from which on the product need not
	// have asked all of them: its budget is 256, and each may need a control.
	maxDemands = 100
	// maxForeignNodes is the product's limit of nodes that policies of other
	// namespaces may ask.
	maxForeignNodes = 32
)

// unusedAddress is nobody's: Pods of scenarios have addresses of 10.0.0.0/8.
var unusedAddress = netip.MustParseAddr("10.255.255.250")

// Opening is what the truth says of a gate that opens.
type Opening struct {
	// Wrong describes each flow that the kernels do, or later will do,
	// otherwise than the policies demand.
	Wrong []string
	// Strangers and Peers count the flows that were held against the kernels.
	Strangers, Peers int
	// Beyond is set if so many flows are demanded that the product need not
	// ask all: then no peers were.
	Beyond bool
	// Unjudged says why nothing was held against anything, or is empty.
	Unjudged string
}

// Opened judges whether a Pod's gate opens rightly at a moment, by the
// policies that have stood unchanged since before the Pod was created, and by
// other Pods that have. A flow that is let through only because a rule is not
// there yet is wrong: the moment is held against all that is under way, too.
func (w *World) Opened(uid types.UID, at time.Time) Opening {
	w.mu.RLock()
	defer w.mu.RUnlock()
	h := w.pods[uid]
	now := h.latestOf()
	switch {
	case now == nil || !now.peer() || now.leaving:
		return Opening{Unjudged: "the Pod has gone"}
	case w.changedLabels(h):
		return Opening{Unjudged: "the Pod's labels have changed since it was created"}
	}
	j := judging{World: w, pod: h, now: now, at: at}
	j.strangers()
	j.peers()
	return j.Opening
}

func (w *World) changedLabels(h *podHistory) bool {
	latest := h.latest()
	for _, v := range h.versions {
		if v.state == nil || v.state.labels.String() != latest.labels.String() {
			return true
		}
	}
	return false
}

type judging struct {
	*World
	Opening
	pod *podHistory
	now *pod
	at  time.Time
}

// old reports whether something has been as it is since before the Pod.
func old[T any](j *judging, h *history[T]) bool {
	return h.latest() != nil && h.since().Before(j.pod.began)
}

// strangers judges the Pod's own isolation.
func (j *judging) strangers() {
	for _, d := range []direction{ingress, egress} {
		var by *policyHistory
		for _, q := range j.policiesIn[j.now.namespace] {
			if old(j, &q.history) && q.latest().isolates[d] && q.latest().selector.Matches(j.now.labels) {
				by = q
			}
		}
		if by == nil {
			continue
		}
		for _, s := range j.candidates(d) {
			f := j.flow(d, s, flow.TCP, unnamedPort)
			j.Strangers++
			if at, got := j.ever(j.now.node, f, flow.Denied); got != flow.Denied {
				j.wrong("%s: stranger %s is %s on %s%s, though %s/%s isolates it",
					directionName(d), f, got, j.now.node, at, by.namespace, by.name)
			}
		}
	}
}

func directionName(d direction) string {
	if d == egress {
		return "egress"
	}
	return "ingress"
}

// candidates returns addresses that no version of any policy admits.
func (j *judging) candidates(d direction) []netip.Addr {
	var out []netip.Addr
	if !j.everAdmitted(d, unusedAddress, nil) {
		out = append(out, unusedAddress)
	}
	for i := range min(maxTried, len(j.live)) {
		h := j.live[(int(j.pod.key%uint64(len(j.live)))+i)%len(j.live)]
		s := h.latest()
		if h == j.pod || s.leaving || !old(j, &h.history) || len(j.byAddr[s.ips[0]]) > 1 || j.everAdmitted(d, s.ips[0], s) {
			continue
		}
		if out = append(out, s.ips[0]); len(out) == maxStrangers {
			break
		}
	}
	return out
}

// everAdmitted reports whether any version that a node may go by admits other
// on some port that strangers are asked on.
func (j *judging) everAdmitted(d direction, addr netip.Addr, other *pod) bool {
	f := j.flow(d, addr, flow.TCP, unnamedPort)
	for _, h := range j.policiesIn[j.now.namespace] {
		for _, v := range h.versions {
			if v.state == nil || !v.state.isolates[d] || !v.state.selector.Matches(j.now.labels) {
				continue
			}
			for i := range v.state.rules[d] {
				r := &v.state.rules[d][i]
				if r.admits(f, destination(d, j.now, other)) && j.everMeans(r, h.namespace, addr, other) {
					return true
				}
			}
		}
	}
	return false
}

func (j *judging) everMeans(r *rule, own string, addr netip.Addr, other *pod) bool {
	if other == nil {
		return r.meansPeer(own, addr, nil, nil)
	}
	h := j.namespaces[other.namespace]
	if h == nil {
		return r.meansPeer(own, addr, other, nil)
	}
	for _, v := range h.versions {
		if r.meansPeer(own, addr, other, v.state) {
			return true
		}
	}
	return false
}

// demand is a flow that the kernel of a node must let pass.
type demand struct {
	node string
	flow flow.Flow
	why  string
}

// peers judges what older Pods' policies grant the Pod.
func (j *judging) peers() {
	var demands []demand
	for _, q := range j.policiesIn[j.now.namespace] {
		if old(j, &q.history) {
			more, _ := j.demands(q)
			demands = append(demands, more...)
		}
	}
	for q := range j.reaching {
		ns := j.namespaces[q.namespace]
		if q.namespace == j.now.namespace || !old(j, &q.history) || ns == nil || !old(j, &ns.history) || !ns.latest().inject {
			continue
		}
		if more, nodes := j.demands(q); nodes <= maxForeignNodes {
			demands = append(demands, more...)
		}
	}
	if len(demands) > maxDemands {
		j.Beyond = true
		return
	}
	for _, x := range demands {
		j.Peers++
		if at, got := j.ever(x.node, x.flow, flow.Allowed); got != flow.Allowed {
			j.wrong("peer: %s is %s on %s%s, though %s admits it", x.flow, got, x.node, at, x.why)
		}
	}
}

// demands returns what a policy that names the Pod demands of the nodes of the
// Pods it selects, and how many nodes these are.
func (j *judging) demands(q *policyHistory) (out []demand, nodes int) {
	own := j.namespaces[j.now.namespace]
	state := q.latest()
	hosts := map[string]bool{}
	for _, d := range []direction{ingress, egress} {
		if !state.isolates[d] {
			continue
		}
		for i := range state.rules[d] {
			r := &state.rules[d][i]
			if !j.named(q, r, own) {
				continue
			}
			for t := range j.byNS[q.namespace] {
				now := t.latest()
				if t == j.pod || !old(j, &t.history) || !now.peer() || now.leaving || !state.selector.Matches(now.labels) ||
					len(j.byAddr[now.ips[0]]) > 1 {
					continue
				}
				hosts[now.node] = true
				for _, f := range j.granted(d, r, now) {
					if j.stands(d, now, f) {
						out = append(out, demand{now.node, f, fmt.Sprintf("%s/%s %s[%d]", q.namespace, q.name, directionName(d), i)})
					}
				}
			}
		}
	}
	return out, len(hosts)
}

// named reports whether a selector of the rule means the Pod and always has.
func (j *judging) named(q *policyHistory, r *rule, own *namespaceHistory) bool {
	for i := range r.peers {
		p := &r.peers[i]
		if p.pods == nil || p.namespaces != nil && (own == nil || !old(j, &own.history)) {
			continue
		}
		var ns *namespace
		if own != nil {
			ns = own.latest()
		}
		if p.means(q.namespace, j.now.ips[0], j.now, ns) {
			return true
		}
	}
	return false
}

// granted returns a flow for each port of the rule between the Pod and t.
func (j *judging) granted(d direction, r *rule, t *pod) []flow.Flow {
	src, dst, to := j.now.ips[0], t.ips[0], t
	if d == egress {
		src, dst, to = t.ips[0], j.now.ips[0], j.now
	}
	if len(r.ports) == 0 {
		return []flow.Flow{{Protocol: flow.TCP, Src: src, Dst: dst, Port: unnamedPort}}
	}
	var out []flow.Flow
	for i := range r.ports {
		if number, ok := first(&r.ports[i], to); ok {
			out = append(out, flow.Flow{Protocol: protocolOf(r.ports[i].Protocol), Src: src, Dst: dst, Port: number})
		}
	}
	return out
}

// first returns the first number that a port means on dst.
func first(port *networkingv1.NetworkPolicyPort, dst *pod) (uint16, bool) {
	switch {
	case port.Port == nil:
		return unnamedPort, true
	case port.Port.Type == intstr.String:
		return dst.named(port.Port.StrVal, protocolOf(port.Protocol))
	}
	return uint16(port.Port.IntVal), true
}

// stands reports whether all policies together have let f pass on t's node
// since before the Pod was created. d is that of the rule that grants it.
func (j *judging) stands(d direction, t *pod, f flow.Flow) bool {
	if t.node != j.now.node {
		return true
	}
	// The Pod's own policies have a say there, too: if they are not what they
	// were, whatever the node does may be right.
	other := egress
	if d == egress {
		other = ingress
	}
	for _, q := range j.policiesIn[j.now.namespace] {
		if !old(j, &q.history) {
			return false
		}
	}
	for _, ns := range j.namespaces {
		if !old(j, &ns.history) {
			return false
		}
	}
	return j.passes(present{}, j.now.node, other, f)
}

// ever returns the first answer other than want that the node gives to f, from
// the moment on and with all that is under way to it, and when.
func (j *judging) ever(node string, f flow.Flow, want flow.Answer) (when string, got flow.Answer) {
	view := realized{j.delays, keyOf(node), j.at}
	moments := []time.Time{j.at}
	for _, addr := range []netip.Addr{f.Src, f.Dst} {
		for _, h := range j.byAddr[addr] {
			moments = coming(view, &h.history, moments)
			for _, q := range j.policiesIn[h.namespace] {
				if now, p := q.latest(), h.latest(); now == nil || p == nil || now.selector.Matches(p.labels) {
					moments = coming(view, &q.history, moments)
				}
			}
			if ns := j.namespaces[h.namespace]; ns != nil {
				moments = coming(view, &ns.history, moments)
			}
		}
	}
	slices.SortFunc(moments, time.Time.Compare)
	for _, m := range moments {
		view.at = m
		if answer := j.verdict(view, node, f).Answer; answer != want {
			if after := m.Sub(j.at); after > 0 {
				when = fmt.Sprintf(" %s later", after.Round(time.Millisecond))
			}
			return when, answer
		}
	}
	return "", want
}

// coming appends the moments after the view's at which the node realizes
// versions that have been since before.
func coming[T any](v realized, h *history[T], out []time.Time) []time.Time {
	for i := range h.versions {
		at, ever := h.realized(i, v.delays.of(v.node, h.key, h.first+uint64(i)))
		if ever && at.After(v.at) {
			out = append(out, at)
		}
	}
	return out
}

func (j *judging) flow(d direction, other netip.Addr, protocol flow.Protocol, port uint16) flow.Flow {
	f := flow.Flow{Protocol: protocol, Src: other, Dst: j.now.ips[0], Port: port}
	if d == egress {
		f.Src, f.Dst = f.Dst, f.Src
	}
	return f
}

func (j *judging) wrong(format string, args ...any) {
	j.Wrong = append(j.Wrong, strings.TrimSpace(j.now.namespace+"/"+j.now.name+": "+fmt.Sprintf(format, args...)))
}

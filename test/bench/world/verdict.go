// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package world

import (
	"net/netip"
	"slices"
	"time"

	"github.com/policygate/policygate/api/flow"
)

// view tells which version of an object counts.
type view interface {
	pod(h *podHistory) *pod
	namespace(h *namespaceHistory) *namespace
	policy(h *policyHistory) *policy
}

// realized is the view of a node's kernel at a moment.
type realized struct {
	delays delays
	node   uint64
	at     time.Time
}

func seen[T any](r realized, h *history[T]) *T {
	for i, v := range slices.Backward(h.versions) {
		done, ever := h.realized(i, r.delays.of(r.node, h.key, h.first+uint64(i)))
		if ever && !done.After(r.at) {
			return v.state
		}
	}
	return nil
}

func (r realized) pod(h *podHistory) *pod                   { return seen(r, &h.history) }
func (r realized) namespace(h *namespaceHistory) *namespace { return seen(r, &h.history) }
func (r realized) policy(h *policyHistory) *policy          { return seen(r, &h.history) }

// present is the view of someone who knows everything.
type present struct{}

func (present) pod(h *podHistory) *pod                   { return h.latest() }
func (present) namespace(h *namespaceHistory) *namespace { return h.latest() }
func (present) policy(h *policyHistory) *policy          { return h.latest() }

// Verdict returns what the node's kernel does with f at a moment, which is not
// long past: Allowed or Denied, by what the node's engine has realized by then.
// What no rule is known for is Allowed, as it is in a kernel: a Pod that the
// engine has not got to is open.
func (w *World) Verdict(node string, f flow.Flow, at time.Time) flow.Verdict {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.verdict(realized{w.delays, keyOf(node), at}, node, f)
}

// Look is a node's kernel at one moment.
type Look struct {
	world *World
	node  string
	view  realized
}

// Look returns the node's kernel at a moment, for several questions.
func (w *World) Look(node string, at time.Time) Look {
	return Look{w, node, realized{w.delays, keyOf(node), at}}
}

// Verdict is World.Verdict.
func (l Look) Verdict(f flow.Flow) flow.Verdict {
	l.world.mu.RLock()
	defer l.world.mu.RUnlock()
	return l.world.verdict(l.view, l.node, f)
}

// Rewrites is World.Rewrites.
func (l Look) Rewrites() uint64 { return l.world.Rewrites(l.node, l.view.at) }

var (
	allowed = flow.Verdict{Answer: flow.Allowed}
	denied  = flow.Verdict{Answer: flow.Denied, Reason: "no rule admits it"}
)

func (w *World) verdict(v view, node string, f flow.Flow) flow.Verdict {
	if !w.passes(v, node, ingress, f) || !w.passes(v, node, egress, f) {
		return denied
	}
	return allowed
}

// passes reports whether the Pod at the end of f that d isolates, if it is on
// node, lets f through.
func (w *World) passes(v view, node string, d direction, f flow.Flow) bool {
	side, other := ends(d, f)
	for _, h := range w.byAddr[side] {
		p := v.pod(h)
		if p == nil || p.node != node || !p.peer() || !p.has(side) {
			continue
		}
		if isolated, admitted := w.judge(v, d, p, other, f); isolated && !admitted {
			return false
		}
	}
	return true
}

// ends returns the end of f that d isolates, and the other.
func ends(d direction, f flow.Flow) (side, other netip.Addr) {
	if d == ingress {
		return f.Dst, f.Src
	}
	return f.Src, f.Dst
}

// judge holds f against the policies that select p in direction d.
func (w *World) judge(v view, d direction, p *pod, other netip.Addr, f flow.Flow) (isolated, admitted bool) {
	for _, h := range w.policiesIn[p.namespace] {
		q := v.policy(h)
		if q == nil || !q.isolates[d] || !q.selector.Matches(p.labels) {
			continue
		}
		isolated = true
		for i := range q.rules[d] {
			if w.ruleAdmits(v, h.namespace, &q.rules[d][i], d, p, other, f) {
				return true, true
			}
		}
	}
	return isolated, false
}

// ruleAdmits reports whether a rule of a policy that selects p admits f, whose
// other end is an address.
func (w *World) ruleAdmits(v view, own string, r *rule, d direction, p *pod, other netip.Addr, f flow.Flow) bool {
	holders := w.byAddr[other]
	if len(holders) == 0 {
		return r.meansPeer(own, other, nil, nil) && r.admits(f, destination(d, p, nil))
	}
	for _, h := range holders {
		var ns *namespace
		o := v.pod(h)
		if o != nil && (!o.peer() || !o.has(other)) {
			o = nil
		}
		if o != nil {
			if n := w.namespaces[o.namespace]; n != nil {
				ns = v.namespace(n)
			}
		}
		if r.meansPeer(own, other, o, ns) && r.admits(f, destination(d, p, o)) {
			return true
		}
	}
	return false
}

func destination(d direction, p, other *pod) *pod {
	if d == ingress {
		return p
	}
	return other
}

func (r *rule) meansPeer(own string, addr netip.Addr, other *pod, ns *namespace) bool {
	if len(r.peers) == 0 {
		return true
	}
	for i := range r.peers {
		if r.peers[i].means(own, addr, other, ns) {
			return true
		}
	}
	return false
}

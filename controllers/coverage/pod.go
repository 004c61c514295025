// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/programmed"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/expect"
)

// pod is what the index keeps of a Pod.
type pod struct {
	*expect.Pod
	// gate is nil for a Pod that is not gated.
	*gate
}

// gate is what the index keeps of a gated Pod beside.
type gate struct {
	generation int64
	settings   v1alpha1.Settings
	annotation string
	open       bool // the condition is True
	// holdStarted is when the hold began to run, zero before.
	holdStarted time.Time
	// since is when the present addresses were first seen.
	since time.Time
	// version is the resourceVersion of the last change to anything that the
	// Pod's assignment is made of.
	version uint64
	// counted is where the Pod is counted as gated, nil if nowhere, and pending
	// whether it is as one that waits.
	counted *expect.LabelSet
	pending bool
}

// newPod returns what the index keeps of p, as the successor of what it has.
func (x *Index) newPod(p *corev1.Pod) *pod {
	x.date(p)
	next := &pod{Pod: expect.NewPod(p)}
	if slices.ContainsFunc(p.Spec.ReadinessGates, func(g corev1.PodReadinessGate) bool {
		return g.ConditionType == x.options.ConditionType
	}) {
		next.gate = newGate(p, x.options.ConditionType)
	}
	before := x.pods[p.UID]
	stays := before != nil && slices.Equal(before.IPs, next.IPs)
	switch {
	case stays:
		next.Seq = before.Seq
	case len(next.IPs) == 0:
	case before == nil || !x.listed:
		// It had its address before anybody looked, nobody knows since when, as
		// what is there at the start, or came while the watch was interrupted:
		// it counts as old as the youngest that is known, and all of its kind
		// wait for each other.
		next.Seq = x.sequence
	default:
		x.sequence++
		next.Seq = x.sequence
		x.arrivals.add(next.Seq, x.options.Clock.Now())
	}
	if before != nil && next.samePeer(before) {
		// One of the two is enough, with all that hangs on it.
		next.Pod = before.Pod
	}
	if next.gate == nil {
		return next
	}
	if stays && before.gate != nil {
		next.since = before.since
	} else if len(next.IPs) > 0 {
		next.since = x.options.Clock.Now()
	}
	if before != nil && next.same(before) {
		next.version = before.version
	}
	return next
}

func newGate(p *corev1.Pod, conditionType corev1.PodConditionType) *gate {
	g := &gate{
		generation: p.Generation,
		annotation: p.Annotations[v1alpha1.KeyProgrammed],
		version:    parseVersion(p.ResourceVersion),
	}
	// The webhook admits no malformed value; what came in without it means the
	// default.
	g.settings, _ = v1alpha1.ParseSettings(p.Annotations)
	for _, c := range p.Status.Conditions {
		if c.Type == conditionType {
			g.open = c.Status == corev1.ConditionTrue
		}
	}
	for _, s := range p.Status.InitContainerStatuses {
		switch {
		case s.Name != v1alpha1.HoldContainerName:
		case s.State.Running != nil:
			g.holdStarted = s.State.Running.StartedAt.Time
		case s.State.Terminated != nil:
			g.holdStarted = s.State.Terminated.StartedAt.Time
		}
	}
	return g
}

// same reports whether nothing differs that p's own assignment is made of.
func (p *pod) same(b *pod) bool {
	if !p.samePeer(b) || (p.gate == nil) != (b.gate == nil) {
		return false
	}
	return p.gate == nil || p.generation == b.generation && p.settings == b.settings &&
		p.annotation == b.annotation && p.open == b.open && p.holdStarted.Equal(b.holdStarted)
}

// samePeer reports whether p and b are the same to others. Ports and hostNetwork
// never change.
func (p *pod) samePeer(b *pod) bool {
	return p.Node == b.Node && p.Finished == b.Finished && p.Terminating == b.Terminating &&
		slices.Equal(p.IPs, b.IPs) && sameLabels(p.Labels, b.Labels)
}

func sameLabels(a, b map[string]string) bool { return maps.Equal(a, b) }

// holds reports whether p is a subject that waits for its gate.
func (x *Index) holds(p *pod) bool {
	return p.gate != nil && p.Peer() && (!p.open || !x.programmed(p))
}

// programmed reports whether the annotation names p, which is gated, as it is
// now. A boot that is not known is not compared: the first Pods may be seen
// before their nodes.
func (x *Index) programmed(p *pod) bool {
	want := programmed.Identity{UID: string(p.UID), IPs: p.IPs}
	if n := x.nodes[p.Node]; n != nil && n.bootID != "" {
		want.BootID = n.bootID
		return want.Matches(p.annotation)
	}
	return want.MatchesAnyBoot(p.annotation)
}

// setPod replaces what is held of next, and marks who is affected.
func (x *Index) setPod(next *pod) {
	before := x.pods[next.UID]
	x.pods[next.UID] = next
	if before == nil || next.Pod != before.Pod {
		if before != nil {
			x.depart(before, next)
		} else if next.Finished {
			x.departed.add(next.Pod, next.IPs, x.options.Clock.Now())
		}
		x.populate(next.UID)
		x.meet(x.cluster.SetPod(next.Pod))
		x.populate(next.UID)
		if before != nil {
			x.touchOwners(before.IPs)
		}
		x.touchOwners(next.IPs)
	}
	x.recount(before, next)
	x.review(next, before == nil || !next.same(before))
}

// deletePod forgets a Pod.
func (x *Index) deletePod(uid types.UID) {
	before := x.pods[uid]
	if before == nil {
		return
	}
	x.depart(before, nil)
	delete(x.pods, uid)
	if key := (types.NamespacedName{Namespace: before.Namespace, Name: before.Name}); x.byName[key] == uid {
		delete(x.byName, key)
	}
	x.release(uid)
	x.populate(uid)
	x.uncount(before)
	x.meet(x.cluster.DeletePod(uid))
	x.touchOwners(before.IPs)
}

// review sorts p into the held subjects or out of them. changed is set if
// anything changed that p's own assignment is made of.
func (x *Index) review(p *pod, changed bool) {
	h, is := x.held[p.UID], x.holds(p)
	switch {
	case is && h == nil:
		h = &held{pod: p}
		x.held[p.UID] = h
		delete(x.released, p.UID)
		x.touch(h)
	case is:
		h.pod = p
		if changed {
			x.touch(h)
		}
	case h != nil:
		x.release(p.UID)
	}
	x.count(p)
}

// release takes a subject out of the held ones; one that is not held is no
// error.
func (x *Index) release(uid types.UID) {
	h := x.held[uid]
	if h == nil {
		return
	}
	x.unlink(h)
	delete(x.held, uid)
	delete(x.affected, h)
	delete(x.succeeding, h)
	x.released[uid] = struct{}{}
	x.signal()
}

// depart notes the addresses that before gives up by becoming next, nil if it
// is gone. What a finished Pod gave up was noted when it finished.
func (x *Index) depart(before, next *pod) {
	if before.HostNetwork || before.Finished {
		return
	}
	gone := before.IPs
	if next != nil && next.Peer() {
		gone = slices.DeleteFunc(slices.Clone(gone), func(ip netip.Addr) bool { return slices.Contains(next.IPs, ip) })
	}
	x.departed.add(before.Pod, gone, x.options.Clock.Now())
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/controllers/expect"
)

// maxMeaning is how many rules may mean a Pod that comes or goes for their
// policies to be marked: a rule that everybody is meant by would be at every
// event, and another Pod more among as many changes nothing of weight.
const maxMeaning = 64

// counts are numbers of gated Pods, and those of them that are held.
type counts struct{ gated, pending int }

// count counts p, which is gated, where it belongs by now.
func (x *Index) count(p *pod) {
	if p.gate == nil {
		return
	}
	set, pending := x.cluster.LabelSetOf(p.UID), x.held[p.UID] != nil
	moved := p.counted != set
	if !moved && p.pending == pending {
		return
	}
	x.uncount(p)
	if p.counted, p.pending = set, pending; set == nil {
		return
	}
	x.counts[set] = x.counts[set].plus(1, pending)
	if !moved {
		x.concern(set, 0)
	}
}

// uncount undoes count.
func (x *Index) uncount(p *pod) {
	if p.gate == nil || p.counted == nil {
		return
	}
	left := x.counts[p.counted].plus(-1, p.pending)
	if left == (counts{}) {
		delete(x.counts, p.counted)
	} else {
		x.counts[p.counted] = left
	}
	p.counted = nil
}

// recount has next, which replaces before, be counted as before was; before may
// be nil.
func (x *Index) recount(before, next *pod) {
	switch {
	case before == nil || before.gate == nil:
	case next.gate == nil:
		x.uncount(before)
	default:
		next.counted, next.pending = before.counted, before.pending
	}
}

func (c counts) plus(more int, pending bool) counts {
	c.gated += more
	if pending {
		c.pending += more
	}
	return c
}

// populate marks the policies for whose numbers it matters that a Pod comes to
// its label set, or leaves it.
func (x *Index) populate(uid types.UID) {
	if set := x.cluster.LabelSetOf(uid); set != nil {
		x.concern(set, maxMeaning)
	}
}

// concern marks the policies that select a label set, and those that mean it if
// no more than most rules do.
func (x *Index) concern(set *expect.LabelSet, most int) {
	if !x.allChanged {
		x.cluster.Concerned(set, most, x.changeNumber)
	}
}

func (x *Index) policyPods(key types.NamespacedName) PolicyPods {
	var out PolicyPods
	for set, pods := range x.cluster.SetsSelected(x.cluster.Policy(key.Namespace, key.Name)) {
		out.Selected += pods
		out.Gated += x.counts[set].gated
		out.Pending += x.counts[set].pending
	}
	return out
}

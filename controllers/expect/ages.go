// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/google/btree"
)

// ages are Pods ordered by age, so many that no slice of them can be shifted
// for each event.
type ages = btree.BTreeG[*Pod]

// treeDegree makes nodes of 31 to 63 pointers: a few cache lines each.
const treeDegree = 32

func newAges() *ages {
	return btree.NewG(treeDegree, func(a, b *Pod) bool { return byAge(a, b) < 0 })
}

// held is an address of a peer.
type held struct {
	addr netip.Addr
	pod  *Pod
}

func byAddress(a, b held) bool {
	if order := a.addr.Compare(b.addr); order != 0 {
		return order < 0
	}
	return byAge(a.pod, b.pod) < 0
}

// walk enumerates the Pods of a tree.
func walk(tree *ages, order Order, after *Pod) iter.Seq[*Pod] {
	return func(yield func(*Pod) bool) {
		visit := func(p *Pod) bool { return after != nil && byAge(p, after) == 0 || yield(p) }
		switch {
		case order == OldestFirst && after == nil:
			tree.Ascend(visit)
		case order == OldestFirst:
			tree.AscendGreaterOrEqual(after, visit)
		case after == nil:
			tree.Descend(visit)
		default:
			tree.DescendLessOrEqual(after, visit)
		}
	}
}

// listed enumerates a slice of which the oldest comes first.
func listed(list []*Pod, order Order, after *Pod) iter.Seq[*Pod] {
	return func(yield func(*Pod) bool) {
		from, step := 0, 1
		if order == NewestFirst {
			from, step = len(list)-1, -1
		}
		if after != nil {
			i, found := slices.BinarySearchFunc(list, after, byAge)
			switch {
			case order == NewestFirst:
				i--
			case found:
				i++
			}
			from = i
		}
		for i := from; 0 <= i && i < len(list); i += step {
			if !yield(list[i]) {
				return
			}
		}
	}
}

// merged enumerates the Pods of several trees, each once.
func merged(trees []*ages, order Order, after *Pod) iter.Seq[*Pod] {
	if len(trees) == 1 {
		return walk(trees[0], order, after)
	}
	return func(yield func(*Pod) bool) {
		cursors := make([]cursor, len(trees))
		for i, tree := range trees {
			cursors[i] = cursor{tree: tree, order: order, after: after}
		}
		for {
			var next *Pod
			for i := range cursors {
				p := cursors[i].head()
				if p != nil && (next == nil || (byAge(p, next) < 0) == (order == OldestFirst)) {
					next = p
				}
			}
			if next == nil || !yield(next) {
				return
			}
			for i := range cursors {
				if p := cursors[i].head(); p != nil && p.UID == next.UID {
					cursors[i].next()
				}
			}
		}
	}
}

// cursorStep is how many Pods a cursor reads at once: finding the place in the
// tree again costs about as much as reading as many.
const cursorStep = 16

// cursor is a place in a tree.
type cursor struct {
	tree   *ages
	order  Order
	after  *Pod
	ahead  []*Pod
	ending bool
}

// head returns the Pod at the cursor, or nil at the end.
func (c *cursor) head() *Pod {
	if len(c.ahead) == 0 && !c.ending {
		c.ending = true
		for p := range walk(c.tree, c.order, c.after) {
			c.ahead = append(c.ahead, p)
			if len(c.ahead) == cursorStep {
				c.ending = false
				break
			}
		}
	}
	if len(c.ahead) == 0 {
		return nil
	}
	return c.ahead[0]
}

func (c *cursor) next() {
	c.after, c.ahead = c.ahead[0], c.ahead[1:]
}

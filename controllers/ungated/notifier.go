// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ungated

import (
	"context"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

const (
	// pass is how often Pods are told, and perPass how many then at most: a
	// third of the Events that the manager may write, as what was missed in a
	// long outage must not keep anybody from hearing of a timeout.
	pass    = 10 * time.Second
	perPass = 3
	// perNamespace is how many are told of one at most, as long as they are
	// there: its people then know, and doctor names the others.
	perNamespace = 10
)

// Teller lets the people of a Pod's namespace know that it has no gate. It must
// not block.
type Teller interface {
	TellUngated(p Pod)
}

// Notifier has the Pods of an Index that were missed told once, the youngest
// first.
type Notifier struct {
	index  *Index
	teller Teller
	clock  clock.WithTicker
	told   map[types.UID]bool
}

// NewNotifier returns a Notifier that tells nothing until Start is called.
func NewNotifier(x *Index, t Teller, clk clock.WithTicker) *Notifier {
	return &Notifier{index: x, teller: t, clock: clk}
}

// NeedLeaderElection reports true: one replica tells.
func (n *Notifier) NeedLeaderElection() bool { return true }

// Start tells until ctx ends; it returns nil then.
func (n *Notifier) Start(ctx context.Context) error {
	ticker := n.clock.NewTicker(pass)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C(): // not at once: a replica takes up all of its tasks as leader in no order
			n.tell()
		}
	}
}

// tell tells the next few, and forgets those that are gone.
func (n *Notifier) tell() {
	var next []Pod
	still, of := make(map[types.UID]bool, len(n.told)), make(map[string]int)
	for _, p := range n.index.All() {
		switch {
		case n.told[p.UID]:
			still[p.UID] = true
			of[p.Namespace]++
		case p.Missed:
			next = append(next, p)
		}
	}
	n.told = still
	slices.SortFunc(next, func(a, b Pod) int { return b.Created.Compare(a.Created) })
	told := 0
	for _, p := range next {
		if told == perPass {
			return
		}
		if of[p.Namespace] == perNamespace {
			continue
		}
		told++
		of[p.Namespace]++
		n.told[p.UID] = true
		n.teller.TellUngated(p)
	}
}

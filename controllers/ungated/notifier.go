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
	// third of the Events that the manager may write, as a namespace with a
	// thousand Pods that is labelled must not keep anybody from hearing of a
	// timeout.
	pass    = 10 * time.Second
	perPass = 3
)

// Teller lets the people of a Pod's namespace know that it has no gate. It must
// not block.
type Teller interface {
	TellUngated(p Pod)
}

// Notifier has each Pod of an Index told once, the youngest first: what was
// created while no webhook answered is news, what is older than its namespace's
// label mostly is not.
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
	still := make(map[types.UID]bool, len(n.told))
	for _, p := range n.index.All() {
		if n.told[p.UID] {
			still[p.UID] = true
		} else {
			next = append(next, p)
		}
	}
	n.told = still
	slices.SortFunc(next, func(a, b Pod) int { return b.Created.Compare(a.Created) })
	for _, p := range next[:min(len(next), perPass)] {
		n.told[p.UID] = true
		n.teller.TellUngated(p)
	}
}

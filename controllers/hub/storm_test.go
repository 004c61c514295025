// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
)

// gauged answers TokenReviews as reviews does, and counts those in flight. It
// holds the first back until as many are in flight as may be.
type gauged struct {
	reviews
	flying, most atomic.Int64
	full         chan struct{}
	fill         sync.Once
}

func (g *gauged) Create(ctx context.Context, review *authenticationv1.TokenReview, o metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	flying := g.flying.Add(1)
	defer g.flying.Add(-1)
	for most := g.most.Load(); flying > most && !g.most.CompareAndSwap(most, flying); most = g.most.Load() {
	}
	if flying >= maxReviews {
		g.fill.Do(func() { close(g.full) })
	}
	select {
	case <-g.full:
	case <-ctx.Done():
	}
	return g.reviews.Create(ctx, review, o)
}

func TestAStormOfAgentsIsTakenInBoundedSteps(t *testing.T) {
	const agents = 300
	r := &gauged{full: make(chan struct{})}
	f := serve(t, clock.RealClock{}, r)
	shared := describe(t, "of all")
	for i := range agents {
		f.Assign(fmt.Sprint("n", i), assign("a", 1), shared)
	}
	// None keeps to the spread, as agents would whose replicas have all gone
	// before they said one.
	storm := func() {
		var dialling sync.WaitGroup
		for i := range agents {
			dialling.Go(func() {
				a := f.connect(t, fmt.Sprint("token-of-n", i))
				agent := newMirror(t)
				for {
					m, err := a.stream.Recv()
					if err != nil {
						t.Errorf("agent %d: %v", i, err)
						return
					}
					agent.receive(m)
					if s := m.GetSynced(); s != nil {
						if s.GetSpreadMillis() != spreadMillis(agents) || agent.assigned["a"] != 1 {
							t.Errorf("agent %d is synced with %d assignments within %d ms", i, agent.assigned["a"], s.GetSpreadMillis())
						}
						return
					}
				}
			})
		}
		dialling.Wait()
	}
	storm()
	// All at once again, in place of the sessions before.
	storm()
	if most := r.most.Load(); most != maxReviews {
		t.Errorf("%d reviews were in flight at once, want %d", most, maxReviews)
	}
	connected, disconnected := f.sink.count()
	if connected != 2*agents || disconnected != agents {
		t.Errorf("connected %d times, disconnected %d: want %d and %d", connected, disconnected, 2*agents, agents)
	}
}

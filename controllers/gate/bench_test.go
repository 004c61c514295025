// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/hub"
)

// quietHub counts releases and keeps the latest generations.
type quietHub struct {
	releases int
	last     map[string]uint64
	// released, if not nil, is called for each release.
	released func()
}

func (h *quietHub) Assign(node string, a *hubv1.Assign, _ hub.Description) {
	h.last[node+"/"+a.GetSubject().GetUid()] = a.GetGeneration()
}
func (h *quietHub) Withdraw(string, string) {}

func (h *quietHub) Release(string, *hubv1.Release) bool {
	h.releases++
	if h.released != nil {
		h.released()
	}
	return true
}

// crowded is a bench in which so many Pods wait for nodes that say nothing,
// each of 32, and p for n7 alone.
func crowded(b *testing.B, shut int) (*bench, *quietHub) {
	b.Helper()
	bench := newBench(b)
	h := &quietHub{last: bench.hub.last}
	bench.ledger.SetHub(h)
	bench.demand("10.0.0.1", 5, 80, "n1", "n7")
	bench.clock.SetTime(time.Now()) // the real clock may take over
	bench.ledger.PodChanged(bench.pod(func(p *corev1.Pod) { p.Annotations[v1alpha1.KeyTimeout] = "10m" }, "10.0.0.1"))
	bench.step()
	bench.barrier.pass("p")
	bench.report("n1", true)
	bench.settled()
	for i := range shut {
		ip := fmt.Sprintf("10.%d.%d.1", 1+i/250, i%250)
		perNode := map[string][]expect.Expectation{}
		for n := range 32 {
			perNode[fmt.Sprintf("c%d", (i+n)%1000)] = []expect.Expectation{allow(shopAllow, ip, 80)}
		}
		bench.start(fmt.Sprintf("crowd-%d", i), "crowd", ip, perNode)
	}
	bench.settled()
	return bench, h
}

// BenchmarkReportToRelease takes the report that opens a gate, and one that
// takes it back, while others wait.
func BenchmarkReportToRelease(b *testing.B) {
	for _, shut := range []int{300, 3000} {
		b.Run(fmt.Sprintf("%d shut", shut), func(b *testing.B) {
			bench, h := crowded(b, shut)
			computed := bench.coverage.computed
			h.releases = 0
			b.ReportAllocs()
			for b.Loop() {
				bench.report("n7", true)
				bench.step()
				bench.report("n7", false)
				bench.step()
			}
			if h.releases != b.N {
				b.Errorf("%d releases of %d reports", h.releases, b.N)
			}
			b.ReportMetric(float64(bench.coverage.computed-computed)/float64(b.N), "computed/op")
		})
	}
}

// BenchmarkReleaseInABurst is what a report takes to open a gate while so many
// others are to be computed, of which each takes 100 us.
func BenchmarkReleaseInABurst(b *testing.B) {
	for _, burst := range []int{0, 1000, 10000} {
		b.Run(fmt.Sprintf("%d stale", burst), func(b *testing.B) {
			bench, h := crowded(b, 0)
			all := make([]types.UID, burst)
			for i := range all {
				uid := fmt.Sprintf("crowd-%d", i)
				all[i] = types.UID(uid)
				bench.demandFor(uid, "crowd", "10.1.1.1", 5, map[string][]expect.Expectation{"n1": nil})
				bench.ledger.PodChanged(bench.named(uid, "crowd", "10.1.1.1"))
			}
			bench.settled()
			var computed atomic.Int64
			bench.coverage.compute = func(types.UID) {
				for began := time.Now(); time.Since(began) < 100*time.Microsecond; {
				}
				computed.Add(1)
			}
			released := make(chan struct{})
			h.released = func() { released <- struct{}{} }
			bench.ledger.clock = clock.RealClock{}
			ctx, cancel := context.WithCancel(b.Context())
			ended := make(chan error)
			go func() { ended <- bench.ledger.Start(ctx) }()
			var total, longest time.Duration
			for b.Loop() {
				begun := make(chan int64)
				bench.ledger.inbox.Post(func() {
					bench.coverage.affected = all
					for _, uid := range all {
						delete(bench.coverage.last, uid)
					}
					begun <- computed.Load()
				})
				for before := <-begun; burst > 0 && computed.Load() == before; {
					runtime.Gosched()
				}
				began := time.Now()
				bench.report("n7", true)
				<-released
				took := time.Since(began)
				total, longest = total+took, max(longest, took)
				bench.report("n7", false)
			}
			cancel()
			if err := <-ended; err != nil {
				b.Error(err)
			}
			b.ReportMetric(float64(total.Microseconds())/float64(b.N), "us-to-release")
			b.ReportMetric(float64(longest.Microseconds()), "us-longest")
		})
	}
}

// BenchmarkQuarantine looks at the nodes while others wait.
func BenchmarkQuarantine(b *testing.B) {
	for _, shut := range []int{300, 3000} {
		b.Run(fmt.Sprintf("%d shut", shut), func(b *testing.B) {
			bench, _ := crowded(b, shut)
			for b.Loop() {
				bench.ledger.quarantine(bench.clock.Now())
			}
		})
	}
}

// BenchmarkMessage writes one message while others wait for their turn.
func BenchmarkMessage(b *testing.B) {
	for _, waiting := range []int{300, 3000} {
		b.Run(fmt.Sprintf("%d wait", waiting), func(b *testing.B) {
			m, clk := newMessages(&fakePatcher{})
			for i := range waiting {
				m.Tell(message(fmt.Sprint(i), "waiting"))
			}
			b.ReportAllocs()
			for b.Loop() {
				clk.SetTime(clk.Now().Add(messageInterval))
				msg, _ := m.next(clk.Now())
				m.Tell(*msg)
			}
		})
	}
}

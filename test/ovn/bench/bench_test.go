// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/policygate/policygate/agent/ovn"
	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/test/ovn/fixture"
)

const (
	// dialEvery is the time between two SYNs of one change, and silence how long
	// none of them is waited for: a hundred times what an answer takes.
	dialEvery = 5 * time.Millisecond
	silence   = 200 * time.Millisecond
	// lookEvery is the time between an agent's looks while nothing is noticed,
	// and debounce how long one waits for others, as in package confirm.
	lookEvery = 50 * time.Millisecond
	debounce  = 10 * time.Millisecond
	// patience is for a machine that does much else.
	patience = 30 * time.Second
)

// tcp is a connection between Pods as an agent is asked about it.
func tcp(from, to netip.Addr, port uint16) ovn.Question {
	return ovn.Question{Flow: flow.Flow{Protocol: flow.TCP, Src: from, Dst: to, Port: port}}
}

// BenchmarkGateLag measures how long after the commit of a change of an address
// set the first packet meets it, and how long after it a node's agent says so.
// Each round admits the client and takes that back.
func BenchmarkGateLag(b *testing.B) {
	for _, s := range sizes() {
		b.Run(s.String(), func(b *testing.B) {
			w := newWorld(b, s)
			w.measureAnswer(flow.Denied) // what the agent learns once
			var packets, traced, answers, waits, beyond []time.Duration
			for i := 0; b.Loop(); i++ {
				want := flow.Allowed
				if i%2 == 1 {
					want = flow.Denied
				}
				_, before := w.agent.spent()
				w.admit(want == flow.Allowed)
				committed := time.Now()
				var packet time.Time
				var packeted sync.WaitGroup
				packeted.Go(func() { packet = w.flip(want) })
				answer := w.measureAnswer(want)
				packeted.Wait()
				_, after := w.agent.spent()
				packets, answers = append(packets, packet.Sub(committed)), append(answers, answer.conclusive.Sub(committed))
				traced, waits = append(traced, answer.right.Sub(committed)), append(waits, after-before)
				beyond = append(beyond, answer.conclusive.Sub(packet)-(after-before))
				if err := w.Node("n1").FlushConntrack(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			for name, times := range map[string][]time.Duration{
				"packet": packets, "traced": traced, "answer": answers, "revalidators": waits, "beyond-packet-and-revalidators": beyond,
			} {
				b.ReportMetric(percentile(times, 0.5), name+"-p50-ms")
				b.ReportMetric(percentile(times, 0.95), name+"-p95-ms")
			}
			b.ReportMetric(percentile(answers, 0.5)/percentile(packets, 0.5), "answer/packet")
			b.ReportMetric(percentile(traced, 0.5)/percentile(packets, 0.5), "traced/packet")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// flip sends SYNs until the outcome is the one that is wanted, and returns when
// the first of which that is true was sent.
func (w *world) flip(want flow.Answer) time.Time {
	outcome := fixture.Silent
	if want == flow.Allowed {
		outcome = fixture.Open
	}
	var mu sync.Mutex
	var first time.Time
	var dials sync.WaitGroup
	ended := make(chan struct{})
	to := netip.AddrPortFrom(w.server.IP(), servedPort)
	ticker := time.NewTicker(dialEvery)
	defer ticker.Stop()
	for began := time.Now(); time.Since(began) < patience; <-ticker.C {
		dials.Go(func() {
			sent := time.Now()
			got, err := w.client.DialAddr(to, silence)
			if err != nil {
				w.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if got == outcome && (first.IsZero() || sent.Before(first)) {
				if first.IsZero() {
					close(ended)
				}
				first = sent
			}
		})
		select {
		case <-ended:
			dials.Wait()
			return first
		default:
		}
	}
	dials.Wait()
	w.Errorf("packets of the client are not %s within %v", outcome, patience)
	return time.Now()
}

// answered is when an agent's answer was right although it counted for nothing
// yet, and when it counted.
type answered struct{ right, conclusive time.Time }

// measureAnswer looks as an agent does that has something to answer, the first
// time at any moment: what it waits for is no time of its own.
func (w *world) measureAnswer(want flow.Answer) answered {
	w.Helper()
	question := []ovn.Question{tcp(w.client.IP(), w.server.IP(), servedPort)}
	var a answered
	time.Sleep(rand.N(lookEvery))
	for began := time.Now(); time.Since(began) < patience; {
		got := w.look(question)[0].Verdict
		now := time.Now()
		if a.right.IsZero() && got.Answer != opposite(want) {
			// It is held back only until the flow cache has been gone through.
			a.right = now
		}
		if got.Answer == want {
			a.conclusive = now
			return a
		}
		select {
		case <-w.agent.noticed:
			time.Sleep(debounce)
		case <-time.After(lookEvery):
		}
	}
	w.Fatalf("the agent does not say %v within %v", want, patience)
	return a
}

func opposite(a flow.Answer) flow.Answer {
	if a == flow.Allowed {
		return flow.Denied
	}
	return flow.Allowed
}

// look asks all questions at once.
func (w *world) look(questions []ovn.Question) []ovn.Answer {
	w.Helper()
	look, err := w.agent.Look(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	answers, err := look.Together(w.Context(), questions)
	if err != nil {
		w.Fatal(err)
	}
	return answers
}

// BenchmarkTracesPerPod counts the traces until all is confirmed of a Pod of
// which three things are asked: its peer is admitted, by no other port, and a
// stranger is not.
func BenchmarkTracesPerPod(b *testing.B) {
	for _, s := range sizes() {
		b.Run(s.String(), func(b *testing.B) {
			w := newWorld(b, s)
			w.admit(true)
			w.awaitAcknowledged()
			before, _ := w.agent.spent()
			rounds := 0
			for b.Loop() {
				// Each time another stranger, so that nothing is remembered.
				rounds++
				stranger := netip.AddrFrom4([4]byte{192, 0, 2, byte(rounds)})
				questions := []ovn.Question{
					tcp(w.client.IP(), w.server.IP(), servedPort),
					tcp(w.client.IP(), w.server.IP(), 1024+uint16(rounds)),
					tcp(stranger, w.server.IP(), servedPort),
				}
				for !settled(w.look(questions)) {
					<-w.agent.noticed
				}
			}
			after, _ := w.agent.spent()
			b.ReportMetric(float64(after-before)/float64(rounds), "traces/Pod")
		})
	}
}

func settled(answers []ovn.Answer) bool {
	return answers[0].Verdict.Answer == flow.Allowed && answers[1].Verdict.Answer == flow.Denied && answers[2].Verdict.Answer == flow.Denied
}

// BenchmarkInstallation measures what it takes until all nodes have installed a
// change of an address set, with and without an agent on the server's node that
// traces as much as it may.
func BenchmarkInstallation(b *testing.B) {
	for _, s := range sizes() {
		b.Run(s.String(), func(b *testing.B) {
			w := newWorld(b, s)
			var questions []ovn.Question
			for i := range 250 {
				questions = append(questions, tcp(w.client.IP(), w.server.IP(), 1024+uint16(i)))
			}
			var idle, loaded []time.Duration
			install := func(admitted bool) time.Duration {
				w.admit(admitted)
				return w.awaitAcknowledged()
			}
			for i := 0; b.Loop(); i++ {
				idle = append(idle, install(true), install(false))
				ctx, cancel := context.WithCancel(b.Context())
				var tracing sync.WaitGroup
				tracing.Go(func() {
					for ctx.Err() == nil {
						if look, err := w.agent.Look(ctx); err == nil {
							_, _ = look.Together(ctx, questions) // it ends with ctx
						}
					}
				})
				loaded = append(loaded, install(true), install(false))
				cancel()
				tracing.Wait()
			}
			b.ReportMetric(percentile(idle, 0.5), "without-p50-ms")
			b.ReportMetric(percentile(loaded, 0.5), "with-p50-ms")
			b.ReportMetric(percentile(loaded, 0.5)/percentile(idle, 0.5), "with/without")
			b.ReportMetric(0, "ns/op")
		})
	}
}

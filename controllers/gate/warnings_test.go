// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/hub"
)

// fakeRecorder remembers what it is told.
type fakeRecorder []string

func (r *fakeRecorder) Warn(w Warning) {
	*r = append(*r, fmt.Sprintf("%s %s/%s %s: %s", w.Object.Kind, w.Object.Namespace, w.Object.Name, w.Reason, w.Note))
}

// leading returns the Warnings of an elected replica.
func leading() (*Warnings, *clocktesting.FakeClock) {
	clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
	w := NewWarnings(&fakeRecorder{}, clk)
	w.lead(true)
	return w, clk
}

// drain writes what may be written now, and returns what was written.
func (w *Warnings) drain() []string {
	for {
		next, _ := w.next(w.clock.Now())
		if next == nil {
			break
		}
		w.recorder.Warn(*next)
	}
	r, _ := w.recorder.(*fakeRecorder)
	out := *r
	*r = nil
	return out
}

func warningOf(namespace, name string) Warning {
	return Warning{Object: podReference(types.UID(name), namespace, name), Reason: v1alpha1.ReasonTimeout, Note: "late"}
}

func TestAnObjectIsWarnedAboutOnce(t *testing.T) {
	node := nodeReference("n1")
	warn := func(w *Warnings, note string) { w.Warn(Warning{Object: node, Reason: ReasonStalled, Note: note}) }
	const told = "Node /n1 Stalled: one"
	cases := map[string]struct {
		then func(w *Warnings, clk *clocktesting.FakeClock)
		want []string
	}{
		"while the same is true": {func(w *Warnings, clk *clocktesting.FakeClock) {
			clk.Step(24 * time.Hour)
			warn(w, "one")
		}, nil},
		"while it flaps": {func(w *Warnings, _ *clocktesting.FakeClock) {
			w.Over(node, ReasonStalled)
			warn(w, "one")
		}, nil},
		"and again when it has changed, after a while": {func(w *Warnings, clk *clocktesting.FakeClock) {
			w.Over(node, ReasonStalled)
			clk.Step(warningInterval)
			warn(w, "one")
		}, []string{told}},
		"and again in other words, after a while": {func(w *Warnings, clk *clocktesting.FakeClock) {
			warn(w, "two")
			clk.Step(warningInterval)
			warn(w, "two")
		}, []string{"Node /n1 Stalled: two"}},
		"for each reason": {func(w *Warnings, _ *clocktesting.FakeClock) {
			w.Warn(Warning{Object: node, Reason: ReasonUnsupported, Note: "one"})
		}, []string{"Node /n1 UnsupportedDataplane: one"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w, clk := leading()
			warn(w, "one")
			if diff := cmp.Diff([]string{told}, w.drain()); diff != "" {
				t.Fatalf("first (-want +got):\n%s", diff)
			}
			tc.then(w, clk)
			if diff := cmp.Diff(tc.want, w.drain(), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("then (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWarningsInAllAreLimitedAndNamespacesTakeTurns(t *testing.T) {
	w, clk := leading()
	for i := range 10 * maxQueued {
		w.Warn(warningOf("crowd", fmt.Sprint("p", i)))
	}
	w.Warn(warningOf("shop", "p"))
	first := w.drain()
	if len(first) != warningsBurst || first[1] != "Pod shop/p Timeout: late" {
		t.Errorf("%d at once, the second is %q; want %d, shop's the second", len(first), first[1], warningsBurst)
	}
	written := len(first)
	for range 10 * maxQueued {
		clk.Step(time.Second)
		next := len(w.drain())
		if next > warningsPerSecond {
			t.Fatalf("%d within a second, want at most %d", next, warningsPerSecond)
		}
		written += next
	}
	if written != maxQueued+1 {
		t.Errorf("%d were written, want those %d of one namespace that may wait, and the other's", written, maxQueued)
	}
	if len(w.waiting) > 0 {
		t.Errorf("%v wait though nothing is queued", w.waiting)
	}
}

func TestAReplicaThatDoesNotLeadWarnsOfNothing(t *testing.T) {
	w, _ := leading()
	w.lead(false)
	w.Warn(warningOf("shop", "p"))
	w.lead(true)
	if got := w.drain(); len(got) > 0 {
		t.Errorf("wrote %q, which was another's to write", got)
	}
	w.Warn(warningOf("shop", "p"))
	if got := w.drain(); len(got) != 1 {
		t.Errorf("wrote %q, want the one since it leads", got)
	}
	var none *Warnings
	none.Warn(warningOf("shop", "p"))
	none.Over(nodeReference("n1"), ReasonStalled)
}

func TestWhatIsRememberedOfWarningsIsBounded(t *testing.T) {
	w, _ := leading()
	for i := range 2 * maxWarned {
		w.Warn(warningOf(fmt.Sprint("ns", i), "p"))
	}
	if len(w.warned) > maxWarned {
		t.Errorf("%d are remembered, want at most %d", len(w.warned), maxWarned)
	}
}

type recorderFunc func(Warning)

func (f recorderFunc) Warn(w Warning) { f(w) }

func TestWarningsAreWrittenWhileStartRuns(t *testing.T) {
	written := make(chan Warning, 1)
	w := NewWarnings(recorderFunc(func(w Warning) { written <- w }), clocktesting.NewFakeClock(time.Unix(1000, 0)))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Start(ctx) }()
	for {
		w.Warn(warningOf("shop", "p"))
		select {
		case got := <-written:
			if got.Object.Name != "p" {
				t.Errorf("wrote %v, want that of p", got)
			}
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Start: %v, want nil when its context ends", err)
			}
			return
		case <-time.After(10 * time.Millisecond): // it did not lead yet
		}
	}
}

// newWarningBench returns a bench whose ledger warns.
func newWarningBench(t *testing.T) (*bench, *Warnings) {
	t.Helper()
	b := newBench(t)
	w := NewWarnings(&fakeRecorder{}, b.clock)
	w.lead(true)
	b.ledger.warnings = w
	return b, w
}

func TestANodeThatCannotBeSeenIsWarnedAboutOncePerChange(t *testing.T) {
	b, w := newWarningBench(t)
	w.lead(false)
	const xdp = "Node /n7 UnsupportedDataplane: the agent cannot see into this node's dataplane, so nothing is confirmed here: XDP"
	want := func(want ...string) {
		t.Helper()
		b.settled()
		if diff := cmp.Diff(want, w.drain(), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("warned (-want +got):\n%s", diff)
		}
	}
	b.ledger.Connected("n7", hub.Hello{State: hub.State{Unsupported: "XDP"}})
	want()
	w.lead(true)
	b.clock.Step(inspectInterval)
	want(xdp)
	b.ledger.Disconnected("n7")
	b.ledger.Connected("n7", hub.Hello{State: hub.State{Unsupported: "XDP"}})
	b.clock.Step(time.Hour)
	want()
	b.ledger.Changed("n7", hub.State{})
	b.clock.Step(time.Hour)
	want()
	b.ledger.Changed("n7", hub.State{Unsupported: "XDP"})
	want(xdp)
}

func TestANodeThatStallsIsWarnedAbout(t *testing.T) {
	b, w := newWarningBench(t)
	b.waiting()
	stall := func() {
		for range DefaultStalledAfter/inspectInterval + 1 {
			b.clock.Step(inspectInterval)
			b.settled()
		}
	}
	stall()
	got := w.drain()
	if len(got) != 2 || !strings.HasPrefix(got[0], "Node /n") || !strings.Contains(got[0], " Stalled: nothing was confirmed here for 2m0s") {
		t.Fatalf("warned %q, want one for each node", got)
	}
	stall()
	if got := w.drain(); len(got) > 0 {
		t.Errorf("warned %q of what was told", got)
	}
}

func TestATimeoutIsWarnedAboutWhenItsConditionIsWritten(t *testing.T) {
	cases := map[string]struct {
		reason  string
		current string
		want    []string
	}{
		"a timeout is":                         {v1alpha1.ReasonTimeout, v1alpha1.ReasonWaiting, []string{"Pod shop/p Timeout: late"}},
		"one that the Pod said already is not": {v1alpha1.ReasonTimeout, v1alpha1.ReasonTimeout, nil},
		"a Pod that waits is not":              {v1alpha1.ReasonWaiting, "", nil},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			m, clk := newMessages(&fakePatcher{})
			m.warnings, _ = leading()
			msg := message("p", "late")
			msg.Reason, msg.Current = tc.reason, corev1.PodCondition{Status: corev1.ConditionFalse, Reason: tc.current}
			m.Tell(msg)
			turn(m, clk)
			if diff := cmp.Diff(tc.want, m.warnings.drain(), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("warned (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAGateThatOpensWithoutSomeNodesIsWarnedAbout(t *testing.T) {
	for reason, want := range map[string]int{v1alpha1.ReasonPartiallyConfirmed: 1, v1alpha1.ReasonConfirmed: 0} {
		t.Run(reason, func(t *testing.T) {
			b, w := newWarningBench(t)
			b.waiting()
			show := func() {
				b.ledger.PodChanged(b.pod(func(p *corev1.Pod) {
					opened("10.0.0.1", "boot-1")(p)
					p.Status.Conditions[0].Reason = reason
					p.Status.Conditions[0].Message = strings.Repeat("x", 2*maxMessage)
				}, "10.0.0.1"))
				b.settled()
			}
			show()
			got := w.drain()
			if len(got) != want {
				t.Fatalf("warned %q, want %d", got, want)
			}
			if want == 1 && len(got[0]) != len("Pod shop/job PartiallyConfirmed: ")+maxMessage {
				t.Errorf("it has %d bytes", len(got[0]))
			}
			show()
			if got := w.drain(); len(got) > 0 {
				t.Errorf("warned %q again", got)
			}
		})
	}
}

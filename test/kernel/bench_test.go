// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/api/flow"
)

// cost is that of one operation, on the average of several in a row.
type cost struct {
	wall, cpu     time.Duration
	bytes, allocs uint64
}

// spent is the CPU time of this process and of the children that it waited for.
func spent() (time.Duration, error) {
	var all time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			return 0, fmt.Errorf("getrusage: %w", err)
		}
		all += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return all, nil
}

// work is what is measured: rounds of several operations each, and what comes
// before a round at nobody's cost, or nil.
type work struct {
	rounds, perRound int
	before           func(round int) error
	operation        func() error
}

// run returns what an operation costs: the median round's wall time, which a
// disturbance from outside does not move, and the mean of everything else.
func (w work) run() (cost, error) {
	walls := make([]time.Duration, 0, w.rounds)
	var sum cost
	runtime.GC()
	for round := range w.rounds {
		if w.before != nil {
			if err := w.before(round); err != nil {
				return cost{}, err
			}
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		cpu, err := spent()
		if err != nil {
			return cost{}, err
		}
		began := time.Now()
		for range w.perRound {
			if err := w.operation(); err != nil {
				return cost{}, err
			}
		}
		walls = append(walls, time.Since(began))
		until, err := spent()
		if err != nil {
			return cost{}, err
		}
		runtime.ReadMemStats(&after)
		sum.cpu += until - cpu
		sum.bytes += after.TotalAlloc - before.TotalAlloc
		sum.allocs += after.Mallocs - before.Mallocs
	}
	slices.Sort(walls)
	n := uint64(w.rounds) * uint64(w.perRound)
	return cost{
		wall: walls[len(walls)/2] / time.Duration(w.perRound), cpu: sum.cpu / time.Duration(n),
		bytes: sum.bytes / n, allocs: sum.allocs / n,
	}, nil
}

func (c cost) report(b *testing.B) {
	b.ReportMetric(float64(c.wall.Nanoseconds()), "ns/op")
	b.ReportMetric(float64(c.cpu.Nanoseconds())/1e3, "cpu-us/op")
	b.ReportMetric(float64(c.bytes), "B/op")
	b.ReportMetric(float64(c.allocs), "allocs/op")
}

// BenchmarkVerdicts answers for flows over kube-router's rules in a real
// kernel: from nothing (cold), and again after nothing, one set or everything
// changed. Each is measured beside the text way to the same answers, in the
// same run: text/native-wall and text/native-cpu say how many times more that
// costs. It remembers nothing, so it is the same whatever has changed.
//
// An iteration is a whole measurement and ns/op the median of its rounds.
func BenchmarkVerdicts(b *testing.B) {
	for _, variant := range []string{"legacy", "iptables-nft", "nftables"} {
		for _, scale := range []int{1, 10} {
			b.Run(fmt.Sprintf("%s/%dx", variant, scale), func(b *testing.B) {
				l := newLarge(b, variant, scale)
				v := &verdictBench{large: l, rig: l.load(b)}
				v.run(b)
			})
		}
	}
}

// verdictBench is a large ruleset that is loaded.
type verdictBench struct {
	*large

	rig *rig
}

func (v *verdictBench) run(b *testing.B) {
	for _, q := range []*question{
		{name: "20", flows: v.flows(20, false)},
		{name: "20-of-one-pod", flows: v.flows(20, true)},
		{name: "1000", flows: v.flows(1000, false)},
	} {
		if q.name == "20-of-one-pod" && v.scale > 1 {
			continue
		}
		b.Run("text/"+q.name, func(b *testing.B) { v.text(b, q, q, false) })
		b.Run("cold/"+q.name, func(b *testing.B) { v.native(b, q, v.cold) })
		b.Run("warm/"+q.name, func(b *testing.B) { v.native(b, q, v.warm) })
		if q.name != "20" {
			continue
		}
		if v.ipsets != "" {
			b.Run("text-ipset-test/"+q.name, func(b *testing.B) { v.text(b, q, &question{}, true) })
		}
		b.Run("one-set-changed/"+q.name, func(b *testing.B) { v.native(b, q, v.oneSetChanged) })
		b.Run("rebuilt/"+q.name, func(b *testing.B) { v.native(b, q, v.rebuilt) })
	}
}

// question is what is asked, and what the text way answered at which cost.
type question struct {
	name  string
	flows []flow.Flow

	text     cost
	verdicts []flow.Verdict
	// asked are the elements of sets that the answers need.
	asked map[setElement]bool
}

// text measures the text way to q's answers into out.
func (v *verdictBench) text(b *testing.B, q, out *question, test bool) {
	v.rig.node.do(b, func() error {
		for b.Loop() {
			if err := v.measureText(b.Context(), q, out, test); err != nil {
				return err
			}
		}
		return nil
	})
	out.text.report(b)
}

func (v *verdictBench) measureText(ctx context.Context, q, out *question, test bool) (err error) {
	out.asked = map[setElement]bool{}
	out.text, err = work{rounds: v.rounds(3), perRound: 1, operation: func() (err error) {
		out.verdicts, err = v.textVerdicts(ctx, q.flows, test, out.asked)
		return err
	}}.run()
	return err
}

// rounds returns how often to measure what n rounds are for at a scale of one.
func (v *verdictBench) rounds(n int) int { return max(n/v.scale, min(n, 2)) }

// way returns the work that answers q, with its answers in got, natively.
type way func(ctx context.Context, q *question, nf *kernel.Netfilter, got *[]flow.Verdict) work

// native measures a native way and holds it against the text way.
func (v *verdictBench) native(b *testing.B, q *question, way way) {
	var c cost
	v.rig.node.do(b, func() error {
		if q.verdicts == nil {
			if err := v.measureText(b.Context(), q, q, false); err != nil {
				return err
			}
		}
		nf, err := kernel.New(kernel.Options{})
		if err != nil {
			return err
		}
		defer func() { _ = nf.Close() }()
		for b.Loop() {
			var got []flow.Verdict
			if c, err = way(b.Context(), q, nf, &got).run(); err != nil {
				return err
			}
			if err := differ(q.flows, got, q.verdicts); err != nil {
				return err
			}
		}
		return nil
	})
	c.report(b)
	b.ReportMetric(float64(q.text.wall)/float64(c.wall), "text/native-wall")
	b.ReportMetric(float64(q.text.cpu)/float64(c.cpu), "text/native-cpu")
	b.ReportMetric(float64(len(q.asked)), "elements")
	b.ReportMetric(float64(c.wall.Nanoseconds())/1e3/float64(len(q.asked)), "us/element")
}

// answer asks all of q's flows on one look.
func answer(ctx context.Context, nf *kernel.Netfilter, q *question) ([]flow.Verdict, error) {
	look, err := nf.Look(ctx)
	if err != nil {
		return nil, err
	}
	questions := make([]kernel.Question, 0, len(q.flows))
	for _, f := range q.flows {
		questions = append(questions, kernel.Question{Flow: f})
	}
	answers, err := look.Together(ctx, questions)
	if err != nil {
		return nil, err
	}
	verdicts := make([]flow.Verdict, 0, len(answers))
	for _, a := range answers {
		verdicts = append(verdicts, a.Verdict)
	}
	return verdicts, nil
}

// cold opens the kernel anew for each operation.
func (v *verdictBench) cold(ctx context.Context, q *question, _ *kernel.Netfilter, got *[]flow.Verdict) work {
	return work{rounds: v.rounds(20), perRound: 1, operation: func() error {
		nf, err := kernel.New(kernel.Options{})
		if err != nil {
			return err
		}
		defer func() { _ = nf.Close() }()
		*got, err = answer(ctx, nf, q)
		return err
	}}
}

// warm asks again what was asked before, while nothing changes.
func (v *verdictBench) warm(ctx context.Context, q *question, nf *kernel.Netfilter, got *[]flow.Verdict) work {
	again := func() (err error) {
		*got, err = answer(ctx, nf, q)
		return err
	}
	asked := false
	return work{rounds: v.rounds(40), perRound: 10, operation: again, before: func(int) error {
		if asked {
			return nil
		}
		asked = true
		return again()
	}}
}

// oneSetChanged asks again after an element that matters to nobody came into
// or left a set that the answers depend on.
func (v *verdictBench) oneSetChanged(ctx context.Context, q *question, nf *kernel.Netfilter, got *[]flow.Verdict) work {
	again := v.warm(ctx, q, nf, got)
	verbs := [][]string{{"ipset", "add"}, {"ipset", "del"}}
	if v.ipsets == "" {
		verbs = [][]string{{"nft", "add", "element", "ip", nativeTable}, {"nft", "delete", "element", "ip", nativeTable}}
	}
	// Those of pods, which are sets of addresses, have more than two elements.
	name := ""
	for e := range q.asked {
		if strings.HasPrefix(e.set, "KUBE-DST-") && (name == "" || e.set < name) {
			name = e.set
		}
	}
	again.rounds, again.perRound, again.before = v.rounds(20), 1, func(round int) error {
		if round == 0 {
			if err := again.operation(); err != nil {
				return err
			}
		}
		args := append(slices.Clone(verbs[round%2]), name)
		if v.ipsets == "" {
			args = append(args, "{", "192.0.2.1", "}")
		} else {
			args = append(args, "192.0.2.1")
		}
		return run(ctx, "", args...)
	}
	return again
}

// nativeTable is that of kube-router's native rules.
const nativeTable = "kube-router-filter-ipv4"

// rebuilt asks again after all rules were loaded anew, as an engine does when
// it starts.
func (v *verdictBench) rebuilt(ctx context.Context, q *question, nf *kernel.Netfilter, got *[]flow.Verdict) work {
	again := v.warm(ctx, q, nf, got)
	again.rounds, again.perRound = v.rounds(4), 1
	again.before = func(round int) error {
		if round == 0 {
			if err := again.operation(); err != nil {
				return err
			}
		}
		return run(ctx, v.rules, v.loader...)
	}
	return again
}

// run runs a program in the caller's namespace with the given input.
func run(ctx context.Context, input string, command ...string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, out)
	}
	return nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

const (
	// around is how long after a replica was killed Pods count as disturbed.
	around = 10 * time.Second
	// quietFor is how long nothing is written once the start of everything is over:
	// numbers of a PolicyStatus come 10 s after what else was written of it.
	// restWithin is how long that may take; 20 writes a second are made in all.
	quietFor   = 15 * time.Second
	restWithin = 5 * time.Minute
)

// Report is all that is measured of a Cluster.
type Report struct {
	Shape       Shape
	Replicas    int
	Rate        float64
	InstalledIn time.Duration
	// Founded is from then until nothing was written any more.
	Founded     *Idle
	Idle        *Idle
	Admission   *Admission
	Undisturbed *Loaded
	// Killed is the load during which the leader was killed.
	Killed *Loaded
	Storm  *Storm
}

// Measure measures one thing after the other: nothing, the webhook, a load, another one in
// the middle of which the leader is killed, and a storm of agents.
func Measure(ctx context.Context, c *Cluster, l Load, idle time.Duration) (*Report, error) {
	o := &c.options
	r := &Report{Shape: o.Shape, Replicas: o.Replicas, Rate: l.Rate, InstalledIn: c.InstalledIn}
	var err error
	if r.Founded, err = c.Rest(ctx); err != nil {
		return nil, err
	}
	o.Progress(fmt.Sprintf("nothing happens for %s", idle))
	if r.Idle, err = c.Idle(ctx, idle); err != nil {
		return nil, err
	}
	o.Progress("Pods that are created in dry runs")
	if r.Admission, err = c.Admission(ctx); err != nil {
		return nil, err
	}
	o.Progress(fmt.Sprintf("%d gated Pods, %g a second", l.Pods, l.Rate))
	if r.Undisturbed, err = c.Load(ctx, l); err != nil {
		return nil, err
	}
	leader, err := c.Leader(ctx)
	if err != nil {
		return nil, err
	}
	l.Halfway = func() error {
		o.Progress("killing the leader")
		c.Kill(leader)
		return nil
	}
	if o.Replicas > 1 {
		o.Progress(fmt.Sprintf("%d gated Pods again", l.Pods))
		if r.Killed, err = c.Load(ctx, l); err != nil {
			return nil, err
		}
		if err := c.Restart(ctx, leader); err != nil {
			return nil, err
		}
	}
	o.Progress("restarting every replica")
	r.Storm, err = c.Storm(ctx)
	return r, err
}

// Print writes the report as a table.
func (r *Report) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) // Flush returns the error
	}
	line("cluster", "%d nodes and agents, %d Pods, %d namespaces, %d replicas", r.Shape.Nodes, r.Shape.Pods, r.Shape.namespaces(), r.Replicas)
	line("from the first start to the last agent's session", "%s", r.InstalledIn.Round(time.Millisecond))
	line("from then until every policy has its status", "%s, %s", r.Founded.Took.Round(time.Second), listed(r.Founded.Writes))
	line("nothing happens", "%s: %s, CPU %s", r.Idle.Took, listed(r.Idle.Writes), perReplica(r.Idle.CPU))
	r.Admission.print(line)
	r.Undisturbed.print(line, r.Rate)
	if k := r.Killed; k != nil {
		during := func(g *Gated) bool {
			return !g.Addressed.Before(k.Halfway) && g.Addressed.Before(k.Halfway.Add(around))
		}
		line("leader killed", "%s in the %s after, %s otherwise; %d without a gate", latency(k.Gated, during), around,
			latency(k.Gated, func(g *Gated) bool { return !during(g) }), k.Ungated)
		line("  opened wrongly", "%d of %d judged", k.Judged.WrongGates, k.Judged.Gates)
	}
	if s := r.Storm; s != nil {
		line("every replica restarted", "ready after %s, every agent has a session after %s, with each after %s",
			s.Ready.Round(time.Millisecond), s.Back.Round(time.Millisecond), s.All.Round(time.Millisecond))
		line("  token reviews", "%d, at most %d in a second at a replica", s.Reviews, s.Busiest)
	}
	return w.Flush()
}

// print prints what a load came to, line by line.
func (l *Loaded) print(line func(name, format string, args ...any), rate float64) {
	all := func(*Gated) bool { return true }
	line("gated Pods", "%d, %g a second asked for, %.1f created; %d without a gate", len(l.Gated), rate,
		float64(len(l.Gated))/l.Created.Sub(l.Began).Seconds(), l.Ungated)
	line("  addressed to open", "%s", latency(l.Gated, all))
	line("  opened wrongly", "%d of %d judged, by %d flows", l.Judged.WrongGates, l.Judged.Gates, l.Judged.Flows)
	for _, wrong := range l.Judged.Wrong {
		line("    wrong", "%s", wrong)
	}
	prompt, messages, openings := 0, 0, make(map[int]int)
	for i := range l.Gated {
		messages += l.Gated[i].Messages
		if l.Gated[i].Latency() < promptly {
			prompt++
			openings[l.Gated[i].Openings]++
		}
	}
	line("  open within 3 s", "%d; writes of each: %s; requests for each: %s", prompt, spread(openings), spread(l.Patches))
	line("  messages", "%d", messages)
	for _, name := range slices.Sorted(maps.Keys(l.Usage)) {
		u := l.Usage[name]
		line("  "+name, "%.2f ms CPU a Pod, %d MiB RSS, %d MiB at its peak", float64(u.CPU.Microseconds())/1000/float64(len(l.Gated)),
			u.RSS>>20, u.PeakRSS>>20)
	}
	took := l.Ended.Sub(l.Began).Seconds()
	for _, x := range l.Lists {
		line("  LISTs of "+x.Kind, "%s: %d, %.2f a second, none within %s of another", x.Replica, x.Count,
			float64(x.Count)/took, x.Closest.Round(time.Millisecond))
	}
	for _, x := range l.Requests {
		line("  "+x.Account, "%s %s: %d", x.Verb, x.Resource, x.Count)
	}
}

// latency describes that of the Pods for which keep returns true.
func latency(gated []Gated, keep func(*Gated) bool) string {
	p50, n := Percentile(gated, 0.5, keep)
	p99, _ := Percentile(gated, 0.99, keep)
	most, _ := Percentile(gated, 1, keep)
	return fmt.Sprintf("p50 %d ms, p99 %d ms, most %d ms (%d)", p50.Milliseconds(), p99.Milliseconds(), most.Milliseconds(), n)
}

// listed names the writes.
func listed(requests []Requests) string {
	if len(requests) == 0 {
		return "no writes"
	}
	var all []string
	for _, r := range requests {
		all = append(all, fmt.Sprintf("%s %s %s: %d", r.Account, r.Verb, r.Resource, r.Count))
	}
	return strings.Join(all, ", ")
}

// spread says how many Pods each number is of.
func spread(counts map[int]int) string {
	var all []string
	for _, n := range slices.Sorted(maps.Keys(counts)) {
		all = append(all, fmt.Sprintf("%d (%d Pods)", n, counts[n]))
	}
	return strings.Join(all, ", ")
}

func perReplica(of map[string]time.Duration) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		all = append(all, fmt.Sprintf("%s %d ms", name, of[name].Milliseconds()))
	}
	return strings.Join(all, ", ")
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Run is one run of a scenario at one size.
type Run struct {
	Scenario string
	// Shapes are those of a sustained load; the other scenarios have their own.
	Shapes []string
	// Scale is the size in words: 1 or 10 times.
	Scale   int
	Options Options
	Load    Load
	// Held is how many Pods scenario held has wait at once.
	Held int
}

// ScenarioNames are the scenarios, in the order in which they are run.
func ScenarioNames() []string { return []string{"sustained", "kill", "frozen", "founding", "held"} }

// ShapeNames are the shapes.
func ShapeNames() []string {
	var names []string
	for _, s := range Shapes() {
		names = append(names, s.Name)
	}
	return names
}

// Report collects what runs show. The zero value is empty.
type Report struct {
	lines []line
	wrong []string
}

// line is one figure: of what, called what, at which scale, in words and, if
// it has a ratio, as a number.
type line struct {
	run, name string
	scale     int
	text      string
	value     float64
}

// Run runs a scenario and adds what it shows.
func (r *Report) Run(ctx context.Context, x Run) error {
	switch x.Scenario {
	case "sustained":
		return r.sustained(ctx, x)
	case "kill":
		return r.kill(ctx, x)
	case "frozen":
		return r.frozen(ctx, x)
	case "founding":
		return r.founding(ctx, x)
	case "held":
		return r.held(ctx, x)
	}
	return fmt.Errorf("scenario %q: want one of %s", x.Scenario, strings.Join(ScenarioNames(), ", "))
}

// Wrong returns what must not be.
func (r *Report) Wrong() []string { return r.wrong }

func (r *Report) add(run string, scale int, name, text string, value float64) {
	r.lines = append(r.lines, line{run, name, scale, text, value})
}

func (r *Report) duration(run string, scale int, name string, d Distribution) {
	r.add(run, scale, name+" p50", short(d.P50), float64(d.P50))
	r.add(run, scale, name+" p99", short(d.P99), float64(d.P99))
}

func (r *Report) blame(run string, scale int, wrong []string) {
	for i, text := range wrong {
		if i == maxNamed {
			r.wrong = append(r.wrong, fmt.Sprintf("%s at %dx: and %d more", run, scale, len(wrong)-i))
			break
		}
		r.wrong = append(r.wrong, fmt.Sprintf("%s at %dx: %s", run, scale, text))
	}
}

func (r *Report) sustained(ctx context.Context, x Run) error {
	for _, name := range x.Shapes {
		s, err := ShapeOf(name)
		if err != nil {
			return err
		}
		o, err := Sustained(ctx, x.Options, s, x.Load)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		r.outcome("sustained "+name, x.Scale, o)
	}
	return nil
}

// outcome adds all figures of an Outcome.
func (r *Report) outcome(run string, scale int, o *Outcome) {
	r.blame(run, scale, o.Wrong)
	r.add(run, scale, "gated Pods opened", fmt.Sprintf("%d of %d", o.Opened, o.Created), float64(o.Opened))
	r.add(run, scale, "opened wrongly, of flows judged", fmt.Sprintf("%d of %d", o.WrongFlows, o.Strangers+o.Peers), 0)
	r.add(run, scale, "nodes assigned per Pod", fmt.Sprintf("%.1f", o.Nodes), o.Nodes)
	r.duration(run, scale, "event to assignment", o.Assigns)
	r.duration(run, scale, "report to release, in the manager", o.Adds)
	r.duration(run, scale, "report to release, as agents see it", o.Seen)
	r.duration(run, scale, "bare round trip", o.Bare)
	r.add(run, scale, "the barrier came last for", fmt.Sprintf("%d Pods", o.Behind), 0)
	r.duration(run, scale, "address to open gate", o.Total)
	r.add(run, scale, "manager's memory, greatest", fmt.Sprintf("%d MiB", o.Peak>>20), float64(o.Peak))
	r.add(run, scale, "manager's processor time per Pod", short(o.CPU), float64(o.CPU))
	r.add(run, scale, "bytes to agents per Pod", fmt.Sprint(o.Bytes), float64(o.Bytes))
	r.add(run, scale, "LISTs a second of one kind", fmt.Sprintf("%.2f", o.Lists), o.Lists)
	r.add(run, scale, "writes of Pods opened within 3 s", several(o.Writes), 0)
	r.add(run, scale, "patches of these, idle ones included", several(o.Requests), 0)
	r.add(run, scale, "messages of the manager", fmt.Sprint(o.Messages), 0)
}

func (r *Report) kill(ctx context.Context, x Run) error {
	for _, leader := range []bool{true, false} {
		run := "kill the other"
		if leader {
			run = "kill the leader"
		}
		s, err := ShapeOf("small")
		if err != nil {
			return err
		}
		k, err := Kill(ctx, x.Options, s, x.Load, leader)
		if err != nil {
			return err
		}
		r.blame(run, x.Scale, k.Wrong)
		r.add(run, x.Scale, "gated Pods opened", fmt.Sprintf("%d of %d", k.Opened, k.Created), float64(k.Opened))
		r.add(run, x.Scale, "opened wrongly, of flows judged", fmt.Sprintf("%d of %d", k.WrongFlows, k.Strangers+k.Peers), 0)
		r.duration(run, x.Scale, "report to release, undisturbed", k.Undisturbed)
		r.duration(run, x.Scale, "report to release, 5 s around", k.Around)
		r.duration(run, x.Scale, "address to open gate, undisturbed", k.TotalUndisturbed)
		r.duration(run, x.Scale, "address to open gate, 5 s around", k.TotalAround)
		r.add(run, x.Scale, "p99 around to undisturbed", fmt.Sprintf("%.2f and %.2f",
			ratio(k.Around.P99, k.Undisturbed.P99), ratio(k.TotalAround.P99, k.TotalUndisturbed.P99)), 0)
		r.add(run, x.Scale, "every agent is back after", short(k.Returned), float64(k.Returned))
		r.add(run, x.Scale, "agents back in a tenth of that", fmt.Sprint(k.Most), float64(k.Most))
		r.add(run, x.Scale, "writes of Pods opened within 3 s", several(k.Writes), 0)
		r.add(run, x.Scale, "patches of these, idle ones included", several(k.Requests), 0)
		r.add(run, x.Scale, "manager's memory, greatest", fmt.Sprintf("%d MiB", k.Peak>>20), float64(k.Peak))
	}
	return nil
}

func (r *Report) frozen(ctx context.Context, x Run) error {
	s, err := ShapeOf("edits")
	if err != nil {
		return err
	}
	for _, lies := range []bool{false, true} {
		run := "frozen"
		x.Options.Lies = lies
		if lies {
			run = "frozen, barrier broken"
		}
		o, err := Frozen(ctx, x.Options, s, x.Load)
		if err != nil {
			return err
		}
		if lies {
			if len(o.Wrong) == 0 {
				r.wrong = append(r.wrong, "with a broken barrier nothing was seen to be opened wrongly: the judge sees nothing")
			}
			o.Wrong = nil
		}
		r.blame(run, x.Scale, o.Wrong)
		r.add(run, x.Scale, "gated Pods opened", fmt.Sprintf("%d of %d", o.Opened, o.Created), float64(o.Opened))
		r.add(run, x.Scale, "opened wrongly, of flows judged", fmt.Sprintf("%d of %d", o.WrongFlows, o.Strangers+o.Peers), 0)
		r.duration(run, x.Scale, "address to open gate", o.Total)
	}
	return nil
}

func (r *Report) founding(ctx context.Context, x Run) error {
	s, err := ShapeOf("small")
	if err != nil {
		return err
	}
	o, err := Founding(ctx, x.Options, s, x.Load)
	if err != nil {
		return err
	}
	const run = "founding"
	r.blame(run, x.Scale, slices.Concat(o.Calm.Wrong, o.Storm.Wrong))
	r.add(run, x.Scale, "events of Services", "0: none is watched", 0)
	r.add(run, x.Scale, "assignments made in the storm", fmt.Sprint(o.Assigned), 0)
	compare(&o.Calm, &o.Storm, func(name string, calm, storm Distribution, ratios string) {
		r.add(run, x.Scale, name+", calm", calm.String(), 0)
		r.add(run, x.Scale, name+", storm", storm.String(), 0)
		r.add(run, x.Scale, name+", storm to calm", ratios, 0)
	})
	return nil
}

// compare gives add each distribution of times of two outcomes, with the ratios
// of the second's median and 99th percentile to the first's.
func compare(a, b *Outcome, add func(name string, a, b Distribution, ratios string)) {
	for _, d := range []struct {
		name string
		a, b Distribution
	}{
		{"event to assignment", a.Assigns, b.Assigns},
		{"report to release, in the manager", a.Adds, b.Adds},
		{"report to release, as agents see it", a.Seen, b.Seen},
		{"address to open gate", a.Total, b.Total},
		{"bare round trip", a.Bare, b.Bare},
	} {
		add(d.name, d.a, d.b, fmt.Sprintf("%.2f and %.2f", ratio(d.b.P50, d.a.P50), ratio(d.b.P99, d.a.P99)))
	}
}

// Write writes a table: a line for each figure, a column for each scale, and
// the ratio of the last to the first.
func (r *Report) Write(w io.Writer) error {
	var scales []int
	for _, l := range r.lines {
		if !slices.Contains(scales, l.scale) {
			scales = append(scales, l.scale)
		}
	}
	table := &strings.Builder{}
	fmt.Fprint(table, "run\tfigure")
	for _, scale := range scales {
		fmt.Fprintf(table, "\t%dx", scale)
	}
	fmt.Fprintln(table, "\tratio")
	type key struct{ run, name string }
	var done []key
	for _, l := range r.lines {
		k := key{l.run, l.name}
		if slices.Contains(done, k) {
			continue
		}
		done = append(done, k)
		fmt.Fprintf(table, "%s\t%s", l.run, l.name)
		var values []float64
		for _, scale := range scales {
			i := slices.IndexFunc(r.lines, func(o line) bool { return o.run == l.run && o.name == l.name && o.scale == scale })
			if i < 0 {
				fmt.Fprint(table, "\t")
				continue
			}
			fmt.Fprintf(table, "\t%s", r.lines[i].text)
			values = append(values, r.lines[i].value)
		}
		if len(values) > 1 && values[0] > 0 {
			fmt.Fprintf(table, "\t%.2f", values[len(values)-1]/values[0])
		}
		fmt.Fprintln(table)
	}
	aligned := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if _, err := io.WriteString(aligned, table.String()); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	return aligned.Flush()
}

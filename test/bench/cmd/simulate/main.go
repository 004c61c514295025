// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command simulate runs the scenarios of test/bench and prints what they cost.
// It ends with 1 if anything was wrong, and never because of a figure.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/spf13/pflag"

	"github.com/policygate/policygate/test/bench/replica"
	"github.com/policygate/policygate/test/bench/simulate"
)

// patience is longer than a Pod's own timeout.
const patience = 90 * time.Second

// options are the flags.
type options struct {
	scenarios []string
	shapes    []string
	nodes     int
	rate      float64
	lasts     time.Duration
	held      int
	scales    []int
	least     time.Duration
	most      time.Duration
	seed      uint64
	verbose   bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	was, err := replica.Main(ctx)
	if !was {
		err = run(ctx)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "simulate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var o options
	f := pflag.NewFlagSet("simulate", pflag.ContinueOnError)
	f.StringSliceVar(&o.scenarios, "scenario", simulate.ScenarioNames(), "what to run")
	f.StringSliceVar(&o.shapes, "shape", simulate.ShapeNames(), "the shapes of a sustained load")
	f.IntVar(&o.nodes, "nodes", 100, "agents at 1x")
	f.Float64Var(&o.rate, "rate", 10, "gated Pods per second at 1x")
	f.DurationVar(&o.lasts, "for", 30*time.Second, "how long Pods are created in each run")
	f.IntVar(&o.held, "held", 1000, "Pods that wait at once at 1x in scenario held, which multiplies neither agents nor rate")
	f.IntSliceVar(&o.scales, "scale", []int{1, 10}, "by what agents and rate are multiplied, each in a run of its own")
	f.DurationVar(&o.least, "least", 50*time.Millisecond, "the least delay until a node realizes a change")
	f.DurationVar(&o.most, "most", 1500*time.Millisecond, "the greatest delay until a node realizes a change")
	f.Uint64Var(&o.seed, "seed", 1, "makes everything that is drawn")
	f.BoolVar(&o.verbose, "verbose", false, "log what replicas and agents say")
	if err := f.Parse(os.Args[1:]); err != nil {
		return err
	}
	report := &simulate.Report{}
	for _, scenario := range o.scenarios {
		for _, scale := range o.scales {
			if err := o.scenario(ctx, report, scenario, scale); err != nil {
				return fmt.Errorf("%s at %dx: %w", scenario, scale, err)
			}
		}
	}
	if err := report.Write(os.Stdout); err != nil {
		return err
	}
	if wrong := report.Wrong(); len(wrong) > 0 {
		return fmt.Errorf("%d things are wrong:\n%s", len(wrong), strings.Join(wrong, "\n"))
	}
	return nil
}

func (o *options) scenario(ctx context.Context, report *simulate.Report, name string, scale int) error {
	log := logr.Discard()
	if o.verbose {
		log = funcr.New(func(prefix, args string) { fmt.Fprintln(os.Stderr, prefix, args) }, funcr.Options{})
	}
	size := scale
	if name == "held" {
		size = 1
	}
	return report.Run(ctx, simulate.Run{
		Scenario: name, Shapes: o.shapes, Scale: scale, Held: o.held * scale,
		Options: simulate.Options{
			Nodes: o.nodes * size, Replicas: 1, Seed: o.seed, Least: o.least, Most: o.most, Patience: patience, Log: log, Verbose: o.verbose,
		},
		Load: simulate.Load{Rate: o.rate * float64(size), Lasts: o.lasts},
	})
}

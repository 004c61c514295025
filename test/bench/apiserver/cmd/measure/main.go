// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command measure runs the manager against a real API server with fake nodes
// and Pods of a given size, and prints what that took.
//
// It is run from within the repository, with KUBEBUILDER_ASSETS set to the
// directory with etcd, kube-apiserver and kubectl.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2/textlogger"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/policygate/policygate/test/bench/apiserver"
)

// options are what the command line says.
type options struct {
	apiserver.Options
	gated int
	rate  float64
	idle  time.Duration
	limit time.Duration
	keep  bool
}

func main() {
	o := options{}
	pflag.IntVar(&o.Nodes, "nodes", 100, "Nodes, each with an agent.")
	pflag.IntVar(&o.Pods, "pods", 500, "Pods that run before Policy Gate is installed.")
	pflag.IntVar(&o.Replicas, "replicas", 2, "Replicas of the manager.")
	pflag.IntVar(&o.gated, "gated", 300, "Gated Pods, once undisturbed and once with the leader killed in the middle.")
	pflag.Float64Var(&o.rate, "rate", 5, "Gated Pods that are created in a second.")
	pflag.DurationVar(&o.Least, "least", 50*time.Millisecond, "Least time in which a kernel realizes a change.")
	pflag.DurationVar(&o.Most, "most", 500*time.Millisecond, "Most time in which it does.")
	pflag.Uint64Var(&o.Seed, "seed", 1, "Seed of those times.")
	pflag.DurationVar(&o.idle, "idle", 30*time.Second, "How long nothing happens.")
	pflag.DurationVar(&o.limit, "limit", 20*time.Minute, "How long all may take.")
	pflag.BoolVar(&o.keep, "keep", false, "Keep the logs, and say where they are.")
	pflag.Parse()
	if err := run(&o, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run measures and prints the table to out.
func run(o *options, out, progress io.Writer) (err error) {
	ctrl.SetLogger(logr.Discard()) // envtest's
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	if o.Dir, err = os.MkdirTemp("", "policygate-apiserver-"); err != nil {
		return err
	}
	if o.keep {
		_, _ = fmt.Fprintln(progress, "logs:", o.Dir)
		agents, err := os.Create(filepath.Join(o.Dir, "agents.log"))
		if err != nil {
			return err
		}
		defer agents.Close()
		o.Log = textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(agents), textlogger.Verbosity(1)))
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(o.Dir)) }()
	}
	began := time.Now()
	o.Progress = func(what string) {
		_, _ = fmt.Fprintf(progress, "%4.0f s  %s\n", time.Since(began).Seconds(), what)
	}
	cluster, err := apiserver.Start(ctx, o.Options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	report, err := apiserver.Measure(ctx, cluster, apiserver.Load{Pods: o.gated, Rate: o.rate}, o.idle)
	if err != nil {
		return err
	}
	return report.Print(out)
}

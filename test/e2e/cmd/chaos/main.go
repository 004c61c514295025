// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command chaos runs package chaos on a cluster of its own and prints what was
// found. It exits 0 only if no gate opened wrongly, nothing was stuck or lost,
// and enough was shown for how long it took.
//
// KEEP=1 leaves the cluster. ENGINE and KUBE_ROUTER: see package testbed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/policygate/policygate/test/e2e/chaos"
	"github.com/policygate/policygate/test/e2e/chaos/fault"
	"github.com/policygate/policygate/test/e2e/testbed"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	duration := flag.Duration("duration", 10*time.Minute, "for how long Pods and faults come and go")
	nodes := flag.Int("nodes", 3, "nodes of the cluster, at least 3")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "what happens; the printed one repeats a run's choices")
	name := flag.String("name", "chaos", "the cluster's name")
	variant := flag.String("variant", "", "what is different about the nodes: host-firewall, no-bridge-nf or no-ipv6")
	out := flag.String("out", filepath.Join("..", "..", "build", "chaos"), "where to save what is needed to understand a finding")
	flag.Parse()
	v, err := chaos.ParseVariant(*variant)
	if err != nil {
		return err
	}
	if *nodes < 3 {
		return fmt.Errorf("%d nodes: want 3 or more, so that two can be cut from each other and a third sees both", *nodes)
	}
	evidence, err := filepath.Abs(filepath.Join(*out, fmt.Sprint(*seed)))
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	bed, err := testbed.Start(ctx, v.Testbed(testbed.Options{
		Name: *name, Nodes: *nodes, Keep: os.Getenv("KEEP") != "", Progress: os.Stdout,
	}))
	if err != nil {
		return err
	}
	defer func() {
		if os.Getenv("KEEP") != "" {
			fmt.Printf("the cluster is kept:\n  export KUBECONFIG=%s\n  make cluster-down CLUSTER=%s   removes it\n", bed.Cluster.Kubeconfig(), *name)
			return
		}
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, bed.Stop(cleanup))
	}()
	report, runErr := chaos.Run(ctx, chaos.Options{
		Bed: bed, Duration: *duration, Seed: *seed, Kinds: fault.Kinds(), Variant: v,
		Evidence: evidence, Progress: os.Stdout,
	})
	if err := report.Write(os.Stdout); err != nil {
		return err
	}
	return errors.Join(runErr, report.Check())
}

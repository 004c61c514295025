// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command demo runs package demo on a cluster of its own, prints what happened
// and writes build/demo.json. It exits 0 only if every gated Job's first
// connection was let in and some ungated one's was not.
//
// KEEP=1 leaves the cluster. ENGINE and KUBE_ROUTER: see package testbed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/policygate/policygate/test/e2e/demo"
	"github.com/policygate/policygate/test/e2e/testbed"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	jobs := flag.Int("jobs", 24, "Jobs per round, at least 20 for figures that mean something")
	out := flag.String("out", filepath.Join("..", "..", "build", "demo.json"), "where to write the figures")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	keep := os.Getenv("KEEP") != ""
	bed, err := testbed.Start(ctx, testbed.Options{
		Name: "demo", Nodes: 2, Database: true, Keep: keep, Progress: os.Stdout,
	})
	if err != nil {
		return err
	}
	defer func() {
		if keep {
			fmt.Printf("\nthe cluster is kept:\n  export KUBECONFIG=%s\n  make cluster-down CLUSTER=demo   removes it\n", bed.Cluster.Kubeconfig())
			return
		}
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if stopErr := bed.Stop(cleanup); stopErr != nil && err == nil {
			err = stopErr
		}
	}()
	if err := bed.SlowEngines(); err != nil {
		return err
	}
	nodes := bed.Cluster.Nodes()
	rounds, err := demo.Run(ctx, demo.Options{
		Client: bed.Client, ServerNode: nodes[0].Name, ClientNode: nodes[1].Name,
		DatabaseImage: testbed.DatabaseImage, ProbeImage: testbed.ProbeImage,
		Jobs: *jobs, Progress: os.Stdout,
	})
	if err != nil {
		return err
	}
	for _, round := range rounds {
		fmt.Println()
		if err := demo.WriteTimeline(os.Stdout, round); err != nil {
			return err
		}
	}
	fmt.Println()
	if err := demo.WriteTable(os.Stdout, rounds); err != nil {
		return err
	}
	if err := demo.NewReport(bed.EngineKind, rounds).WriteFile(*out); err != nil {
		return err
	}
	return demo.Check(rounds)
}

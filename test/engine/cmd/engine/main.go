// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command engine programs network policies on one node for tests. It acts in
// the network namespace that it is started in.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/policygate/policygate/test/engine"
)

// reporter prints one line for each state and keeps the newest in a file.
func reporter(path string) func(engine.State) {
	return func(s engine.State) {
		line, err := json.Marshal(s)
		if err != nil {
			line = []byte(err.Error())
		}
		fmt.Printf("%s %s\n", time.Now().Format(time.RFC3339Nano), line)
		if path == "" {
			return
		}
		// Renamed into place, so that nobody reads half of it.
		if err = os.WriteFile(path+".tmp", line, 0o600); err == nil {
			err = os.Rename(path+".tmp", path)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "engine: write state:", err)
		}
	}
}

func main() {
	o := options{}
	o.addFlags(pflag.CommandLine)
	pflag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "engine:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	options, err := o.complete()
	if err != nil {
		return err
	}
	options.Report = reporter(o.state)
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	if options.Client, err = kubernetes.NewForConfig(config); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	return engine.New(options).Run(ctx)
}

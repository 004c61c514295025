// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command reference writes docs/reference.md and config/prometheus's
// PrometheusRule from what they are made of: the source's constants, fields and
// metrics, the commands' own help, and the alerts.
//
//	go run ./hack/reference          writes them
//	go run ./hack/reference -check   fails if they are not up to date
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/policygate/policygate/hack/settle"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stderr))
}

// run is main with an exit status, so that what is deferred happens.
func run(args []string, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("reference", flag.ContinueOnError)
	flags.SetOutput(stderr)
	check := flags.Bool("check", false, "write nothing, and fail if a file is not up to date")
	root := flags.String("root", ".", "the repository")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if err := generate(ctx, *root, *check); err != nil {
		_, _ = fmt.Fprintln(stderr, "reference:", err)
		return 1
	}
	return 0
}

// generate writes what is generated, or checks it.
func generate(ctx context.Context, root string, check bool) error {
	helps, err := commandHelps(ctx, root)
	if err != nil {
		return err
	}
	reference, err := page(root, helps)
	if err != nil {
		return err
	}
	rule, err := prometheusRule(root)
	if err != nil {
		return err
	}
	return errors.Join(
		settle.File(filepath.Join(root, "docs", "reference.md"), reference, check, "reference"),
		settle.File(filepath.Join(root, "config", "prometheus", "prometheusrule.yaml"), rule, check, "reference"),
	)
}

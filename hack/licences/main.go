// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command licences prints the licences of all modules that are linked into what
// is shipped, and fails if one has none or one that is not known to
// hack/licence.
//
//	go run ./hack/licences
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/policygate/policygate/hack/linked"
)

func main() {
	os.Exit(run(os.Args[1:], linked.Builds(), os.Stdout, os.Stderr))
}

// run is main with an exit status, so that what is deferred happens.
func run(args []string, builds []linked.Build, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("licences", flag.ContinueOnError)
	flags.SetOutput(stderr)
	root := flags.String("root", ".", "the repository")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if err := check(ctx, *root, builds, stdout); err != nil {
		_, _ = fmt.Fprintf(stderr, "licences: not all of what is linked is known to be under a licence that may be:\n%v\n", err)
		return 1
	}
	return 0
}

// check prints each module once, whatever it is linked into.
func check(ctx context.Context, root string, builds []linked.Build, stdout io.Writer) error {
	lines, problems := map[string]bool{}, map[string]error{}
	for _, b := range builds {
		modules, err := linked.Modules(ctx, root, b)
		if err != nil {
			problems[err.Error()] = err
		}
		for _, m := range modules {
			lines[fmt.Sprintf("%s %s: %s\n", m.Path, m.Version, strings.Join(m.Licences, ", "))] = true
		}
	}
	for _, line := range slices.Sorted(maps.Keys(lines)) {
		if _, err := io.WriteString(stdout, line); err != nil {
			return err
		}
	}
	return errors.Join(slices.Collect(maps.Values(problems))...)
}

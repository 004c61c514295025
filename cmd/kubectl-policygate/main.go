// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command kubectl-policygate is the kubectl plugin of Policy Gate, for
// administrators. "kubectl policygate trace SRC DST:PORT" says what the nodes
// on the path would do with a new connection.
//
// Its flags for the cluster are kubectl's own, by client-go's clientcmd: that
// is where kubectl has them from, and it needs no further library.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

const usage = `kubectl policygate asks the nodes what they enforce.

Usage: kubectl policygate COMMAND [flags]

Commands:
  trace    what would become of a new connection, and by which rules

"kubectl policygate COMMAND --help" says more.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run is main with an exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		_, _ = fmt.Fprint(stdout, usage)
		return 0
	}
	if args[0] != "trace" {
		_, _ = fmt.Fprintf(stderr, "error: command %q: want trace\n", args[0])
		return tracev1.ExitError
	}
	return runTrace(ctx, args[1:], stdout, stderr)
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command hold is the init container that Policy Gate injects. It ends when
// its Pod's gate opens, and so holds back the containers after it.
//
// It watches a file in a downwardAPI volume, which shows the annotation that
// an agent writes with the gate. It needs no network, no credentials and no
// write access, and imports no Kubernetes client: every gated Pod pulls it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Exit statuses. exitTimeout is v1alpha1.HoldTimeoutExitCode, whose package
// imports Kubernetes; a test holds the two together.
const (
	exitOpen    = 0
	exitUsage   = 2
	exitTimeout = 95
	// exitSignal is the shell's convention for SIGTERM, 128 + 15.
	exitSignal = 143
)

// pollInterval is how soon the hold sees an opened gate. It polls because
// gVisor and Kata do not forward inotify; one read of a small file costs tens
// of microseconds.
const pollInterval = 50 * time.Millisecond

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	logger := log.New(stderr, "policygate-hold: ", 0)
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOpen
	case err != nil:
		logger.Print(err)
		return exitUsage
	case o.version:
		_, _ = fmt.Fprintln(stdout, version())
		return exitOpen
	}
	id, err := identity()
	if err != nil {
		logger.Print(err)
		return exitUsage
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	ticker := time.NewTicker(pollInterval) //nolint:forbidigo // main hands the clock in; k8s.io/utils/clock is not the hold's to import
	defer ticker.Stop()
	h := hold{
		options:  o,
		identity: id,
		read:     func() ([]byte, error) { return os.ReadFile(o.file) }, //nolint:gosec // the path is the hold's own flag
		ticks:    ticker.C,
		log:      logger,
	}
	return h.wait(ctx, time.Now()) //nolint:forbidigo // as above
}

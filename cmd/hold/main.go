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
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/policygate/policygate/api/programmed"
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

// bootIDFile holds the boot id of the node's kernel.
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// options are what the flags say.
type options struct {
	timeout       time.Duration
	failOnTimeout bool
	file          string
	version       bool
}

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
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	h := hold{
		options:  o,
		identity: id.String(),
		read:     func() ([]byte, error) { return os.ReadFile(o.file) },
		ticks:    ticker.C,
		log:      logger,
	}
	return h.wait(ctx, time.Now())
}

// parse returns what args say, or an error that names the flag, its value and
// what is valid. Usage goes to output.
func parse(args []string, output io.Writer) (options, error) {
	var o options
	var onTimeout string
	fs := flag.NewFlagSet("hold", flag.ContinueOnError)
	fs.SetOutput(output)
	fs.DurationVar(&o.timeout, "timeout", time.Minute, "how long to wait for the gate, counted from the start of the hold")
	fs.StringVar(&onTimeout, "on-timeout", "start", `what to do then: "start" lets the containers start, "fail" fails the Pod`)
	fs.StringVar(&o.file, "file", "/run/policygate/programmed", "file that shows the annotation policygate.io/programmed")
	fs.BoolVar(&o.version, "version", false, "print the version and exit")
	if err := fs.Parse(args); err != nil {
		return options{}, err
	}
	switch {
	case fs.NArg() > 0:
		return options{}, fmt.Errorf("unexpected argument %q: want flags only", fs.Arg(0))
	case o.timeout <= 0:
		return options{}, fmt.Errorf("-timeout %s: want a duration above 0, like 60s", o.timeout)
	case o.file == "":
		return options{}, errors.New(`-file "": want the path of a file`)
	case onTimeout != "start" && onTimeout != "fail":
		return options{}, fmt.Errorf("-on-timeout %q: want start or fail", onTimeout)
	}
	o.failOnTimeout = onTimeout == "fail"
	return o, nil
}

// identity returns what the annotation must name for the gate to be this
// Pod's, at these addresses, since this boot.
func identity() (programmed.Identity, error) {
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return programmed.Identity{}, fmt.Errorf("read the node's boot id: %w", err)
	}
	id, err := programmed.New(os.Getenv("POD_UID"), strings.Split(os.Getenv("POD_IPS"), ","), string(boot))
	if err != nil {
		return programmed.Identity{}, fmt.Errorf(
			"%w (want the environment POD_UID from metadata.uid and POD_IPS from status.podIPs)", err)
	}
	return id, nil
}

// version returns the module's version and, where known, the commit.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	text := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			text += " " + s.Value
		}
	}
	return text
}

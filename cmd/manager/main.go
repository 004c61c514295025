// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command manager is the control plane: it gates Pods at creation, computes
// what must be confirmed for them, and releases them when the agents have.
//
// "manager release-held" opens every gate that is shut, with the rights of
// whoever runs it; it is a step of removing Policy Gate.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
	ctrl "sigs.k8s.io/controller-runtime"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stderr))
}

// run is main with an exit status, so that what is deferred happens: 2 for a
// command line that is not usable.
func run(args []string, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	command, flags := newCommand(args)
	logging := textlogger.NewConfig(textlogger.Output(stderr))
	logFlags := flag.NewFlagSet("logging", flag.ContinueOnError)
	logging.AddFlags(logFlags)
	flags.AddGoFlagSet(logFlags)
	flags.SetOutput(stderr)
	if err := command.parse(flags, args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return 0
		}
		_, _ = fmt.Fprintln(stderr, err)
		return 2
	}
	log := textlogger.NewLogger(logging)
	ctrl.SetLogger(log)
	klog.SetLogger(log)
	if err := command.run(ctx, log); err != nil {
		log.Error(err, "failed")
		return 1
	}
	return 0
}

// command is what the command line asks for.
type command interface {
	// parse reads args, and returns an error that names what is not usable.
	parse(flags *pflag.FlagSet, args []string) error
	run(ctx context.Context, log logr.Logger) error
}

// newCommand returns the command that args name, and its flags.
func newCommand(args []string) (command, *pflag.FlagSet) {
	if len(args) > 0 && args[0] == releaseHeldName {
		flags := pflag.NewFlagSet("manager "+releaseHeldName, pflag.ContinueOnError)
		c := &releaseHeld{}
		c.addFlags(flags)
		return c, flags
	}
	flags := pflag.NewFlagSet("manager", pflag.ContinueOnError)
	c := newOptions()
	c.addFlags(flags)
	return c, flags
}

// version is that of the build, for people.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}

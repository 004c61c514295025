// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command agent runs on every node. It looks at the rules in the node's
// kernel, confirms to the manager's replicas what they assign, and opens the
// gates of the node's own Pods when they release them.
//
// "agent trace SRC DST:PORT" says what the node would do with a connection,
// and needs no cluster.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
)

// gcPercent is how much the heap may grow before garbage is collected. An agent
// is on each node and mostly idle: with 30 subjects pending on 3,000 legacy
// rules, its process takes 4 MiB less than by Go's default of 100, and no more
// CPU time that could be measured.
const gcPercent = 50

func main() {
	os.Exit(run())
}

// run is main with an exit status, so that what is deferred happens.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == traceName {
		return runTrace(ctx, os.Args[2:], kernelTraces{}, os.Stdout, os.Stderr)
	}
	o, logging := newOptions(os.Getenv), textlogger.NewConfig()
	logFlags := flag.NewFlagSet("logging", flag.ExitOnError)
	logging.AddFlags(logFlags)
	o.AddFlags(pflag.CommandLine)
	pflag.CommandLine.AddGoFlagSet(logFlags)
	pflag.Parse()
	if err := o.Validate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if _, set := os.LookupEnv("GOGC"); !set {
		debug.SetGCPercent(gcPercent)
	}
	log := textlogger.NewLogger(logging).WithValues("node", o.NodeName)
	klog.SetLogger(log) // client-go's
	if err := runAgent(ctx, o, log); err != nil {
		log.Error(err, "The agent ends")
		return 1
	}
	return 0
}

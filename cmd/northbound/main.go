// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command northbound says, where Kube-OVN is the policy engine, what OVN's
// northbound database has of the flows that the manager's replicas ask the nodes
// about: what kube-ovn-controller has not written yet shows there and nowhere
// else. It runs once in a cluster, and alone has access to that database. It opens
// no gates.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
)

func main() {
	os.Exit(run())
}

// run is main with an exit status, so that what is deferred happens.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, logging := newOptions(), textlogger.NewConfig()
	logFlags := flag.NewFlagSet("logging", flag.ExitOnError)
	logging.AddFlags(logFlags)
	o.AddFlags(pflag.CommandLine)
	pflag.CommandLine.AddGoFlagSet(logFlags)
	pflag.Parse()
	if err := o.Validate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	log := textlogger.NewLogger(logging)
	klog.SetLogger(log) // client-go's
	if err := runNorthbound(ctx, o, log); err != nil {
		log.Error(err, "It ends")
		return 1
	}
	return 0
}

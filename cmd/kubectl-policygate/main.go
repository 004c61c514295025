// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command kubectl-policygate is the kubectl plugin of Policy Gate: whether
// policies are in force (status), why a Pod is held (explain), what the nodes on
// the path would do with a new connection (trace), and whether the installation
// is in order (doctor).
//
// Its flags for the cluster are kubectl's own, by client-go's clientcmd, and its
// commands are cobra's, as kubectl's are: so help and completion of both are
// alike. Called by the name kubectl_complete-policygate it completes for
// kubectl.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
)

// exitError is the status of an answer that is not an error.
type exitError struct{ status int }

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", e.status) }

// exitStatus is returned on errors; commands say otherwise by an exitError.
const exitStatus = 1

func main() {
	// client-go logs the end of a port-forward as an error. What a command has
	// to say, it says itself.
	klog.SetLogger(logr.Discard())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, arguments(os.Args), os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// arguments returns what is behind the command's name. By the name that kubectl
// looks for when it completes a plugin's arguments, that is cobra's hidden
// command for it.
func arguments(args []string) []string {
	name := strings.TrimSuffix(filepath.Base(args[0]), ".exe")
	if name == completerName {
		return append([]string{cobra.ShellCompRequestCmd}, args[1:]...)
	}
	return args[1:]
}

// run is main with an exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot(stdout, stderr) //nolint:contextcheck // cobra hands ctx to the commands when they run
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if exit := (exitError{}); errors.As(err, &exit) {
		return exit.status
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "error:", err)
		return exitStatus
	}
	return 0
}

// newRoot returns the command with all others, which write there.
func newRoot(stdout, stderr io.Writer) *cobra.Command {
	k := &kubeconfig{}
	root := &cobra.Command{
		Use:         "kubectl-policygate",
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl policygate"},
		Short:       "Ask whether network policies are in force, and why not",
		Long: `Says whether network policies are in force and where, why a Pod is held, what
would become of a connection, and whether Policy Gate itself is in order.`,
		SilenceUsage:  true, // an error is easier to find without it
		SilenceErrors: true, // run prints them
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	k.bind(root)
	root.AddCommand(newStatus(k), newExplain(k), newTrace(k), newDoctor(k), newVersion())
	root.InitDefaultCompletionCmd()
	addPluginCompletion(root)
	return root
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

const traceHelp = `Says what the nodes on the path would do with a new connection, and which of
their rules it meets. Nothing is sent to the destination.

SRC and DST are each a Pod ("mysql", "shop/mysql") or an IP address; a Pod that
is named without a namespace is of that of the kubeconfig or of --namespace.

The exit status is 0 if the connection would be let in, 2 if a node would refuse
it, 3 if that cannot be told, and 1 if there is no answer.

It asks the manager by a port-forward, with a token that is good for nothing
else and of 10 minutes. Who is no cluster-admin needs the Role
policygate-trace-user in the namespace that Policy Gate is installed in.`

const traceExamples = `  kubectl policygate trace nightly-backup mysql:3306
  kubectl policygate trace batch/job-x7 shop/mysql:3306 --protocol tcp
  kubectl policygate trace 203.0.113.9 [fd00::2]:443 -o json`

// traceOptions are what the command line of "trace" says.
type traceOptions struct {
	*kubeconfig
	asking
	output
	source, destination string
	protocol            string
	family              string
}

func newTrace(k *kubeconfig) *cobra.Command {
	o := &traceOptions{kubeconfig: k, asking: asking{path: tracev1.Path, role: "policygate-trace-user"}}
	cmd := &cobra.Command{
		Use:               "trace SRC DST:PORT",
		Short:             "Say what would become of a new connection, and by which rules",
		Long:              traceHelp,
		Example:           traceExamples,
		ValidArgsFunction: k.podArgs(2),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("%d arguments: want SRC and DST:PORT, such as nightly-backup mysql:3306", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.source, o.destination = args[0], args[1]
			if err := o.validate(); err != nil {
				return err
			}
			answer, err := o.trace(cmd.Context())
			if err != nil {
				return err
			}
			if err := o.print(cmd.OutOrStdout(), answer, answer.WriteText); err != nil {
				return err
			}
			return exitError{answer.Verdict.ExitStatus()}
		},
	}
	cmd.Flags().StringVar(&o.protocol, "protocol", "tcp", "Protocol of the connection: tcp, udp or sctp.")
	cmd.Flags().StringVar(&o.family, "family", "", "IP family to trace: ipv4 or ipv6. Each that both ends have if it is empty.")
	o.output.bind(cmd, "How to print the answer: text for people, json or yaml for scripts.", outputText, outputJSON, outputYAML)
	o.asking.bind(cmd, "policygate-tracer", "traces")
	completeFlag(cmd, "protocol", words("tcp", "udp", "sctp"))
	completeFlag(cmd, "family", words(string(tracev1.IPv4), string(tracev1.IPv6)))
	return cmd
}

// trace asks a replica of the manager.
func (o *traceOptions) trace(ctx context.Context) (*tracev1.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	config, namespace, err := o.load()
	if err != nil {
		return nil, err
	}
	q, err := o.question(namespace)
	if err != nil {
		return nil, err
	}
	var answer tracev1.Answer
	if err := o.askAny(ctx, config, q, &answer); err != nil {
		return nil, err
	}
	return &answer, nil
}

// validate returns an error that names each flag that is not usable.
func (o *traceOptions) validate() error {
	// Names without a namespace are of any, for the time being.
	_, err := o.question("default")
	return errors.Join(o.output.validate(), o.asking.validate(), err)
}

// question returns what to ask, with Pods that are named without a namespace
// in the given one.
func (o *traceOptions) question(namespace string) (tracev1.Question, error) {
	destination, port, err := tracev1.SplitDestination(o.destination)
	if err != nil {
		return tracev1.Question{}, err
	}
	q := tracev1.Question{
		Source: within(namespace, o.source), Destination: within(namespace, destination), Port: port,
		Protocol: strings.ToLower(o.protocol), Family: tracev1.Family(strings.ToLower(o.family)),
	}
	return q, q.Validate()
}

// within adds the namespace to a Pod that is named without one.
func within(namespace, end string) string {
	if _, err := tracev1.ParseAddr(end); err == nil || strings.Contains(end, "/") || end == "" {
		return end
	}
	return namespace + "/" + end
}

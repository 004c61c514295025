// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/clientcmd"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

const traceUsage = `Says what the nodes on the path would do with a new connection, and which of
their rules it meets. Nothing is sent to the destination.

SRC and DST are each a Pod ("mysql", "shop/mysql") or an IP address; a Pod that
is named without a namespace is of that of the kubeconfig or of --namespace.

  kubectl policygate trace nightly-backup mysql:3306
  kubectl policygate trace batch/job-x7 shop/mysql:3306 --protocol tcp
  kubectl policygate trace 203.0.113.9 [fd00::2]:443 -o json

The exit status is 0 if the connection would be let in, 2 if a node would refuse
it, 3 if that cannot be told, and 1 if there is no answer.

It asks the manager by a port-forward, with a token that is good for nothing
else and of 10 minutes. Who is no cluster-admin needs the Role
policygate-trace-user in the namespace that Policy Gate is installed in.

Usage: kubectl policygate trace SRC DST:PORT [flags]

Flags:
`

// options are what the command line of "trace" says.
type options struct {
	source, destination string
	protocol            string
	family              string
	output              string
	installNamespace    string
	serviceAccount      string
	// config is how to reach the cluster.
	config clientcmd.ClientConfig
}

// parse reads the arguments behind "trace". Help and errors of the flags are
// written to out.
func parse(args []string, out io.Writer) (*options, error) {
	o := &options{}
	flags := pflag.NewFlagSet("kubectl policygate trace", pflag.ContinueOnError)
	flags.SetOutput(out)
	flags.StringVar(&o.protocol, "protocol", "tcp", "Protocol of the connection: tcp, udp or sctp.")
	flags.StringVar(&o.family, "family", "", "IP family to trace: ipv4 or ipv6. Each that both ends have if it is empty.")
	flags.StringVarP(&o.output, "output", "o", "text", "How to print the answer: text for people, json for scripts.")
	flags.StringVar(&o.installNamespace, "install-namespace", "policygate-system", "Namespace that Policy Gate is installed in.")
	flags.StringVar(&o.serviceAccount, "service-account", "policygate-tracer",
		"ServiceAccount of that namespace to ask as: you must be allowed to create tokens of it, and it to create traces.policygate.io.")
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	flags.StringVar(&rules.ExplicitPath, "kubeconfig", "", "Path of the kubeconfig to use.")
	overrides := &clientcmd.ConfigOverrides{}
	clientcmd.BindOverrideFlags(overrides, flags, clientcmd.RecommendedConfigOverrideFlags(""))
	flags.Usage = func() { _, _ = fmt.Fprint(out, traceUsage+flags.FlagUsages()) }
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() != 2 {
		return nil, fmt.Errorf("%d arguments: want SRC and DST:PORT, such as nightly-backup mysql:3306", flags.NArg())
	}
	o.source, o.destination = flags.Arg(0), flags.Arg(1)
	o.config = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	return o, o.validate()
}

// validate returns an error that names each flag that is not usable.
func (o *options) validate() error {
	var errs []error
	if o.output != "text" && o.output != "json" {
		errs = append(errs, fmt.Errorf("--output %q: want text or json", o.output))
	}
	if len(validation.IsDNS1123Label(o.installNamespace)) > 0 {
		errs = append(errs, fmt.Errorf("--install-namespace %q: want the name of a namespace", o.installNamespace))
	}
	if len(validation.IsDNS1123Subdomain(o.serviceAccount)) > 0 {
		errs = append(errs, fmt.Errorf("--service-account %q: want the name of a ServiceAccount", o.serviceAccount))
	}
	// Names without a namespace are of any, for the time being.
	if _, err := o.question("default"); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// question returns what to ask, with Pods that are named without a namespace
// in the given one.
func (o *options) question(namespace string) (tracev1.Question, error) {
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

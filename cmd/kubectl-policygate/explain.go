// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
	"github.com/policygate/policygate/cmd/kubectl-policygate/status"
)

const explainHelp = `Says why a Pod is held, or why a NetworkPolicy is not in force.

For a Pod: which nodes have not confirmed, which connections would not fare there
as the policies demand, which policy's rule demands it, what the kernel would do
instead and by which of its rules, and which entry of which set is missing.

The exit status is 0 if nothing is held or wrong, 2 if the Pod is held or the
policy is not in force, 3 if that cannot be told, and 1 if there is no answer.

For a Pod it asks the manager by a port-forward, with a token that is good for
nothing else and of 10 minutes. Who is no cluster-admin needs the Role
policygate-explain-user in the namespace that Policy Gate is installed in. For a
NetworkPolicy it reads its PolicyStatus, for which the right to view the
namespace is enough.`

const explainExamples = `  kubectl policygate explain pod/nightly-backup
  kubectl policygate explain nightly-backup -n shop
  kubectl policygate explain networkpolicy/allow-jobs -o yaml`

// Kinds that can be explained.
const (
	kindPod    = "pod"
	kindPolicy = "networkpolicy"
)

// explainOptions are what the command line of "explain" says.
type explainOptions struct {
	*kubeconfig
	asking
	output
	clock      clock.PassiveClock
	kind, name string
}

func newExplain(k *kubeconfig) *cobra.Command {
	o := &explainOptions{
		kubeconfig: k, clock: clock.RealClock{},
		asking: asking{path: explainv1.ExplainPath, role: "policygate-explain-user"},
	}
	cmd := &cobra.Command{
		Use:               "explain (POD | pod/POD | networkpolicy/NAME)",
		Short:             "Say why a Pod is held, or a policy is not in force",
		Long:              explainHelp,
		Example:           explainExamples,
		ValidArgsFunction: k.explainable,
		Args: func(_ *cobra.Command, args []string) (err error) {
			o.kind, o.name, err = parseSubject(args)
			return err
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(o.output.validate(), o.asking.validate()); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			if o.kind == kindPolicy {
				return o.explainPolicy(ctx, cmd.OutOrStdout())
			}
			return o.explainPod(ctx, cmd.OutOrStdout())
		},
	}
	o.output.bind(cmd, "How to print the answer: text for people, json or yaml for scripts.", outputText, outputJSON, outputYAML)
	o.asking.bind(cmd, "policygate-explainer", "explanations")
	return cmd
}

// parseSubject reads "NAME", "KIND/NAME" or "KIND NAME".
func parseSubject(args []string) (kind, name string, err error) {
	const want = "want a Pod's name, pod/NAME or networkpolicy/NAME"
	switch len(args) {
	case 1:
		var ok bool
		if kind, name, ok = strings.Cut(args[0], "/"); !ok {
			kind, name = kindPod, args[0]
		}
	case 2:
		kind, name = args[0], args[1]
	default:
		return "", "", fmt.Errorf("%d arguments: %s", len(args), want)
	}
	switch strings.ToLower(kind) {
	case "pod", "pods", "po":
		kind = kindPod
	case "networkpolicy", "networkpolicies", "netpol", "np", "policystatus", "policystatuses", "pst":
		kind = kindPolicy
	default:
		return "", "", fmt.Errorf("kind %q: %s; the namespace is that of --namespace", kind, want)
	}
	if name == "" || strings.Contains(name, "/") {
		return "", "", fmt.Errorf("name %q: %s", name, want)
	}
	return kind, name, nil
}

// explainPod asks a replica of the manager.
func (o *explainOptions) explainPod(ctx context.Context, out io.Writer) error {
	config, namespace, err := o.load()
	if err != nil {
		return err
	}
	q := explainv1.Question{Namespace: namespace, Pod: o.name}
	if err := q.Validate(); err != nil {
		return err
	}
	var e explainv1.Explanation
	if err := o.askAny(ctx, config, q, &e); err != nil {
		return err
	}
	if err := o.print(out, &e, e.WriteText); err != nil {
		return err
	}
	return exitError{e.State.ExitStatus()}
}

// explainPolicy reads the PolicyStatus, and the NetworkPolicy's generation.
func (o *explainOptions) explainPolicy(ctx context.Context, out io.Writer) error {
	config, namespace, err := o.load()
	if err != nil {
		return err
	}
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make the client: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make the client: %w", err)
	}
	policy, err := client.NetworkingV1().NetworkPolicies(namespace).Get(ctx, o.name, metav1.GetOptions{})
	var generation int64
	switch {
	case err == nil:
		generation = policy.Generation
	case apierrors.IsForbidden(err): // the status is more than nothing
	case apierrors.IsNotFound(err):
		return fmt.Errorf("there is no NetworkPolicy %s in namespace %s", o.name, namespace)
	default:
		return fmt.Errorf("get NetworkPolicy %s/%s: %w", namespace, o.name, err)
	}
	found, err := getStatuses(ctx, objects, namespace, o.name)
	if err != nil {
		return err
	}
	return o.printPolicy(out, found, generation, o.clock.Now())
}

// printPolicy writes what is found, which is one status.
func (o *explainOptions) printPolicy(out io.Writer, found *statuses, generation int64, now time.Time) error {
	err := o.print(out, found.object(), func(w io.Writer) error {
		return status.Words(w, &found.items[0], generation, now)
	})
	if err != nil {
		return err
	}
	return exitError{status.ExitStatus(found.items)}
}

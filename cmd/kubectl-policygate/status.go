// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/cmd/kubectl-policygate/status"
)

const statusHelp = `Says whether NetworkPolicies are in force, and where not: under each the nodes
that lag behind, why and since when, and what the policy engine does not carry
out. It reads the PolicyStatus objects, for which the right to view the namespace
is enough.

The exit status is 0 if all are in force, 2 if one is not, 3 if that cannot be
told of one, and 1 if there is no answer.`

const statusExamples = `  kubectl policygate status
  kubectl policygate status -A -o wide
  kubectl policygate status allow-jobs -n shop`

// viewRole is aggregated to view: with it, statuses can be read.
const viewRole = "policygate-view"

// statusOptions are what the command line of "status" says.
type statusOptions struct {
	*kubeconfig
	output
	clock clock.PassiveClock
	all   bool
	name  string
}

// outputTable is the form without -o.
const outputTable = "table"

func newStatus(k *kubeconfig) *cobra.Command {
	o := &statusOptions{kubeconfig: k, clock: clock.RealClock{}}
	cmd := &cobra.Command{
		Use:               "status [NAME]",
		Short:             "Say whether policies are in force, and on which nodes not",
		Long:              statusHelp,
		Example:           statusExamples,
		ValidArgsFunction: k.policyArg,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("%d arguments: want the name of one NetworkPolicy, or none for all", len(args))
			}
			if len(args) == 1 {
				// The kind may stand before it, as kubectl prints it.
				o.name = args[0][strings.LastIndexByte(args[0], '/')+1:]
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			config, namespace, err := o.load()
			if err != nil {
				return err
			}
			client, err := dynamic.NewForConfig(config)
			if err != nil {
				return fmt.Errorf("make the client: %w", err)
			}
			if o.all {
				namespace = metav1.NamespaceAll
			}
			return o.run(ctx, client, namespace, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().BoolVarP(&o.all, "all-namespaces", "A", false, "The policies of all namespaces.")
	o.output.bind(cmd, "How to print: a table, wide for more of it, json or yaml for the objects.", outputTable, outputWide, outputJSON, outputYAML)
	return cmd
}

func (o *statusOptions) validate() error {
	err := o.output.validate()
	if o.all && o.name != "" {
		err = errors.Join(err, fmt.Errorf("--all-namespaces with the name %q: want one of both", o.name))
	}
	return err
}

// run prints what is in the namespace.
func (o *statusOptions) run(ctx context.Context, client dynamic.Interface, namespace string, out, problems io.Writer) error {
	found, err := getStatuses(ctx, client, namespace, o.name)
	if err != nil {
		return err
	}
	err = o.print(out, found.object(), func(w io.Writer) error {
		if len(found.items) == 0 {
			where := "in namespace " + namespace
			if namespace == metav1.NamespaceAll {
				where = "in any namespace"
			}
			_, err := fmt.Fprintf(problems, "There is no PolicyStatus %s.\n", where)
			return err
		}
		return status.Table(w, found.items, status.Options{
			Namespaces: namespace == metav1.NamespaceAll, Wide: o.form == outputWide, Now: o.clock.Now(),
		})
	})
	if err != nil {
		return err
	}
	return exitError{status.ExitStatus(found.items)}
}

// statuses are objects as this command knows them, and as the API server has
// them, which may know more.
type statuses struct {
	items []v1alpha1.PolicyStatus
	raw   []unstructured.Unstructured
	// one says that it was asked for by name.
	one bool
}

// object is what -o json and yaml print, as kubectl does.
func (s *statuses) object() any {
	if s.one {
		return s.raw[0].Object
	}
	items := make([]any, 0, len(s.raw))
	for i := range s.raw {
		items = append(items, s.raw[i].Object)
	}
	return map[string]any{"apiVersion": "v1", "kind": "List", "metadata": map[string]any{}, "items": items}
}

// getStatuses returns the one of that name, or without a name all that are in
// the namespace.
func getStatuses(ctx context.Context, client dynamic.Interface, namespace, name string) (*statuses, error) {
	resource := client.Resource(schema.GroupVersionResource{
		Group: "policygate.io", Version: "v1alpha1", Resource: "policystatuses",
	}).Namespace(namespace)
	found := &statuses{one: name != ""}
	if found.one {
		object, err := resource.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, unreadable(err, namespace, name)
		}
		found.raw = append(found.raw, *object)
	} else {
		list, err := resource.List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, unreadable(err, namespace, name)
		}
		found.raw = list.Items
	}
	found.items = make([]v1alpha1.PolicyStatus, len(found.raw))
	for i := range found.raw {
		object := &found.raw[i]
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &found.items[i]); err != nil {
			return nil, fmt.Errorf("read PolicyStatus %s/%s: %w", object.GetNamespace(), object.GetName(), err)
		}
	}
	return found, nil
}

// unreadable says what to do about an error of the API.
func unreadable(err error, namespace, name string) error {
	err = fmt.Errorf("get PolicyStatus: %w", err)
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w (the ClusterRole %s allows it, which the ClusterRole view includes)", err, viewRole)
	case apierrors.IsNotFound(err) && apierrors.IsUnexpectedServerError(err): // of a path that it does not serve
		return fmt.Errorf("%w (the cluster has no such kind: is Policy Gate installed, and as new as this command?)", err)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("there is no PolicyStatus %s in namespace %s: is there a NetworkPolicy of that name, and does the manager run? See kubectl policygate doctor",
			name, namespace)
	}
	return err
}

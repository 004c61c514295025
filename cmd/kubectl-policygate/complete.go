// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// completerName is the executable that kubectl asks to complete the
	// arguments of a plugin.
	completerName = "kubectl_complete-policygate"
	// completeTimeout bounds a completion: a person waits at the prompt.
	completeTimeout = 3 * time.Second
)

const completionHelp = `Prints the script that completes "kubectl-policygate" in a shell.

"kubectl policygate" is completed by kubectl's own script, which asks the
executable ` + completerName + `. That is this one by another name:

  ln -s "$(command -v kubectl-policygate)" /usr/local/bin/` + completerName + `
`

// addPluginCompletion says in the completion command's help what kubectl needs.
func addPluginCompletion(root *cobra.Command) {
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Short, cmd.Long = "Print the completion script of a shell", completionHelp
		}
	}
}

// completer completes an argument or a flag's value.
type completer = func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective)

// completeFlag has the flag's values completed. It fails only for a flag that
// is not there, which a test would see.
func completeFlag(cmd *cobra.Command, name string, by completer) {
	if err := cmd.RegisterFlagCompletionFunc(name, by); err != nil {
		panic(err)
	}
}

// words completes to the given ones.
func words(all ...string) completer {
	return cobra.FixedCompletions(all, cobra.ShellCompDirectiveNoFileComp)
}

// names completes to what list returns, nothing if the cluster does not answer.
func (k *kubeconfig) names(ctx context.Context, list func(ctx context.Context, c kubernetes.Interface, namespace string) []string) []cobra.Completion {
	ctx, cancel := context.WithTimeout(ctx, completeTimeout)
	defer cancel()
	config, namespace, err := k.load()
	if err != nil {
		return nil
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil
	}
	found := list(ctx, client, namespace)
	slices.Sort(found)
	return found
}

func (k *kubeconfig) namespaces(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return k.names(cmd.Context(), func(ctx context.Context, c kubernetes.Interface, _ string) (out []string) {
		if all, err := c.CoreV1().Namespaces().List(ctx, metav1.ListOptions{}); err == nil {
			for i := range all.Items {
				out = append(out, all.Items[i].Name)
			}
		}
		return out
	}), cobra.ShellCompDirectiveNoFileComp
}

func pods(ctx context.Context, c kubernetes.Interface, namespace string) (out []string) {
	if all, err := c.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{}); err == nil {
		for i := range all.Items {
			out = append(out, all.Items[i].Name)
		}
	}
	return out
}

func policies(ctx context.Context, c kubernetes.Interface, namespace string) (out []string) {
	if all, err := c.NetworkingV1().NetworkPolicies(namespace).List(ctx, metav1.ListOptions{}); err == nil {
		for i := range all.Items {
			out = append(out, all.Items[i].Name)
		}
	}
	return out
}

// podArgs completes the first n arguments to Pods; a port may follow the last.
func (k *kubeconfig) podArgs(n int) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		switch {
		case len(args) >= n:
			return nil, cobra.ShellCompDirectiveNoFileComp
		case len(args) == n-1:
			return k.names(cmd.Context(), pods), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		}
		return k.names(cmd.Context(), pods), cobra.ShellCompDirectiveNoFileComp
	}
}

// policyArg completes one argument to NetworkPolicies.
func (k *kubeconfig) policyArg(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return k.names(cmd.Context(), policies), cobra.ShellCompDirectiveNoFileComp
}

// explainable completes one argument to Pods and NetworkPolicies.
func (k *kubeconfig) explainable(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return k.names(cmd.Context(), func(ctx context.Context, c kubernetes.Interface, namespace string) (out []string) {
		for _, name := range pods(ctx, c, namespace) {
			out = append(out, kindPod+"/"+name)
		}
		for _, name := range policies(ctx, c, namespace) {
			out = append(out, kindPolicy+"/"+name)
		}
		return out
	}), cobra.ShellCompDirectiveNoFileComp
}

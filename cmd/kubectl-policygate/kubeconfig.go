// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// kubeconfig is how to reach the cluster, by kubectl's own flags.
type kubeconfig struct {
	clientcmd.ClientConfig
}

// bind adds the flags to all commands.
func (k *kubeconfig) bind(root *cobra.Command) {
	flags := root.PersistentFlags()
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	flags.StringVar(&rules.ExplicitPath, "kubeconfig", "", "Path of the kubeconfig to use.")
	overrides := &clientcmd.ConfigOverrides{}
	clientcmd.BindOverrideFlags(overrides, flags, clientcmd.RecommendedConfigOverrideFlags(""))
	k.ClientConfig = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	completeFlag(root, "namespace", k.namespaces)
}

// load returns the client's configuration and the namespace of the flags or of
// the kubeconfig.
func (k *kubeconfig) load() (config *rest.Config, namespace string, err error) {
	config, err = k.ClientConfig.ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("read the kubeconfig: %w", err)
	}
	namespace, _, err = k.Namespace()
	if err != nil {
		return nil, "", fmt.Errorf("read the kubeconfig: %w", err)
	}
	return config, namespace, nil
}

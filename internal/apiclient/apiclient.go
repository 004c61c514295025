// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package apiclient says how what runs in a Pod reaches the API server: as
// whom, and by connections that are begun anew if they were begun too early.
//
// It makes no clients and knows no objects: the mains do.
package apiclient

import (
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Config returns how to reach the API server: by the kubeconfig, or as the
// Pod's ServiceAccount if that is empty.
func Config(kubeconfig string) (*rest.Config, error) {
	load := rest.InClusterConfig
	if kubeconfig != "" {
		load = func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", kubeconfig) }
	}
	config, err := load()
	if err != nil {
		return nil, err
	}
	config.UserAgent = rest.DefaultKubernetesUserAgent()
	Redial(config)
	return config, nil
}

// Redial has config's connections begun anew, see Dialer, in place of whatever
// made them before. Clients that are made of a config with a dialer share
// connections only if they share an HTTP client.
func Redial(config *rest.Config) {
	config.Dial = NewDialer().DialContext
}

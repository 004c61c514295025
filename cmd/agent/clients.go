// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/policygate/policygate/internal/apiclient"
)

// clients are those of the two groups of the API that the agent uses.
// client-go's clientset would do, but it registers every type of Kubernetes as
// it starts, which keeps 16 MiB more of the binary in the memory of each node.
type clients struct {
	// coreV1 decodes ConfigMaps, no other objects.
	coreV1 *rest.RESTClient
	// discoveryV1 decodes EndpointSlices.
	discoveryV1 *rest.RESTClient
}

// newClients returns clients that share config's connections.
func newClients(config *rest.Config) (clients, error) {
	transport, err := rest.HTTPClientFor(config)
	if err != nil {
		return clients{}, err
	}
	codecs := serializer.NewCodecFactory(newScheme()).WithoutConversion()
	clientOf := func(path string, version schema.GroupVersion) (*rest.RESTClient, error) {
		c := rest.CopyConfig(config)
		c.APIPath, c.GroupVersion, c.NegotiatedSerializer = path, &version, codecs
		client, err := rest.RESTClientForConfigAndClient(c, transport)
		if err != nil {
			return nil, fmt.Errorf("client of %s: %w", version, err)
		}
		return client, nil
	}
	var c clients
	if c.coreV1, err = clientOf("/api", corev1.SchemeGroupVersion); err != nil {
		return clients{}, err
	}
	if c.discoveryV1, err = clientOf("/apis", discoveryv1.SchemeGroupVersion); err != nil {
		return clients{}, err
	}
	return c, nil
}

// newScheme returns the types that the agent reads.
func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	s.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.ConfigMap{}, &corev1.ConfigMapList{})
	s.AddKnownTypes(discoveryv1.SchemeGroupVersion, &discoveryv1.EndpointSlice{}, &discoveryv1.EndpointSliceList{})
	// Watch events, options and the statuses that tell errors.
	metav1.AddToGroupVersion(s, corev1.SchemeGroupVersion)
	metav1.AddToGroupVersion(s, discoveryv1.SchemeGroupVersion)
	return s
}

// clientConfig returns how the agent reaches the API server, see
// apiclient.Config.
func clientConfig(kubeconfig string) (*rest.Config, error) {
	config, err := apiclient.Config(kubeconfig)
	if err != nil {
		return nil, err
	}
	// A node's 110 Pods may be released at once, with a patch each; the
	// default of 5 a second would hold the last for 20 s.
	config.QPS, config.Burst = 50, 200
	return config, nil
}

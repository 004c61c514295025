// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// CachedNamespaces are the Namespaces of a cache.
type CachedNamespaces struct {
	// Reader reads from memory: a manager's cache, or its client. One that
	// asks the API server would do so for each Pod that is created.
	Reader client.Reader
}

var _ Namespaces = CachedNamespaces{}

// Annotations implements Namespaces. It returns an error while the cache has
// not started.
func (c CachedNamespaces) Annotations(ctx context.Context, name string) (map[string]string, bool, error) {
	var ns corev1.Namespace
	switch err := c.Reader.Get(ctx, types.NamespacedName{Name: name}, &ns); {
	case apierrors.IsNotFound(err):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	}
	return ns.Annotations, true, nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"path/filepath"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Hub says where the hub's replicas are found, and by what they and who speaks
// to them prove themselves to each other. It is a part of a command line.
type Hub struct {
	// Namespace is what Policy Gate is installed in.
	Namespace string
	// Service is the hub's; its EndpointSlices say where the replicas are.
	Service string
	// CAConfigMap is the name of the ConfigMap with the certificates to trust.
	CAConfigMap string
	// TokenFile holds the token that is sent.
	TokenFile string
}

// DefaultHub returns that of config/default.
func DefaultHub() Hub {
	return Hub{ //nolint:gosec // The token file is a path, not a credential.
		Namespace:   "policygate-system",
		Service:     "policygate-hub",
		CAConfigMap: "policygate-ca",
		TokenFile:   "/var/run/secrets/policygate/token",
	}
}

// AddFlags adds the flags that set h, with h's values as defaults.
func (h *Hub) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&h.Namespace, "namespace", h.Namespace,
		"Namespace that Policy Gate is installed in. Nothing is watched in any other.")
	fs.StringVar(&h.Service, "hub-service", h.Service,
		"Service of the manager's hub. Its EndpointSlices are watched to find each replica, and <service>.<namespace>.svc "+
			"is the name that the replicas' certificates must be for.")
	fs.StringVar(&h.CAConfigMap, "ca-configmap", h.CAConfigMap,
		"ConfigMap whose key ca.crt holds the certificates to trust the hub by. It is watched, since the manager rotates them.")
	fs.StringVar(&h.TokenFile, "token-file", h.TokenFile,
		"Projected ServiceAccount token of audience policygate-hub, which proves to the hub who speaks. It is read anew for "+
			"each session, since the kubelet replaces it.")
}

// Validate passes to wrong each flag that is not usable, with its value and what
// would be.
func (h *Hub) Validate(wrong func(flag, value, want string)) {
	if problems := validation.IsDNS1123Label(h.Namespace); len(problems) > 0 {
		wrong("namespace", h.Namespace, "the name of a namespace")
	}
	if problems := validation.IsDNS1035Label(h.Service); len(problems) > 0 {
		wrong("hub-service", h.Service, "the name of a Service")
	}
	if problems := validation.IsDNS1123Subdomain(h.CAConfigMap); len(problems) > 0 {
		wrong("ca-configmap", h.CAConfigMap, "the name of a ConfigMap")
	}
	if !filepath.IsAbs(h.TokenFile) {
		wrong("token-file", h.TokenFile, "an absolute path")
	}
}

// ServerName is the name that the replicas' certificates are for.
func (h *Hub) ServerName() string { return h.Service + "." + h.Namespace + ".svc" }

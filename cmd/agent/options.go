// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/policygate/policygate/agent/serve"
	"github.com/policygate/policygate/api/v1alpha1"
)

// options are what the command line says.
type options struct {
	NodeName           string
	Namespace          string
	HubService         string
	CAConfigMap        string
	TokenFile          string
	ConditionType      string
	Kubeconfig         string
	MetricsBindAddress string
	XtablesLock        string
	OVSRunDir          string
}

// newOptions returns the defaults. getenv is os.Getenv.
func newOptions(getenv func(string) string) *options {
	return &options{ //nolint:gosec // The token file is a path, not a credential.
		NodeName:           getenv("NODE_NAME"),
		Namespace:          "policygate-system",
		HubService:         "policygate-hub",
		CAConfigMap:        "policygate-ca",
		TokenFile:          "/var/run/secrets/policygate/token",
		ConditionType:      string(v1alpha1.ConditionProgrammed),
		MetricsBindAddress: "127.0.0.1:9445",
		XtablesLock:        "/run/xtables.lock",
	}
}

// AddFlags adds the flags that set o, with o's values as defaults.
func (o *options) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.NodeName, "node-name", o.NodeName,
		"Name of the node that this agent runs on, for its logs; defaults to the environment's NODE_NAME. "+
			"The manager believes the token alone.")
	fs.StringVar(&o.Namespace, "namespace", o.Namespace,
		"Namespace that Policy Gate is installed in. Nothing is watched in any other.")
	fs.StringVar(&o.HubService, "hub-service", o.HubService,
		"Service of the manager's hub. Its EndpointSlices are watched to find each replica, and <service>.<namespace>.svc "+
			"is the name that the replicas' certificates must be for.")
	fs.StringVar(&o.CAConfigMap, "ca-configmap", o.CAConfigMap,
		"ConfigMap whose key ca.crt holds the certificates to trust the hub by. It is watched, since the manager rotates them.")
	fs.StringVar(&o.TokenFile, "token-file", o.TokenFile,
		"Projected ServiceAccount token of audience policygate-hub, which proves the node to the hub. It is read anew for "+
			"each session, since the kubelet replaces it.")
	fs.StringVar(&o.ConditionType, "condition-type", o.ConditionType,
		"Type of the Pod condition to set. It must be the one that the manager injects as readiness gate.")
	fs.StringVar(&o.Kubeconfig, "kubeconfig", o.Kubeconfig,
		"Kubeconfig to reach the API server by, to run outside of a Pod. Empty: the Pod's ServiceAccount.")
	fs.StringVar(&o.MetricsBindAddress, "metrics-bind-address", o.MetricsBindAddress,
		"Where to serve /metrics, /healthz and /readyz; 0 serves none of them. The default is the node's loopback, which the "+
			"kubelet's probes reach and other hosts do not, because the agent is on the node's network.")
	fs.StringVar(&o.XtablesLock, "xtables-lock", o.XtablesLock,
		"Lock file of iptables on the node, watched while something is pending: who writes the legacy tables closes it, and "+
			"nothing else tells. Without it, or if it is empty, changes of them are found by the clock.")
	fs.StringVar(&o.OVSRunDir, "ovs-run-dir", o.OVSRunDir,
		"Open vSwitch's run directory on the node, with db.sock, ovs-vswitchd.pid and its control socket, where OVN enforces "+
			"policies, as Kube-OVN's: /run/openvswitch. Empty: no flow is asked of OVN.")
}

// Validate returns all that is wrong with o, each naming its flag, or nil.
func (o *options) Validate() error {
	var errs []error
	wrong := func(flag, value, want string) {
		errs = append(errs, fmt.Errorf("--%s %q: want %s", flag, value, want))
	}
	if problems := validation.IsDNS1123Subdomain(o.NodeName); len(problems) > 0 {
		wrong("node-name", o.NodeName, "the name of a node")
	}
	if problems := validation.IsDNS1123Label(o.Namespace); len(problems) > 0 {
		wrong("namespace", o.Namespace, "the name of a namespace")
	}
	if problems := validation.IsDNS1035Label(o.HubService); len(problems) > 0 {
		wrong("hub-service", o.HubService, "the name of a Service")
	}
	if problems := validation.IsDNS1123Subdomain(o.CAConfigMap); len(problems) > 0 {
		wrong("ca-configmap", o.CAConfigMap, "the name of a ConfigMap")
	}
	if !filepath.IsAbs(o.TokenFile) {
		wrong("token-file", o.TokenFile, "an absolute path")
	}
	if problems := validation.IsQualifiedName(o.ConditionType); len(problems) > 0 {
		wrong("condition-type", o.ConditionType, "the type of a condition, such as "+string(v1alpha1.ConditionProgrammed))
	}
	if o.XtablesLock != "" && !filepath.IsAbs(o.XtablesLock) {
		wrong("xtables-lock", o.XtablesLock, "an absolute path, or nothing")
	}
	if o.OVSRunDir != "" && !filepath.IsAbs(o.OVSRunDir) {
		wrong("ovs-run-dir", o.OVSRunDir, "an absolute path, or nothing")
	}
	if !isBindAddress(o.MetricsBindAddress) {
		wrong("metrics-bind-address", o.MetricsBindAddress, "an address and a port, such as 127.0.0.1:9445 or :9445, or 0")
	}
	return errors.Join(errs...)
}

// isBindAddress reports whether a is something that a server can bind to, or
// turns it off.
func isBindAddress(a string) bool {
	if a == serve.Off {
		return true
	}
	_, port, err := net.SplitHostPort(a)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

// serverName is what the hub's certificates are for.
func (o *options) serverName() string { return o.HubService + "." + o.Namespace + ".svc" }

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/policygate/policygate/agent/serve"
	"github.com/policygate/policygate/agent/session"
	"github.com/policygate/policygate/api/v1alpha1"
)

// options are what the command line says.
type options struct {
	NodeName           string
	Hub                session.Hub
	ConditionType      string
	Kubeconfig         string
	MetricsBindAddress string
	XtablesLock        string
	OVSRunDir          string
}

// newOptions returns the defaults. getenv is os.Getenv.
func newOptions(getenv func(string) string) *options {
	return &options{
		NodeName:           getenv("NODE_NAME"),
		Hub:                session.DefaultHub(),
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
	o.Hub.AddFlags(fs)
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
	o.Hub.Validate(wrong)
	if problems := validation.IsQualifiedName(o.ConditionType); len(problems) > 0 {
		wrong("condition-type", o.ConditionType, "the type of a condition, such as "+string(v1alpha1.ConditionProgrammed))
	}
	if o.XtablesLock != "" && !filepath.IsAbs(o.XtablesLock) {
		wrong("xtables-lock", o.XtablesLock, "an absolute path, or nothing")
	}
	if o.OVSRunDir != "" && !filepath.IsAbs(o.OVSRunDir) {
		wrong("ovs-run-dir", o.OVSRunDir, "an absolute path, or nothing")
	}
	if !serve.IsAddress(o.MetricsBindAddress) {
		wrong("metrics-bind-address", o.MetricsBindAddress, "an address and a port, such as 127.0.0.1:9445 or :9445, or 0")
	}
	return errors.Join(errs...)
}

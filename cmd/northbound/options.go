// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/policygate/policygate/agent/serve"
	"github.com/policygate/policygate/agent/session"
	"github.com/policygate/policygate/internal/ovs/ovsdb"
)

// options are what the command line says.
type options struct {
	Northbound         []string
	Key                string
	Certificate        string
	CA                 string
	Services           bool
	Hub                session.Hub
	Kubeconfig         string
	MetricsBindAddress string
}

// newOptions returns the defaults.
func newOptions() *options {
	return &options{Hub: session.DefaultHub(), MetricsBindAddress: ":9445"}
}

// AddFlags adds the flags that set o, with o's values as defaults.
func (o *options) AddFlags(fs *pflag.FlagSet) {
	fs.StringSliceVar(&o.Northbound, "northbound", o.Northbound,
		"Where a server of OVN's northbound database is: tcp:HOST:PORT, ssl:HOST:PORT or unix:PATH. "+
			"Once for each server of a cluster of them, of which the leader is asked. Required.")
	fs.StringVar(&o.Key, "northbound-key", o.Key,
		"Private key to prove itself by to servers at ssl: addresses, in PEM. It is read anew for each connection, as the next two are.")
	fs.StringVar(&o.Certificate, "northbound-certificate", o.Certificate,
		"Certificate for that key, in PEM.")
	fs.StringVar(&o.CA, "northbound-ca", o.CA,
		"Certificate of who signed those of the servers at ssl: addresses, in PEM.")
	fs.BoolVar(&o.Services, "services", o.Services,
		"Watch Services and EndpointSlices, and say of which the database lacks the ClusterIP beside the Pods behind it. "+
			"For Kube-OVN up to 1.15, which puts it there; needs the component config/kube-ovn/services.")
	o.Hub.AddFlags(fs)
	fs.StringVar(&o.Kubeconfig, "kubeconfig", o.Kubeconfig,
		"Kubeconfig to reach the API server by, to run outside of a Pod. Empty: the Pod's ServiceAccount.")
	fs.StringVar(&o.MetricsBindAddress, "metrics-bind-address", o.MetricsBindAddress,
		"Where to serve /metrics, /healthz and /readyz; 0 serves none of them.")
}

// Validate returns all that is wrong with o, each naming its flag, or nil.
func (o *options) Validate() error {
	var errs []error
	wrong := func(flag, value, want string) {
		errs = append(errs, fmt.Errorf("--%s %q: want %s", flag, value, want))
	}
	if len(o.Northbound) == 0 {
		wrong("northbound", "", "the address of a server, such as tcp:ovn-nb.kube-system.svc:6641")
	}
	secure := false
	for _, address := range o.Northbound {
		kind, where, _ := strings.Cut(address, ":")
		secure = secure || kind == "ssl"
		if !isServer(kind, where) {
			wrong("northbound", address, "tcp:HOST:PORT, ssl:HOST:PORT or unix:PATH")
		}
	}
	for flag, file := range map[string]string{"northbound-key": o.Key, "northbound-certificate": o.Certificate, "northbound-ca": o.CA} {
		if file == "" && secure {
			wrong(flag, file, "a file, since there are addresses that begin with ssl:")
		}
		if file != "" && !filepath.IsAbs(file) {
			wrong(flag, file, "an absolute path")
		}
	}
	o.Hub.Validate(wrong)
	if !serve.IsAddress(o.MetricsBindAddress) {
		wrong("metrics-bind-address", o.MetricsBindAddress, "an address and a port, such as 127.0.0.1:9445 or :9445, or 0")
	}
	return errors.Join(errs...)
}

// isServer reports whether it can be the address of a server of a database.
func isServer(kind, where string) bool {
	switch kind {
	case "tcp", "ssl":
		return isHostPort(where)
	case "unix":
		return filepath.IsAbs(where)
	}
	return false
}

// isHostPort reports whether a is a host and a port.
func isHostPort(a string) bool {
	host, port, err := net.SplitHostPort(a)
	if err != nil || host == "" {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

// tls returns the files for ssl: addresses, nil if there is none.
func (o *options) tls() *ovsdb.TLS {
	if o.Key == "" || o.Certificate == "" || o.CA == "" {
		return nil
	}
	return &ovsdb.TLS{Certificate: o.Certificate, PrivateKey: o.Key, CA: o.CA}
}

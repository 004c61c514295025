// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/policygate/policygate/agent/session"
	"github.com/policygate/policygate/internal/ovs/ovsdb"
)

const someServer = "--northbound=tcp:ovn-nb:6641"

func parsed(t *testing.T, args ...string) *options {
	t.Helper()
	o := newOptions()
	fs := pflag.NewFlagSet("northbound", pflag.ContinueOnError)
	o.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestFlags(t *testing.T) {
	t.Parallel()
	defaults := func(change func(*options)) *options {
		o := newOptions()
		o.Northbound = []string{"tcp:ovn-nb:6641"}
		change(o)
		return o
	}
	for name, tc := range map[string]struct {
		args []string
		want *options
	}{
		"none but the required one": {want: &options{
			Northbound: []string{"tcp:ovn-nb:6641"}, Hub: session.DefaultHub(),
			MetricsBindAddress: ":9445",
		}},
		"several servers": {
			args: []string{"--northbound=tcp:[fd00::1]:6641", "--northbound=unix:/run/ovn/ovnnb_db.sock"},
			want: defaults(func(o *options) {
				o.Northbound = append(o.Northbound, "tcp:[fd00::1]:6641", "unix:/run/ovn/ovnnb_db.sock")
			}),
		},
		"TLS": {
			args: []string{"--northbound=ssl:ovn-nb:6641", "--northbound-key=/k", "--northbound-certificate=/c", "--northbound-ca=/a"},
			want: defaults(func(o *options) {
				o.Northbound, o.Key, o.Certificate, o.CA = append(o.Northbound, "ssl:ovn-nb:6641"), "/k", "/c", "/a"
			}),
		},
		"--token-file":           {args: []string{"--token-file=/t"}, want: defaults(func(o *options) { o.Hub.TokenFile = "/t" })},
		"--kubeconfig":           {args: []string{"--kubeconfig=/k"}, want: defaults(func(o *options) { o.Kubeconfig = "/k" })},
		"--metrics-bind-address": {args: []string{"--metrics-bind-address=0"}, want: defaults(func(o *options) { o.MetricsBindAddress = "0" })},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := parsed(t, append([]string{someServer}, tc.args...)...)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if err := got.Validate(); err != nil {
				t.Errorf("Validate: %v", err)
			}
		})
	}
}

func TestValidateNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no server":               {want: `--northbound "": want the address`},
		"a server without a port": {args: []string{"--northbound=tcp:ovn-nb"}, want: `--northbound "tcp:ovn-nb": want tcp:HOST:PORT`},
		"a server without a host": {args: []string{"--northbound=tcp::6641"}, want: `--northbound "tcp::6641"`},
		"another protocol":        {args: []string{"--northbound=http://x:1"}, want: `--northbound "http://x:1"`},
		"a relative socket":       {args: []string{"--northbound=unix:nb.sock"}, want: `--northbound "unix:nb.sock"`},
		"TLS without a key":       {args: []string{"--northbound=ssl:a:1", "--northbound-certificate=/c", "--northbound-ca=/a"}, want: `--northbound-key "": want a file`},
		"a relative key":          {args: []string{someServer, "--northbound-key=k"}, want: `--northbound-key "k": want an absolute path`},
		"a relative token":        {args: []string{someServer, "--token-file=t"}, want: `--token-file "t"`},
		"no port for metrics":     {args: []string{someServer, "--metrics-bind-address=x"}, want: `--metrics-bind-address "x"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := parsed(t, tc.args...).Validate()
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func TestTLSNeedsAllItsFiles(t *testing.T) {
	t.Parallel()
	if got := parsed(t, someServer).tls(); got != nil {
		t.Errorf("%v without files, want nil", got)
	}
	got := parsed(t, someServer, "--northbound-key=/k", "--northbound-certificate=/c", "--northbound-ca=/a").tls()
	if diff := cmp.Diff(&ovsdb.TLS{Certificate: "/c", PrivateKey: "/k", CA: "/a"}, got); diff != "" {
		t.Error(diff)
	}
}

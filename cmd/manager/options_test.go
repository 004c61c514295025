// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/policygate/policygate/controllers/hub"
)

func TestOptionsParse(t *testing.T) {
	cases := map[string]struct {
		flag string
		want func(o *options)
	}{
		"the defaults need no flag but the image": {"", func(*options) {}},
		"namespace":                 {"--namespace=gates", func(o *options) { o.namespace = "gates" }},
		"hub-bind-address":          {"--hub-bind-address=127.0.0.1:7000", func(o *options) { o.hubAddress = "127.0.0.1:7000" }},
		"trace-bind-address":        {"--trace-bind-address=:9002", func(o *options) { o.traceAddress = ":9002" }},
		"traces off":                {"--trace-bind-address=0", func(o *options) { o.traceAddress = "0" }},
		"webhook-port":              {"--webhook-port=8443", func(o *options) { o.webhookPort = 8443 }},
		"health-probe-bind-address": {"--health-probe-bind-address=:9000", func(o *options) { o.healthAddress = ":9000" }},
		"health probes off":         {"--health-probe-bind-address=0", func(o *options) { o.healthAddress = "0" }},
		"metrics-bind-address":      {"--metrics-bind-address=:9001", func(o *options) { o.metricsAddress = ":9001" }},
		"metrics off":               {"--metrics-bind-address=0", func(o *options) { o.metricsAddress = "0" }},
		"hold-image":                {"--hold-image=other", func(o *options) { o.holdImage = "other" }},
		"condition-type":            {"--condition-type=example.com/Ready", func(o *options) { o.conditionType = "example.com/Ready" }},
		"families":                  {"--families=v4", func(o *options) { o.families = "v4" }},
		"max-foreign-nodes":         {"--max-foreign-nodes=0", func(o *options) { o.maxForeignNodes = 0 }},
		"watch-services":            {"--watch-services", func(o *options) { o.watchServices = true }},
		"kube-ovn":                  {"--kube-ovn", func(o *options) { o.kubeOVN = true }},
		"northbound account":        {"--northbound-service-account=ovn", func(o *options) { o.northbound = "ovn" }},
		"startup-taint":             {"--startup-taint=example.com/late", func(o *options) { o.startupTaint = "example.com/late" }},
		"node-not-ready-limit":      {"--node-not-ready-limit=5s", func(o *options) { o.notReadyLimit = 5 * time.Second }},
		"node-stalled-after":        {"--node-stalled-after=30s", func(o *options) { o.stalledAfter = 30 * time.Second }},
		"default-timeout":           {"--default-timeout=2m", func(o *options) { o.defaultTimeout = 2 * time.Minute }},
		"default-on-timeout":        {"--default-on-timeout=fail", func(o *options) { o.defaultOnTimeout = "fail" }},
		"leader-elect":              {"--leader-elect=false", func(o *options) { o.leaderElect = false }},
		"shutdown-delay":            {"--shutdown-delay=0s", func(o *options) { o.shutdownDelay = 0 }},
		"authority-lifetime":        {"--authority-lifetime=20000h", func(o *options) { o.authorityLifetime = 20000 * time.Hour }},
		"certificate-lifetime":      {"--certificate-lifetime=100h", func(o *options) { o.certificateLifetime = 100 * time.Hour }},
		"certificate-overlap":       {"--certificate-overlap=1s", func(o *options) { o.certificateOverlap = time.Second }},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			args := []string{"--hold-image=policygate:test"}
			if tc.flag != "" {
				args = append(args, tc.flag)
			}
			c, flags := newCommand(args)
			if err := c.parse(flags, args); err != nil {
				t.Fatal(err)
			}
			want := newOptions()
			want.holdImage = "policygate:test"
			tc.want(want)
			if diff := cmp.Diff(want, c, cmp.AllowUnexported(options{})); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOptionsThatAreNotUsable(t *testing.T) {
	cases := map[string]struct{ flag, want string }{
		"a namespace that cannot be":       {"--namespace=A", "--namespace=A"},
		"an address without a port":        {"--hub-bind-address=localhost", "--hub-bind-address=localhost"},
		"a hub that is off":                {"--hub-bind-address=0", "--hub-bind-address=0"},
		"a trace address without a port":   {"--trace-bind-address=x", "--trace-bind-address=x"},
		"a port out of range":              {"--webhook-port=70000", "--webhook-port=70000"},
		"a health address without a port":  {"--health-probe-bind-address=x", "--health-probe-bind-address=x"},
		"a metrics address without a port": {"--metrics-bind-address=x", "--metrics-bind-address=x"},
		"no image":                         {"--hold-image=", "--hold-image"},
		"a condition that is no name":      {"--condition-type=a/b/c", "--condition-type=a/b/c"},
		"a family that is not known":       {"--families=v5", "auto, v4, v6 or both"},
		"a negative number of nodes":       {"--max-foreign-nodes=-1", "--max-foreign-nodes=-1"},
		"a northbound account of agents":   {"--northbound-service-account=policygate-agent", "a ServiceAccount other than policygate-agent"},
		"a northbound account of no name":  {"--northbound-service-account=", "--northbound-service-account="},
		"a taint that is no name":          {"--startup-taint=a/b/c", "--startup-taint=a/b/c"},
		"a negative limit of readiness":    {"--node-not-ready-limit=-1s", "0s to 1h0m0s"},
		"a stall that is none yet":         {"--node-stalled-after=29s", "30s to 1h0m0s"},
		"a stall beyond the limit":         {"--node-stalled-after=61m", "30s to 1h0m0s"},
		"a timeout beyond the limit":       {"--default-timeout=11m", "1s to 10m0s"},
		"an outcome that is not known":     {"--default-on-timeout=stop", "start or fail"},
		"a negative delay":                 {"--shutdown-delay=-1s", "0s to 5m0s"},
		"a delay that nothing needs":       {"--shutdown-delay=1h", "0s to 5m0s"},
		"an overlap that cannot be seen":   {"--certificate-overlap=999ms", "at least 1s"},
		"an overlap beyond a third":        {"--certificate-overlap=720h", "less than a third of --certificate-lifetime, 2160h"},
		"a short certificate":              {"--certificate-lifetime=72h", "--certificate-overlap=24h"},
		"a certificate beyond a third":     {"--certificate-lifetime=20000h", "less than a third of --authority-lifetime, 43800h"},
		"a short authority":                {"--authority-lifetime=6480h", "--certificate-lifetime=2160h"},
		"a flag that is not known":         {"--no-such-flag", "no-such-flag"},
		"an argument":                      {"release", `argument "release"`},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			if got := run([]string{"--hold-image=policygate:test", tc.flag}, &stderr); got != 2 {
				t.Errorf("exit status %d, want 2", got)
			}
			if !strings.Contains(stderr.String(), tc.want) {
				t.Errorf("stderr = %q, want %q in it", stderr.String(), tc.want)
			}
		})
	}
}

func TestAccounts(t *testing.T) {
	cases := map[string]struct {
		args []string
		want hub.Accounts
	}{
		"without Kube-OVN there is none of a northbound database": {
			nil, hub.Accounts{Agent: "system:serviceaccount:policygate-system:policygate-agent"},
		},
		"nor if it is named": {
			[]string{"--northbound-service-account=ovn"}, hub.Accounts{Agent: "system:serviceaccount:policygate-system:policygate-agent"},
		},
		"with it there is": {
			[]string{"--kube-ovn"},
			hub.Accounts{
				Agent:      "system:serviceaccount:policygate-system:policygate-agent",
				Northbound: "system:serviceaccount:policygate-system:policygate-northbound",
			},
		},
		"both are of the manager's namespace": {
			[]string{"--kube-ovn", "--namespace=gates", "--northbound-service-account=ovn"},
			hub.Accounts{Agent: "system:serviceaccount:gates:policygate-agent", Northbound: "system:serviceaccount:gates:ovn"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			o := newOptions()
			flags := pflag.NewFlagSet("", pflag.ContinueOnError)
			o.addFlags(flags)
			if err := o.parse(flags, append(tc.args, "--hold-image=i")); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, o.accounts()); diff != "" {
				t.Errorf("accounts (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReleaseHeldParse(t *testing.T) {
	args := []string{"release-held", "--kubeconfig=/k", "--context=c", "--condition-type=example.com/Ready", "--timeout=1m"}
	c, flags := newCommand(args)
	if err := c.parse(flags, args); err != nil {
		t.Fatal(err)
	}
	want := &releaseHeld{kubeconfig: "/k", context: "c", conditionType: "example.com/Ready", timeout: time.Minute}
	if diff := cmp.Diff(want, c, cmp.AllowUnexported(releaseHeld{})); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
	for _, args := range [][]string{{"release-held", "now"}, {"release-held", "--timeout=0s"}} {
		c, flags := newCommand(args)
		if err := c.parse(flags, args); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
}

func TestEveryFlagSaysWhy(t *testing.T) {
	for _, args := range [][]string{nil, {releaseHeldName}} {
		_, flags := newCommand(args)
		flags.VisitAll(func(f *pflag.Flag) {
			if len(f.Usage) < 40 || !strings.HasSuffix(f.Usage, ".") {
				t.Errorf("--%s has no reason in its help: %q", f.Name, f.Usage)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, line := range []string{
		"--hold-image=i", "--hold-image=i --default-timeout=10m --default-on-timeout=fail --families=v6", "--webhook-port=0",
		"--hold-image=i --hub-bind-address=[::1]:70000", "--hold-image=i --metrics-bind-address=0 --max-foreign-nodes=-1",
		"release-held --timeout=1ns", "release-held twice", "--namespace=\x00", "--", "-h", "",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, " ")
		c, flags := newCommand(args)
		flags.SetOutput(io.Discard)
		if c.parse(flags, args) != nil {
			return
		}
		switch c := c.(type) {
		case *options:
			// What is taken is what everything behind it takes.
			if err := c.injection().Validate(); err != nil {
				t.Fatalf("%q is taken, and the webhook cannot use it: %v", args, err)
			}
			if c.hubAddress == addressOff || c.maxForeignNodes < 0 || c.webhookPort < 1 || c.webhookPort > 65535 {
				t.Fatalf("%q is taken as %+v", args, c)
			}
		case *releaseHeld:
			if c.timeout <= 0 {
				t.Fatalf("%q is taken as %+v", args, c)
			}
		}
	})
}

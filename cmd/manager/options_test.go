// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
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
		"default-timeout":           {"--default-timeout=2m", func(o *options) { o.defaultTimeout = 2 * time.Minute }},
		"default-on-timeout":        {"--default-on-timeout=fail", func(o *options) { o.defaultOnTimeout = "fail" }},
		"leader-elect":              {"--leader-elect=false", func(o *options) { o.leaderElect = false }},
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
		"a timeout beyond the limit":       {"--default-timeout=11m", "1s to 10m0s"},
		"an outcome that is not known":     {"--default-on-timeout=stop", "start or fail"},
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

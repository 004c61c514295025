// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/policygate/policygate/agent/session"
)

func nodeName(name string) string {
	if name == "NODE_NAME" {
		return "n1"
	}
	return ""
}

func TestFlags(t *testing.T) {
	defaults := func(change func(*options)) *options {
		o := newOptions(nodeName)
		change(o)
		return o
	}
	for name, tc := range map[string]struct {
		args []string
		want *options
	}{
		"none": {want: &options{
			NodeName: "n1", Hub: session.DefaultHub(),
			ConditionType:      "policygate.io/PolicyProgrammed",
			MetricsBindAddress: "127.0.0.1:9445", XtablesLock: "/run/xtables.lock",
		}},
		"--node-name":            {args: []string{"--node-name=n2"}, want: defaults(func(o *options) { o.NodeName = "n2" })},
		"--token-file":           {args: []string{"--token-file=/t"}, want: defaults(func(o *options) { o.Hub.TokenFile = "/t" })},
		"--condition-type":       {args: []string{"--condition-type=x.io/Y"}, want: defaults(func(o *options) { o.ConditionType = "x.io/Y" })},
		"--kubeconfig":           {args: []string{"--kubeconfig=/k"}, want: defaults(func(o *options) { o.Kubeconfig = "/k" })},
		"--metrics-bind-address": {args: []string{"--metrics-bind-address=0"}, want: defaults(func(o *options) { o.MetricsBindAddress = "0" })},
		"--ovs-run-dir":          {args: []string{"--ovs-run-dir=/run/openvswitch"}, want: defaults(func(o *options) { o.OVSRunDir = "/run/openvswitch" })},
		"--xtables-lock":         {args: []string{"--xtables-lock="}, want: defaults(func(o *options) { o.XtablesLock = "" })},
	} {
		t.Run(name, func(t *testing.T) {
			got := newOptions(nodeName)
			fs := pflag.NewFlagSet("agent", pflag.ContinueOnError)
			got.AddFlags(fs)
			if err := fs.Parse(tc.args); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if err := got.Validate(); err != nil {
				t.Errorf("Validate: %v", err)
			}
			fs.VisitAll(func(f *pflag.Flag) {
				if len(f.Usage) < 40 {
					t.Errorf("--%s: help %q does not say why", f.Name, f.Usage)
				}
			})
		})
	}
}

func TestValidateNamesEachWrongFlag(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*options)
		want   []string
	}{
		"no node name":      {change: func(o *options) { o.NodeName = "" }, want: []string{`--node-name "": want the name of a node`}},
		"a relative path":   {change: func(o *options) { o.Hub.TokenFile = "token" }, want: []string{`--token-file "token": want an absolute path`}},
		"a lock file":       {change: func(o *options) { o.XtablesLock = "lock" }, want: []string{`--xtables-lock "lock": want an absolute path`}},
		"OVS' directory":    {change: func(o *options) { o.OVSRunDir = "ovs" }, want: []string{`--ovs-run-dir "ovs": want an absolute path`}},
		"a condition type":  {change: func(o *options) { o.ConditionType = "a b" }, want: []string{`--condition-type "a b": want `}},
		"no port":           {change: func(o *options) { o.MetricsBindAddress = "127.0.0.1" }, want: []string{`--metrics-bind-address "127.0.0.1": want `}},
		"a port too large":  {change: func(o *options) { o.MetricsBindAddress = ":65536" }, want: []string{`--metrics-bind-address ":65536": want `}},
		"several are named": {change: func(o *options) { o.NodeName, o.Hub.TokenFile = "", "" }, want: []string{"--node-name", "--token-file"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOptions(nodeName)
			tc.change(o)
			err := o.Validate()
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q, want one with %q", err, want)
				}
			}
		})
	}
}

func FuzzOptions(f *testing.F) {
	f.Add("n1", "--namespace=gate --metrics-bind-address=0")
	f.Add("", "--node-name=n2 --token-file=t --xtables-lock=")
	f.Add("n\x00", "--hub-service=a.b --condition-type=x/y/z --ca-configmap=")
	f.Add("n1", "--metrics-bind-address=:99999999999999999999 --")
	f.Fuzz(func(t *testing.T, node, line string) {
		o := newOptions(func(string) string { return node })
		fs := pflag.NewFlagSet("agent", pflag.ContinueOnError)
		fs.SetOutput(io.Discard)
		o.AddFlags(fs)
		if fs.Parse(strings.Split(line, " ")) != nil || o.Validate() != nil {
			return
		}
		// What is taken can be a part of names and paths.
		if !filepath.IsAbs(o.Hub.TokenFile) || strings.ContainsAny(o.Hub.ServerName()+o.NodeName, "/ \x00") ||
			strings.Count(o.Hub.ServerName(), ".") != 2 || o.Hub.CAConfigMap == "" {
			t.Fatalf("node %q and %q are taken as %+v", node, line, o)
		}
	})
}

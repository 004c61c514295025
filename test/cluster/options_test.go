// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOptionsValidate(t *testing.T) {
	valid := Options{Name: "a", Nodes: 2, Dir: "/tmp/x", KubeBinary: "/tmp/kube", IPTables: IPTablesNFT}
	for name, tc := range map[string]struct {
		change func(*Options)
		want   string // in the error; empty: none
	}{
		"valid":                    {func(*Options) {}, ""},
		"name with capitals":       {func(o *Options) { o.Name = "Test" }, "name"},
		"name with a slash":        {func(o *Options) { o.Name = "a/b" }, "name"},
		"name too long":            {func(o *Options) { o.Name = strings.Repeat("a", 21) }, "name"},
		"name of 20":               {func(o *Options) { o.Name = strings.Repeat("a", 20) }, ""},
		"name ends with hyphen":    {func(o *Options) { o.Name = "a-" }, "name"},
		"too many nodes":           {func(o *Options) { o.Nodes = maxNodes + 1 }, "nodes"},
		"negative nodes":           {func(o *Options) { o.Nodes = -1 }, "nodes"},
		"unknown iptables":         {func(o *Options) { o.IPTables = "ebtables" }, "iptables"},
		"no binary":                {func(o *Options) { o.KubeBinary = "" }, "KubeBinary"},
		"directory in /run":        {func(o *Options) { o.Dir = "/run/x" }, "below /run"},
		"binary in /var/lib":       {func(o *Options) { o.KubeBinary = "/var/lib/ci/kube" }, "below /var/lib"},
		"directory next to /run":   {func(o *Options) { o.Dir = "/runner/x" }, ""},
		"directory is /var/log":    {func(o *Options) { o.Dir = "/var/log" }, "below /var/log"},
		"several things at a time": {func(o *Options) { o.Nodes, o.IPTables = 0, "x" }, "iptables"},
	} {
		t.Run(name, func(t *testing.T) {
			o := valid
			tc.change(&o)
			err := o.validate()
			if tc.want == "" && err != nil {
				t.Errorf("got error %v, want none", err)
			}
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestOptionsDefaults(t *testing.T) {
	kube := filepath.Join(t.TempDir(), "kube")
	if err := os.WriteFile(kube, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	link := kube + "-link"
	if err := os.Symlink(kube, link); err != nil {
		t.Fatal(err)
	}
	o, err := Options{KubeBinary: link}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.validate(); err != nil {
		t.Errorf("defaults are not valid: %v", err)
	}
	if o.Name != "policygate" || o.Nodes != 2 || o.IPTables != IPTablesNFT || o.KubeBinary != kube || !filepath.IsAbs(o.Dir) || o.Progress == nil {
		t.Errorf("defaults are %+v", o)
	}
	if _, err := (Options{KubeBinary: kube + "-absent"}).withDefaults(); err == nil {
		t.Error("an absent binary is accepted")
	}
}

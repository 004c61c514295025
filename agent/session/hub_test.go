// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

func TestHubFlags(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		args []string
		want Hub
	}{
		"none": {want: Hub{
			Namespace: "policygate-system", Service: "policygate-hub", CAConfigMap: "policygate-ca", TokenFile: "/var/run/secrets/policygate/token",
		}},
		"all": {
			args: []string{"--namespace=gate", "--hub-service=hub", "--ca-configmap=ca", "--token-file=/t"},
			want: Hub{Namespace: "gate", Service: "hub", CAConfigMap: "ca", TokenFile: "/t"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := DefaultHub()
			fs := pflag.NewFlagSet("agent", pflag.ContinueOnError)
			got.AddFlags(fs)
			if err := fs.Parse(tc.args); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if err := wrongIn(&got); err != nil {
				t.Errorf("Validate: %v", err)
			}
		})
	}
}

// wrongIn returns what Validate says, as the commands print it.
func wrongIn(h *Hub) error {
	var errs []error
	h.Validate(func(flag, value, want string) { errs = append(errs, fmt.Errorf("--%s %q: want %s", flag, value, want)) })
	return errors.Join(errs...)
}

func TestHubValidateNamesEachWrongFlag(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*Hub)
		want   []string
	}{
		"a namespace":     {change: func(h *Hub) { h.Namespace = "a.b" }, want: []string{`--namespace "a.b": want `}},
		"a Service":       {change: func(h *Hub) { h.Service = "1x" }, want: []string{`--hub-service "1x": want `}},
		"a ConfigMap":     {change: func(h *Hub) { h.CAConfigMap = "A" }, want: []string{`--ca-configmap "A": want `}},
		"no ConfigMap":    {change: func(h *Hub) { h.CAConfigMap = "" }, want: []string{`--ca-configmap "": want `}},
		"a relative path": {change: func(h *Hub) { h.TokenFile = "token" }, want: []string{`--token-file "token": want an absolute path`}},
		"several":         {change: func(h *Hub) { h.Service, h.TokenFile = "", "" }, want: []string{"--hub-service", "--token-file"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := DefaultHub()
			tc.change(&h)
			err := wrongIn(&h)
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

func TestTheHubIsNamedAsItsService(t *testing.T) {
	t.Parallel()
	h := DefaultHub()
	if got, want := h.ServerName(), "policygate-hub.policygate-system.svc"; got != want {
		t.Errorf("server name %q, want %q", got, want)
	}
}

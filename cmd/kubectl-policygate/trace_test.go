// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

func TestTheCommandLineBecomesAQuestion(t *testing.T) {
	for name, tc := range map[string]struct {
		options traceOptions
		want    tracev1.Question
	}{
		"Pods of the default namespace": {
			options: traceOptions{source: "backup", destination: "mysql:3306", protocol: "tcp"},
			want:    tracev1.Question{Source: "shop/backup", Destination: "shop/mysql", Port: 3306, Protocol: "tcp"},
		},
		"Pods of others": {
			options: traceOptions{source: "batch/backup", destination: "db/mysql:3306", protocol: "tcp"},
			want:    tracev1.Question{Source: "batch/backup", Destination: "db/mysql", Port: 3306, Protocol: "tcp"},
		},
		"addresses": {
			options: traceOptions{source: "10.0.0.1", destination: "10.0.0.2:53", protocol: "UDP"},
			want:    tracev1.Question{Source: "10.0.0.1", Destination: "10.0.0.2", Port: 53, Protocol: "udp"},
		},
		"IPv6": {
			options: traceOptions{source: "fd00::1", destination: "[fd00::2]:53", protocol: "tcp", family: "IPv6"},
			want:    tracev1.Question{Source: "fd00::1", Destination: "fd00::2", Port: 53, Protocol: "tcp", Family: tracev1.IPv6},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tc.options.question("shop")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("question (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheNamespaceIsTheFlagsOrTheKubeconfigs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	text := `{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":"https://192.0.2.1"}}],
"contexts":[{"name":"c","context":{"cluster":"c","namespace":"shop"}}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, flags := range map[string][]string{"shop": nil, "batch": {"-n", "batch"}} {
		k := &kubeconfig{}
		root := &cobra.Command{Use: "x"}
		k.bind(root)
		if err := root.ParseFlags(append([]string{"--kubeconfig", path}, flags...)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := k.load(); err != nil || got != want {
			t.Errorf("with %q: %q, %v; want %q", flags, got, err, want)
		}
	}
}

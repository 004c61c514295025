// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/policygate/policygate/test/engine"
	"github.com/policygate/policygate/test/engine/rules"
)

func TestOptions(t *testing.T) {
	type result struct {
		Node     string
		Mode     engine.Mode
		Families []rules.Family
		Ranges   []netip.Prefix
		Period   time.Duration
	}
	tests := map[string]struct {
		args    []string
		want    result
		wantErr []string
	}{
		"defaults are IPv4 in nft mode": {
			args: []string{"--kubeconfig=k", "--node=n1"},
			want: result{
				Node: "n1", Mode: engine.NFT, Families: []rules.Family{rules.IPv4},
				Ranges: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}, Period: 5 * time.Minute,
			},
		},
		"every flag counts": {
			args: []string{
				"--kubeconfig=k", "--node=n1", "--mode=legacy", "--ipv4=false", "--ipv6", "--sync-period=1m",
				"--cluster-ip-range=10.97.0.0/16", "--cluster-ip-range=fd00::/112",
			},
			want: result{
				Node: "n1", Mode: engine.Legacy, Families: []rules.Family{rules.IPv6},
				Ranges: []netip.Prefix{netip.MustParsePrefix("10.97.0.0/16"), netip.MustParsePrefix("fd00::/112")}, Period: time.Minute,
			},
		},
		"every wrong flag is named": {
			args:    []string{"--mode=ebpf", "--ipv4=false", "--cluster-ip-range=10.96", "--sync-period=0s"},
			wantErr: []string{"--kubeconfig", "--node", `mode "ebpf", want nft or legacy`, "--ipv4 and --ipv6", "10.96", "--sync-period"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			o := options{}
			fs := pflag.NewFlagSet("engine", pflag.ContinueOnError)
			o.addFlags(fs)
			if err := fs.Parse(tc.args); err != nil {
				t.Fatal(err)
			}
			got, err := o.complete()
			if len(tc.wantErr) > 0 {
				for _, part := range tc.wantErr {
					if err == nil || !strings.Contains(err.Error(), part) {
						t.Errorf("error %v, want %q in it", err, part)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			tools, ok := got.Kernel.(engine.Tools)
			if !ok {
				t.Fatalf("kernel is %T, want engine.Tools", got.Kernel)
			}
			have := result{got.Node, tools.Mode, got.Rules.Families, got.Rules.ClusterIPRanges, got.SyncPeriod}
			if diff := cmp.Diff(tc.want, have, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/test/engine"
	"github.com/policygate/policygate/test/engine/rules"
)

type options struct {
	kubeconfig, node, mode, control, state string
	ipv4, ipv6                             bool
	clusterIPRanges                        []string
	syncPeriod                             time.Duration
}

func (o *options) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "path of the kubeconfig (required)")
	fs.StringVar(&o.node, "node", "", "name of the node that is programmed (required)")
	fs.StringVar(&o.mode, "mode", string(engine.NFT), "variant of iptables: nft or legacy")
	fs.BoolVar(&o.ipv4, "ipv4", true, "program IPv4")
	fs.BoolVar(&o.ipv6, "ipv6", false, "program IPv6")
	fs.StringSliceVar(&o.clusterIPRanges, "cluster-ip-range", []string{"10.96.0.0/12"}, "CIDR of Services' cluster IPs, of either family; repeatable")
	fs.StringVar(&o.control, "control", "", "JSON file of switches, read about 20 times a second; it may be missing")
	fs.StringVar(&o.state, "state", "", "file that always holds the newest state as JSON; empty writes none")
	fs.DurationVar(&o.syncPeriod, "sync-period", 5*time.Minute, "longest time between two syncs")
}

// complete returns what the engine needs but for the client and the reporter.
// The error names every flag that is wrong.
func (o *options) complete() (engine.Options, error) {
	var problems []error
	if o.kubeconfig == "" {
		problems = append(problems, errors.New("--kubeconfig is required"))
	}
	if o.node == "" {
		problems = append(problems, errors.New("--node is required"))
	}
	if o.syncPeriod <= 0 {
		problems = append(problems, fmt.Errorf("--sync-period is %s, want more than zero", o.syncPeriod))
	}
	mode, err := engine.ParseMode(o.mode)
	if err != nil {
		problems = append(problems, fmt.Errorf("--mode: %w", err))
	}
	result := engine.Options{
		Node: o.node, Kernel: engine.Tools{Mode: mode}, SyncPeriod: o.syncPeriod,
		Control: engine.ControlFile(o.control), Clock: clock.RealClock{},
	}
	if o.ipv4 {
		result.Rules.Families = append(result.Rules.Families, rules.IPv4)
	}
	if o.ipv6 {
		result.Rules.Families = append(result.Rules.Families, rules.IPv6)
	}
	if len(result.Rules.Families) == 0 {
		problems = append(problems, errors.New("--ipv4 and --ipv6 are both off"))
	}
	for _, text := range o.clusterIPRanges {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			problems = append(problems, fmt.Errorf("--cluster-ip-range: %w", err))
			continue
		}
		result.Rules.ClusterIPRanges = append(result.Rules.ClusterIPRanges, prefix)
	}
	return result, errors.Join(problems...)
}

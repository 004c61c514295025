// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/ruleset/savetext"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// large is the capture of a node with 110 pods and 100 policies. Its sets are
// thinned out to the pods of the node and a few of other nodes.
const large = "testdata/kube-router-v2.11-large"

// engineChain is a chain that kube-router makes for one pod or policy.
var engineChain = regexp.MustCompile(`KUBE-(POD-FW|NWPLCY)-[A-Z0-9]{16}\b`)

// grown returns the capture's rules, with those of other nodes' pods and
// policies before them that make it times as large.
func grown(t testing.TB, times int) []ruleset.Table {
	t.Helper()
	var text strings.Builder
	for line := range strings.Lines(load(t, filepath.Join(large, "iptables-save.txt.gz"))) {
		for n := 1; n < times && engineChain.MatchString(line); n++ {
			copied := engineChain.ReplaceAllString(line, fmt.Sprintf("$0-%d", n))
			text.WriteString(strings.ReplaceAll(copied, "10.244.1.", fmt.Sprintf("10.245.%d.", n)))
		}
		text.WriteString(line)
	}
	tables, err := savetext.Parse(ruleset.IPv4, ruleset.NFT, text.String())
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// probes returns flows between the large capture's pods, each with its path.
func probes(sets savedSets) ([]flow.Flow, []trace.Path) {
	var local, remote []netip.Addr
	for _, set := range sets {
		for prefix := range set.prefixes {
			addr := prefix.Addr()
			switch {
			case !prefix.IsSingleIP() || slices.Contains(local, addr) || slices.Contains(remote, addr):
			case strings.HasPrefix(addr.String(), "10.244.1."):
				local = append(local, addr)
			default:
				remote = append(remote, addr)
			}
		}
	}
	slices.SortFunc(local, netip.Addr.Compare)
	slices.SortFunc(remote, netip.Addr.Compare)
	var flows []flow.Flow
	var paths []trace.Path
	for i, dst := range local {
		for _, port := range []uint16{3306, 8080, 443, 9999} {
			src, path := remote[i%len(remote)], trace.Path{Way: trace.Forwarded, In: "eth0", Out: "kube-bridge", Bridged: trace.No, SrcType: ruleset.Unicast, DstType: ruleset.Unicast}
			if i%4 == 0 {
				src, path.In, path.Bridged = local[(i+7)%len(local)], "kube-bridge", trace.Yes
			}
			flows = append(flows, flow.Flow{Protocol: flow.TCP, Src: src, Dst: dst, Port: port})
			paths = append(paths, path)
		}
	}
	return flows, paths
}

func TestTheLargeCaptureIsDecidedAtAnySize(t *testing.T) {
	sets := loadSets(t, filepath.Join(large, "ipset-save.txt.gz"))
	flows, paths := probes(sets)
	once, tenfold := grown(t, 1), grown(t, 10)
	answers := map[flow.Answer]int{}
	for i, f := range flows {
		got := trace.Trace(once, paths[i], f, sets)
		answers[got.Answer]++
		if again := trace.Trace(tenfold, paths[i], f, sets); again != got {
			t.Errorf("%s: %s, and among other nodes' rules %s", f, got, again)
		}
		if explained, steps, _ := trace.Explain(once, paths[i], f, sets); explained != got || len(steps) == 0 {
			t.Errorf("%s: explained %s in %d steps, traced %s", f, explained, len(steps), got)
		}
	}
	if answers[flow.Allowed] == 0 || answers[flow.Denied] == 0 || answers[flow.Inconclusive] != 0 {
		t.Errorf("answers are %v, want some allowed, some denied and none inconclusive", answers)
	}
}

func BenchmarkVerdict(b *testing.B) {
	sets := loadSets(b, filepath.Join(large, "ipset-save.txt.gz"))
	flows, paths := probes(sets)
	for _, times := range []int{1, 10} {
		b.Run(fmt.Sprintf("rules=%dx", times), func(b *testing.B) {
			tables := grown(b, times)
			visits := 0
			for i, f := range flows {
				visits += trace.Visits(tables, paths[i], f, sets)
			}
			b.ReportAllocs()
			n, before := 0, cpu(b)
			for b.Loop() {
				i := n % len(flows)
				if trace.Trace(tables, paths[i], flows[i], sets).Answer == flow.Inconclusive {
					b.Fatal(flows[i])
				}
				n++
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "verdicts/s")
			b.ReportMetric((cpu(b)-before).Seconds()*1e9/float64(n), "cpu-ns/verdict")
			b.ReportMetric(float64(visits)/float64(len(flows)), "rules/verdict")
		})
	}
}

// BenchmarkNativeVerdict walks what an engine writes for nf_tables itself: a
// map from the address to the pod's chain, and there a lookup for each rule of
// a policy.
func BenchmarkNativeVerdict(b *testing.B) {
	peers := &ruleset.NativeSet{Name: "peers"}
	pod := &ruleset.Chain{Name: "pod"}
	for range 56 {
		pod.Rules = append(pod.Rules, does(ruleset.Target{Kind: ruleset.Accept}, ruleset.Proto{Number: 6},
			ruleset.Lookup{Set: peers, Key: joined(field(ruleset.SrcAddr, 4), field(ruleset.DstPort, 2), pad)}))
	}
	pod.Rules = append(pod.Rules, drop())
	tables := at(ruleset.Forward, 0,
		does(ruleset.Target{Kind: ruleset.Accept}, equal(masked(ruleset.ConnState, host(6), ""), host(2))),
		does(ruleset.Target{Kind: ruleset.Decide, Map: &ruleset.NativeSet{Name: "pods"}, Key: field(ruleset.DstAddr, 4)}))
	found := elements{of: map[string]ruleset.Element{string(asked.Dst.AsSlice()): {In: true, Verdict: ruleset.Target{Kind: ruleset.Jump, Chain: pod}}}}
	b.ReportAllocs()
	n, before := 0, cpu(b)
	for b.Loop() {
		if trace.Trace(tables, forward, asked, found).Answer != flow.Denied {
			b.Fatal("the flow is not denied")
		}
		n++
	}
	b.ReportMetric((cpu(b)-before).Seconds()*1e9/float64(n), "cpu-ns/verdict")
	b.ReportMetric(float64(trace.Visits(tables, forward, asked, found)), "rules/verdict")
}

// cpu returns the CPU time of the process, which says more than a clock where
// others are at work.
func cpu(b *testing.B) time.Duration {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

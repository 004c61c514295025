// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/test/engine/rules"
	"github.com/policygate/policygate/test/engine/rules/capture"
)

const recordings = "rules/testdata/kube-router-v2.11"

func recording(t *testing.T, elements ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(append([]string{recordings}, elements...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func recordedObjects(t *testing.T) capture.Objects {
	t.Helper()
	objects, err := capture.ParseObjects([]byte(recording(t, "objects.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func recordedOptions() rules.Options {
	return rules.Options{
		Families:           []rules.Family{rules.IPv4, rules.IPv6},
		ClusterIPRanges:    []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		ExternalIPRanges:   []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		LoadBalancerRanges: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/28")},
	}
}

// testNode is node1 of the recordings as a network namespace.
type testNode struct {
	*namespace
	tools   Tools
	objects capture.Objects
	version int64
}

// inEachMode runs a test in a fresh namespace per variant of iptables.
func inEachMode(t *testing.T, test func(*testNode)) {
	t.Helper()
	// Legacy iptables locks a file, which all namespaces of a machine share.
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "xtables.lock"))
	for _, mode := range []Mode{NFT, Legacy} {
		t.Run(string(mode), func(t *testing.T) {
			test(&testNode{namespace: newNamespace(t), tools: Tools{Mode: mode}, objects: recordedObjects(t)})
		})
	}
}

func (n *testNode) input() rules.Input {
	return rules.Input{
		NodeAddresses: n.objects.NodeAddresses("node1"),
		Pods:          n.objects.Pods,
		Namespaces:    n.objects.Namespaces,
		Policies:      n.objects.Policies,
	}
}

// sync applies the input under a new version.
func (n *testNode) sync(input rules.Input) {
	n.Helper()
	n.version++
	program, err := rules.Compile(n.version, recordedOptions(), input)
	if err != nil {
		n.Fatal(err)
	}
	n.do(func() { err = n.tools.Apply(n.Context(), program, func() error { return nil }) })
	if err != nil {
		n.Fatal(err)
	}
}

// save returns the filter table of a family as text.
func (n *testNode) save(family rules.Family) string {
	n.Helper()
	return n.run(n.tools.command(family, "save"), "-t", "filter")
}

func (n *testNode) wantRecording() {
	n.Helper()
	variant := "iptables-" + string(n.tools.Mode)
	got, err := capture.Sets(n.run("ipset", "save"))
	if err != nil {
		n.Fatal(err)
	}
	want, err := capture.Sets(recording(n.T, variant, "ipset-save.txt"))
	if err != nil {
		n.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		n.Errorf("sets (-recorded +kernel):\n%s", diff)
	}
	for family, file := range map[rules.Family]string{rules.IPv4: "iptables-save.txt", rules.IPv6: "ip6tables-save.txt"} {
		got, err := capture.Filter(n.save(family))
		if err != nil {
			n.Fatal(err)
		}
		want, err := capture.Filter(recording(n.T, variant, file))
		if err != nil {
			n.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			n.Errorf("%s (-recorded +kernel):\n%s", file, diff)
		}
	}
}

func TestKernelHoldsWhatWasRecorded(t *testing.T) {
	inEachMode(t, func(n *testNode) {
		n.sync(n.input())
		n.wantRecording()
		first := n.save(rules.IPv4)
		n.sync(n.input())
		n.wantRecording()
		if second := n.save(rules.IPv4); first == second {
			n.Error("chains kept their names in the second sync")
		}
	})
}

func TestStaleSetsGo(t *testing.T) {
	inEachMode(t, func(n *testNode) {
		n.run("ipset", "create", "somebody-elses", "hash:ip")
		n.sync(n.input())
		few := n.input()
		few.Policies = slices.DeleteFunc(slices.Clone(few.Policies), func(p *networkingv1.NetworkPolicy) bool { return p.Namespace != "mon" })
		n.sync(few)
		got := slices.Sorted(strings.FieldsSeq(n.run("ipset", "list", "-name")))
		// The names are those that the recording has for the target of
		// mon/prom-deny.
		want := []string{"KUBE-DST-XO5DUKH6V6JVTPSD", "inet6:KUBE-DST-UFA5SGE7AI6OGDNI", "somebody-elses"}
		if diff := cmp.Diff(want, got); diff != "" {
			n.Errorf("sets (-want +got):\n%s", diff)
		}
	})
}

func TestForeignRulesSurvive(t *testing.T) {
	inEachMode(t, func(n *testNode) {
		iptables := "iptables-" + string(n.tools.Mode)
		n.run(iptables, "-P", "FORWARD", "DROP")
		n.run(iptables, "-N", "MINE")
		n.run(iptables, "-A", "MINE", "-s", "192.0.2.7/32", "-m", "comment", "--comment", "not yours, really", "-j", "DROP")
		n.run(iptables, "-A", "FORWARD", "-j", "MINE")
		n.run(iptables, "-t", "nat", "-A", "POSTROUTING", "-s", "192.0.2.9/32", "-j", "MASQUERADE")
		before := foreignLines(n.save(rules.IPv4))
		n.sync(n.input())
		n.sync(n.input())
		after := n.save(rules.IPv4)
		if diff := cmp.Diff(before, foreignLines(after)); diff != "" {
			n.Errorf("foreign lines (-before +after):\n%s", diff)
		}
		jump, mine := strings.Index(after, "-A FORWARD -m comment --comment \"kube-router netpol"), strings.Index(after, "-A FORWARD -j MINE")
		if jump < 0 || mine < jump {
			n.Errorf("own jump at %d, foreign rule at %d, want the own one first", jump, mine)
		}
		if nat := n.run(iptables+"-save", "-t", "nat"); !strings.Contains(nat, "-s 192.0.2.9/32 -j MASQUERADE") {
			n.Errorf("nat table has lost its rule:\n%s", nat)
		}

		var err error
		n.do(func() {
			for range 2 {
				if err = n.tools.Remove(n.Context(), rules.IPv4); err != nil {
					return
				}
			}
		})
		if err != nil {
			n.Fatal(err)
		}
		removed := n.save(rules.IPv4)
		if diff := cmp.Diff(before, foreignLines(removed)); diff != "" {
			n.Errorf("foreign lines (-before +after removal):\n%s", diff)
		}
		if strings.Contains(removed, "KUBE-") {
			n.Errorf("rules left after removal:\n%s", removed)
		}
		for name := range strings.FieldsSeq(n.run("ipset", "list", "-name")) {
			if !strings.HasPrefix(name, "inet6:") {
				n.Errorf("set %s left after removal", name)
			}
		}
		if ipv6 := n.save(rules.IPv6); !strings.Contains(ipv6, "KUBE-ROUTER-FORWARD") {
			n.Error("the other family is gone, too")
		}
	})
}

// foreignLines are the lines that do not mention the engine's chains.
func foreignLines(save string) []string {
	var lines []string
	for line := range strings.Lines(save) {
		if !strings.Contains(line, "KUBE-") && !strings.HasPrefix(line, "#") {
			// Packet counters move.
			line, _, _ = strings.Cut(line, " [")
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// podsOf gives the recorded node its Pods and some that are routed to it from
// elsewhere, by name.
func (n *testNode) podsOf() map[string]*namespace {
	n.Helper()
	n.asNode("192.168.100.10/32", "fd00:192:168:100::10/128")
	pods := map[string]*namespace{"node": n.namespace}
	for name, host := range map[string]string{
		"mysql-0": "1::10", "job-a-init": "1::20", "nopol": "1::41", "job-b": "2::20", "prom-0": "2::40", "unknown": "2::99",
	} {
		subnet, last, _ := strings.Cut(host, "::")
		pods[name] = n.addPod("v"+subnet+last, "10.244."+subnet+"."+last, "fd00:10:244:"+host)
	}
	pods["mysql-0"].listen(3306)
	pods["mysql-0"].listen(9104)
	pods["nopol"].listen(80)
	return pods
}

// flow is who dials which port of whom.
type flow struct {
	from, to string
	port     int
}

// dialAll dials from all Pods at the same time, since a refusal over IPv6 takes
// a second: only the one that answers the second SYN ends the connect (seen on
// Linux 6.18 over veth; over IPv4 the first one does).
func dialAll(pods map[string]*namespace, flows map[flow]string) map[string]string {
	addresses := map[string][]string{
		"mysql-0": {"10.244.1.10", "fd00:10:244:1::10"},
		"nopol":   {"10.244.1.41", "fd00:10:244:1::41"},
	}
	var mu sync.Mutex
	results := map[string]string{}
	var all sync.WaitGroup
	for f := range flows {
		all.Go(func() {
			for i, family := range []string{"IPv4", "IPv6"} {
				result := pods[f.from].dial(addresses[f.to][i], f.port)
				mu.Lock()
				results[f.name(family)] = result
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return results
}

func (f flow) name(family string) string {
	return fmt.Sprintf("%s %s to %s port %d", family, f.from, f.to, f.port)
}

func wanted(flows map[flow]string) map[string]string {
	results := map[string]string{}
	for f, want := range flows {
		results[f.name("IPv4")], results[f.name("IPv6")] = want, want
	}
	return results
}

func TestPacketsMeetTheVerdict(t *testing.T) {
	healthy := map[flow]string{
		{"job-a-init", "mysql-0", 3306}: "connected",
		{"job-b", "mysql-0", 3306}:      "connected",
		{"node", "mysql-0", 3306}:       "connected",
		{"nopol", "mysql-0", 3306}:      "refused",
		{"prom-0", "mysql-0", 3306}:     "refused",
		{"unknown", "mysql-0", 3306}:    "refused",
		{"nopol", "mysql-0", 9104}:      "connected",
		{"prom-0", "mysql-0", 9104}:     "connected",
		{"job-b", "mysql-0", 9104}:      "refused",
		{"job-a-init", "nopol", 80}:     "refused",
		{"prom-0", "nopol", 80}:         "connected",
	}
	with := func(changes map[flow]string) map[flow]string {
		flows := maps.Clone(healthy)
		maps.Copy(flows, changes)
		return flows
	}
	open := map[flow]string{
		{"nopol", "mysql-0", 3306}:   "connected",
		{"prom-0", "mysql-0", 3306}:  "connected",
		{"unknown", "mysql-0", 3306}: "connected",
		{"job-b", "mysql-0", 9104}:   "connected",
	}
	tests := map[string]struct {
		half   map[types.UID]bool
		faults rules.Faults
		want   map[flow]string
	}{
		"policies in force": {want: healthy},
		"a half-programmed server lets strangers in": {
			half: map[types.UID]bool{"db/mysql-0": true},
			// The job's own egress policy admits only Pods that are in a set,
			// and the server is in none.
			want: func() map[flow]string {
				flows := with(open)
				flows[flow{"job-a-init", "mysql-0", 3306}] = "refused"
				return flows
			}(),
		},
		"a dropped address is refused": {
			faults: rules.Faults{DropAddresses: map[netip.Addr]bool{
				netip.MustParseAddr("10.244.2.20"): true, netip.MustParseAddr("fd00:10:244:2::20"): true,
			}},
			want: with(map[flow]string{{"job-b", "mysql-0", 3306}: "refused"}),
		},
		"a dropped policy refuses its peers": {
			faults: rules.Faults{DropPolicies: map[types.NamespacedName]bool{{Namespace: "db", Name: "allow-jobs"}: true}},
			want: with(map[flow]string{
				{"job-a-init", "mysql-0", 3306}: "refused",
				{"job-b", "mysql-0", 3306}:      "refused",
			}),
		},
		"flushed chains let everybody in": {
			faults: rules.Faults{FlushPodChains: true},
			want: func() map[flow]string {
				flows := with(open)
				flows[flow{"job-a-init", "nopol", 80}] = "connected"
				return flows
			}(),
		},
	}
	inEachMode(t, func(n *testNode) {
		pods := n.podsOf()
		for name, tc := range tests {
			input := n.input()
			input.HalfProgrammed, input.Faults = tc.half, tc.faults
			n.sync(input)
			if diff := cmp.Diff(wanted(tc.want), dialAll(pods, tc.want)); diff != "" {
				n.Errorf("%s: (-want +got):\n%s", name, diff)
			}
		}
	})
}

// The whole engine at work on a kernel: a server and its client come while it
// runs, its node answers as the switches say.
func TestEngineOnKernel(t *testing.T) {
	inEachMode(t, func(n *testNode) {
		pods := n.podsOf()
		var objects []runtime.Object
		for _, node := range n.objects.Nodes {
			objects = append(objects, node)
		}
		for _, namespace := range n.objects.Namespaces {
			objects = append(objects, namespace)
		}
		for _, policy := range n.objects.Policies {
			objects = append(objects, policy)
		}
		client := fake.NewClientset(objects...)
		control, states := &switches{}, make(chan State, 1000)
		ctx, cancel := context.WithCancel(n.Context())
		engine := New(Options{
			Client: client, Node: "node1", Kernel: n.tools, Rules: recordedOptions(), Control: control.read,
			SyncPeriod: time.Minute, Clock: clock.RealClock{}, Report: func(s State) { states <- s },
		})
		done := make(chan error)
		go n.do(func() { done <- engine.Run(ctx) })
		defer func() {
			cancel()
			if err := <-done; err != nil {
				n.Errorf("Run: %v", err)
			}
		}()
		await := func(what string, reached func(State) bool) {
			n.Helper()
			deadline := time.After(10 * time.Second)
			for {
				select {
				case s := <-states:
					if s.Error != "" {
						n.Errorf("engine: %s", s.Error)
					}
					if reached(s) {
						return
					}
				case <-deadline:
					n.Fatalf("waited in vain for: %s", what)
				}
			}
		}
		create := func(name string) {
			n.Helper()
			i := slices.IndexFunc(n.objects.Pods, func(p *corev1.Pod) bool { return p.Name == name })
			if _, err := client.CoreV1().Pods(n.objects.Pods[i].Namespace).Create(n.Context(), n.objects.Pods[i], metav1.CreateOptions{}); err != nil {
				n.Fatal(err)
			}
		}
		want := func(when, from, result string) {
			n.Helper()
			if got := pods[from].dial("10.244.1.10", 3306); got != result {
				n.Errorf("%s: %s is %s, want %s", when, from, got, result)
			}
		}
		var syncs int
		await("the first sync", func(s State) bool { syncs = s.Syncs; return s.Syncs > 0 })
		want("before the server is known", "unknown", "connected")

		control.set(Control{HalfProgrammed: true, Lag: metav1.Duration{Duration: 500 * time.Millisecond}})
		await("the switches", func(s State) bool { syncs = s.Syncs; return s.Control.HalfProgrammed })
		await("a sync with them", func(s State) bool { before := syncs; syncs = s.Syncs; return s.Syncs > before })
		create("mysql-0")
		await("the server's first sync", func(s State) bool { return s.Syncs > syncs })
		want("half programmed", "unknown", "connected")
		await("the server's second sync", func(s State) bool { return s.Syncs > syncs+1 })
		want("programmed", "unknown", "refused")
		want("not there yet", "job-b", "refused")

		control.set(Control{Freeze: true})
		await("rest", func(s State) bool { return s.Frozen })
		create("job-b")
		time.Sleep(200 * time.Millisecond)
		want("frozen", "job-b", "refused")
		control.set(Control{})
		await("thaw", func(s State) bool { syncs = s.Syncs; return !s.Frozen })
		await("the sync after the thaw", func(s State) bool { return s.Syncs > syncs })
		want("thawed", "job-b", "connected")
		want("thawed", "unknown", "refused")
	})
}

// switches are set by a test and read by an engine.
type switches struct {
	mu  sync.Mutex
	now Control
}

func (s *switches) set(c Control) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = c
}

func (s *switches) read() (Control, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now, nil
}

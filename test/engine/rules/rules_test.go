// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package rules_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/policygate/policygate/test/engine/rules"
	"github.com/policygate/policygate/test/engine/rules/capture"
)

// podWith is a Pod of namespace ns on a node, with app as its name and one
// container port named http.
func podWith(name, hostIP, ip string, http int32) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: http, Protocol: corev1.ProtocolTCP}},
		}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, HostIP: hostIP, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}},
	}
}

func smallInput(t *testing.T, spec string) rules.Input {
	t.Helper()
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}}
	if err := yaml.UnmarshalStrict([]byte(spec), &np.Spec); err != nil {
		t.Fatal(err)
	}
	return rules.Input{
		NodeAddresses: []string{"192.0.2.1"},
		Namespaces:    []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "ns"}}},
		Pods: []*corev1.Pod{
			podWith("server", "192.0.2.1", "10.0.1.1", 8080),
			podWith("client", "192.0.2.2", "10.0.2.1", 9090),
		},
		Policies: []*networkingv1.NetworkPolicy{np},
	}
}

func filterOf(t *testing.T, table rules.Table) map[string][]string {
	t.Helper()
	restore, err := table.FilterRestore("")
	if err != nil {
		t.Fatal(err)
	}
	chains, err := capture.Filter(restore)
	if err != nil {
		t.Fatal(err)
	}
	return chains
}

// plain replaces sets' names in a policy's chain by their members, leaves out
// what all rules have and the second rule of each pair.
func plain(t *testing.T, table rules.Table) []string {
	t.Helper()
	members := map[string]string{}
	for _, s := range table.Sets {
		var entries []string
		for _, m := range s.Members {
			entry := m.Entry
			if m.NoMatch {
				entry = "!" + entry
			}
			entries = append(entries, entry)
		}
		members[s.Name] = "{" + strings.Join(entries, ",") + "}"
	}
	result := []string{}
	for i, rule := range filterOf(t, table)["policy ns/p"] {
		if i%2 == 1 {
			continue
		}
		rule = strings.ReplaceAll(rule, "-m set --match-set ", "")
		rule = strings.TrimSuffix(rule, " -j MARK --set-xmark 0x10000/0x10000")
		for name, entries := range members {
			rule = strings.ReplaceAll(rule, name, entries)
		}
		result = append(result, rule)
	}
	return result
}

func TestPolicyRules(t *testing.T) {
	tests := map[string]struct {
		spec string
		want []string
	}{
		"egress to a named port uses the peers that have it": {
			spec: `{podSelector: {matchLabels: {app: server}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}], ports: [{port: http}]}]}`,
			want: []string{
				`-p tcp -m comment --comment "ns/p egress pods np" {10.0.1.1} src {10.0.1.1} dst -m tcp --dport 8080`,
				`-p tcp -m comment --comment "ns/p egress pods np" {10.0.1.1} src {10.0.2.1} dst -m tcp --dport 9090`,
			},
		},
		"egress to a named port of anybody looks in its own namespace and forgets who has it": {
			spec: `{podSelector: {matchLabels: {app: server}}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}`,
			want: []string{
				`-p tcp -m comment --comment "ns/p egress any np" {10.0.1.1} src -m tcp --dport 8080`,
				`-p tcp -m comment --comment "ns/p egress any np" {10.0.1.1} src -m tcp --dport 9090`,
			},
		},
		"egress to a named port of an ipBlock gets no rule": {
			spec: `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 198.51.100.0/24}}], ports: [{port: http}]}]}`,
			want: []string{},
		},
		"a named port that nobody has opens all ports to selected Pods": {
			spec: `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: nobody}]}]}`,
			want: []string{`-m comment --comment "ns/p ingress pods" {10.0.2.1} src {10.0.1.1} dst`},
		},
		"a named port that nobody has opens none to everybody": {
			spec: `{podSelector: {}, ingress: [{ports: [{port: nobody}]}]}`,
			want: []string{},
		},
		"a named port of another protocol is not resolved": {
			spec: `{podSelector: {}, ingress: [{ports: [{port: http, protocol: UDP}]}]}`,
			want: []string{},
		},
		"an ipBlock without ports opens all of them": {
			spec: `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: {cidr: 198.18.5.5/16, except: [198.18.7.7/32]}}]}]}`,
			want: []string{`-m comment --comment "ns/p ingress cidr" {198.18.0.0/16,!198.18.7.7} src {10.0.1.1} dst`},
		},
		"an exception that equals a block wins if it comes later": {
			spec: `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: {cidr: 198.18.0.0/16}}, {ipBlock: {cidr: 198.0.0.0/8, except: [198.18.0.0/16]}}]}]}`,
			want: []string{`-m comment --comment "ns/p ingress cidr" {198.0.0.0/8,!198.18.0.0/16} src {10.0.1.1} dst`},
		},
		"selected Pods come before ipBlocks, numbers before names": {
			spec: `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: {cidr: 198.18.0.0/16}}, {podSelector: {matchLabels: {app: client}}}], ports: [{port: http}, {port: 80}]}]}`,
			want: []string{
				`-p tcp -m comment --comment "ns/p ingress pods" {10.0.2.1} src {10.0.1.1} dst -m tcp --dport 80`,
				`-p tcp -m comment --comment "ns/p ingress pods np" {10.0.2.1} src {10.0.1.1} dst -m tcp --dport 8080`,
				`-p tcp -m comment --comment "ns/p ingress cidr" {198.18.0.0/16} src {10.0.1.1} dst -m tcp --dport 80`,
				`-p tcp -m comment --comment "ns/p ingress cidr np" {198.18.0.0/16} src {10.0.1.1} dst -m tcp --dport 8080`,
			},
		},
		"a peer that two selectors find is in the set once": {
			spec: `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}, {namespaceSelector: {}}]}]}`,
			want: []string{`-m comment --comment "ns/p ingress pods" {10.0.2.1,10.0.1.1} src {10.0.1.1} dst`},
		},
		"without policyTypes egress counts only if there are egress rules": {
			spec: `{podSelector: {matchLabels: {app: server}}, ingress: [{}], egress: [{}]}`,
			want: []string{
				`-m comment --comment "ns/p ingress any" {10.0.1.1} dst`,
				`-m comment --comment "ns/p egress any" {10.0.1.1} src`,
			},
		},
		"rules of a direction that policyTypes leave out are ignored": {
			spec: `{podSelector: {}, policyTypes: [Ingress], egress: [{}]}`,
			want: []string{},
		},
		"SCTP and a range": {
			spec: `{podSelector: {matchLabels: {app: server}}, ingress: [{ports: [{protocol: SCTP, port: 100, endPort: 200}]}]}`,
			want: []string{`-p sctp -m comment --comment "ns/p ingress any" {10.0.1.1} dst -m sctp --dport 100:200`},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			program := compile(t, smallInput(t, tc.spec))
			if diff := cmp.Diff(tc.want, plain(t, program.Tables[0])); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
		})
	}
}

const admitClient = `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]}`

func TestFaults(t *testing.T) {
	healthy := []string{`-p tcp -m comment --comment "ns/p ingress pods" {10.0.2.1} src {10.0.1.1} dst -m tcp --dport 80`}
	tests := map[string]struct {
		change func(*rules.Input)
		// want are the policy's rules, wantPod how many the server's chain has.
		want    []string
		wantPod int
	}{
		"none": {change: func(*rules.Input) {}, want: healthy, wantPod: 8},
		"a dropped policy's chain is empty and still jumped to": {
			change: func(in *rules.Input) {
				in.Faults.DropPolicies = map[types.NamespacedName]bool{{Namespace: "ns", Name: "p"}: true}
			},
			want: []string{}, wantPod: 8,
		},
		"a dropped address leaves the rule": {
			change: func(in *rules.Input) {
				in.Faults.DropAddresses = map[netip.Addr]bool{netip.MustParseAddr("10.0.2.1"): true}
			},
			want:    []string{`-p tcp -m comment --comment "ns/p ingress pods" {} src {10.0.1.1} dst -m tcp --dport 80`},
			wantPod: 8,
		},
		"a dropped address stays a target": {
			change: func(in *rules.Input) {
				in.Faults.DropAddresses = map[netip.Addr]bool{netip.MustParseAddr("10.0.1.1"): true}
			},
			want: healthy, wantPod: 8,
		},
		"flushed Pod chains": {
			change: func(in *rules.Input) { in.Faults.FlushPodChains = true },
			want:   healthy, wantPod: 0,
		},
		"a half-programmed client is in no set and leaves no rule": {
			change: func(in *rules.Input) { in.HalfProgrammed = map[types.UID]bool{"client": true} },
			want:   []string{}, wantPod: 8,
		},
		"a half-programmed server has both defaults instead of the policy": {
			change: func(in *rules.Input) { in.HalfProgrammed = map[types.UID]bool{"server": true} },
			want:   []string{`-p tcp -m comment --comment "ns/p ingress pods" {10.0.2.1} src {} dst -m tcp --dport 80`}, wantPod: 8,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			input := smallInput(t, admitClient)
			tc.change(&input)
			table := compile(t, input).Tables[0]
			got := plain(t, table)
			if name == "a half-programmed server has both defaults instead of the policy" {
				chain := strings.Join(filterOf(t, table)["pod ns/server"], "\n")
				if !strings.Contains(chain, "default ingress") || !strings.Contains(chain, "default egress") || strings.Contains(chain, "<policy") {
					t.Errorf("the server's chain is not allow-all:\n%s", chain)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("policy's rules (-want +got):\n%s", diff)
			}
			if got := len(filterOf(t, table)["pod ns/server"]); got != tc.wantPod {
				t.Errorf("%d rules in the server's chain, want %d", got, tc.wantPod)
			}
		})
	}
}

func TestActionable(t *testing.T) {
	tests := map[string]struct {
		change func(*corev1.Pod)
		want   bool
	}{
		"a running Pod":                      {func(*corev1.Pod) {}, true},
		"a pending Pod with an address":      {func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }, true},
		"a terminating Pod":                  {func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }, true},
		"a Pod without an address":           {func(p *corev1.Pod) { p.Status.PodIP = "" }, false},
		"a Pod on its host's network":        {func(p *corev1.Pod) { p.Spec.HostNetwork = true }, false},
		"a Pod that succeeded":               {func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, false},
		"a Pod that failed":                  {func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, false},
		"a Pod of the phase that never was ": {func(p *corev1.Pod) { p.Status.Phase = "Completed" }, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			p := podWith("server", "192.0.2.1", "10.0.1.1", 80)
			tc.change(p)
			if got := rules.Actionable(p); got != tc.want {
				t.Errorf("got %t, want %t", got, tc.want)
			}
		})
	}
}

func TestCompileNamesWhatItCannotRead(t *testing.T) {
	tests := map[string]struct{ spec, want string }{
		"policy's selector": {
			`{podSelector: {matchExpressions: [{key: a, operator: Near}]}}`,
			`network policy ns/p: spec.podSelector: "Near" is not a valid label selector operator`,
		},
		"peer's selector": {
			`{podSelector: {}, ingress: [{}, {from: [{podSelector: {matchExpressions: [{key: a, operator: Near}]}}]}]}`,
			`network policy ns/p: spec.ingress[1]: peer 0: podSelector: "Near" is not a valid label selector operator`,
		},
		"namespaces' selector": {
			`{podSelector: {}, egress: [{to: [{namespaceSelector: {matchExpressions: [{key: a, operator: Near}]}}]}]}`,
			`network policy ns/p: spec.egress[0]: peer 0: namespaceSelector: "Near" is not a valid label selector operator`,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := rules.Compile(1, recordedOptions(), smallInput(t, tc.spec))
			if err == nil || err.Error() != tc.want {
				t.Errorf("error %v, want %s", err, tc.want)
			}
		})
	}
}

func TestLongNamesAreCutInComments(t *testing.T) {
	input := smallInput(t, admitClient)
	input.Policies[0].Name = strings.Repeat("p", 200)
	input.Pods[0].Name = strings.Repeat("s", 200)
	restore, err := compile(t, input).Tables[0].FilterRestore("")
	if err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"ns/ppp", "ns/sss"} {
		_, rest, found := strings.Cut(restore, `"`+prefix)
		comment, _, _ := strings.Cut(prefix+rest, `"`)
		if !found || len(comment) != 120 {
			t.Errorf("comment %q has %d bytes, want 120", comment, len(comment))
		}
	}
}

// The index of a named port's set follows an order that kube-router takes from
// a Go map: the same input makes other sets, never other verdicts.
func TestShuffleMovesNamedPortsBetweenSets(t *testing.T) {
	input := smallInput(t, `{podSelector: {}, ingress: [{ports: [{port: http}]}]}`)
	before := plain(t, compile(t, input).Tables[0])
	setsBefore := setsOf(t, compile(t, input).Tables[0])
	input.Shuffle = func(n int, swap func(i, j int)) {
		for i := range n / 2 {
			swap(i, n-1-i)
		}
	}
	table := compile(t, input).Tables[0]
	after := plain(t, table)
	if cmp.Diff(setsBefore, setsOf(t, table)) == "" {
		t.Error("the sets are the same in another order")
	}
	slices.Reverse(after)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("rules in reverse (-sorted +shuffled):\n%s", diff)
	}
}

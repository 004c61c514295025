// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package demand

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/gate/deviation"
)

func TestWhatIsAwaitedTellsNoOthersSecrets(t *testing.T) {
	own, own6, other := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::3"), netip.MustParseAddr("10.9.9.9")
	other6 := netip.MustParseAddr("fd00::9")
	allowJobs := types.NamespacedName{Namespace: "db", Name: "allow-jobs"}
	cases := map[string]struct {
		src, dst netip.Addr
		want     flow.Answer
		policy   types.NamespacedName
		text     string
	}{
		"the Pod is not admitted by a policy of its namespace": {
			own, other, flow.Allowed, allowJobs, "db/allow-jobs (this namespace) does not admit 10.1.2.3 there yet",
		},
		"the Pod is not admitted at its other address": {
			own6, other6, flow.Allowed, allowJobs, "db/allow-jobs (this namespace) does not admit fd00::3 there yet",
		},
		"another address than the Pod's own is not told": {
			other, own, flow.Allowed, allowJobs, "db/allow-jobs (this namespace) is not in force there yet",
		},
		"a stranger gets in": {
			other, own, flow.Denied, allowJobs, "db/allow-jobs (this namespace) does not isolate its Pods there yet",
		},
		"a policy of another namespace has no name": {
			own, other, flow.Allowed, types.NamespacedName{Namespace: "payroll", Name: "secret-plan"},
			"a policy in another namespace is not in force there yet",
		},
		"a Pod that no policy isolates is not let through": {
			own, other, flow.Allowed, types.NamespacedName{}, "the rules there are not complete yet",
		},
	}
	ips := []netip.Addr{own, own6}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			d, err := NewTable().Of([]expect.Expectation{{
				Flow: flow.Flow{Protocol: flow.TCP, Src: tc.src, Dst: tc.dst, Port: 3306},
				Want: tc.want, Policy: tc.policy, Why: "payroll/secret-plan ingress[0]",
			}}, ips)
			if err != nil {
				t.Fatal(err)
			}
			if got := d.Awaits(0, "db", ips); got != tc.text {
				t.Errorf("awaits = %q, want %q", got, tc.text)
			}
			if got := d.Awaits(7, "db", ips); got != "" {
				t.Errorf("awaits of an index that is not there = %q, want none", got)
			}
		})
	}
	if got := (Demand{}).Awaits(0, "db", nil); got != "" {
		t.Errorf("awaits of a node that is asked nothing = %q, want none", got)
	}
}

func TestWhatIsSentLeavesOutThePodsOwnAddress(t *testing.T) {
	own, twin, own6 := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.1.2.4"), netip.MustParseAddr("fd00::3")
	other, other6 := netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("fd00::9")
	cases := map[string]struct {
		ips              []netip.Addr
		src, dst         netip.Addr
		witness          bool
		wantSrc, wantDst bool
	}{
		"as the source":                                  {ips: []netip.Addr{own}, src: own, dst: other, wantDst: true},
		"as the destination":                             {ips: []netip.Addr{own}, src: other, dst: own, wantSrc: true},
		"of either family":                               {ips: []netip.Addr{own, own6}, src: own6, dst: other6, wantDst: true},
		"not of a flow between others":                   {ips: []netip.Addr{own}, src: other, dst: twin, wantSrc: true, wantDst: true},
		"not if it cannot be told from another":          {ips: []netip.Addr{own, twin}, src: own, dst: other, wantSrc: true, wantDst: true},
		"not of a flow that is about older Pods instead": {ips: []netip.Addr{own}, src: own, dst: other, witness: true, wantSrc: true, wantDst: true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			message, _ := newDemand([]expect.Expectation{{
				Flow: flow.Flow{Protocol: flow.TCP, Src: tc.src, Dst: tc.dst, Port: 80}, Want: flow.Allowed, Witness: tc.witness,
			}}, tc.ips)
			f := message.GetExpectations()[0].GetFlow()
			if len(f.GetSrc()) > 0 != tc.wantSrc || len(f.GetDst()) > 0 != tc.wantDst {
				t.Errorf("flow is %v", f)
			}
		})
	}
}

func TestAnExpectationIsToldWithTheSubjectsAddress(t *testing.T) {
	own, own6 := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::3")
	other, other6 := netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("fd00::9")
	ips := []netip.Addr{own, own6}
	asked := []expect.Expectation{
		{Flow: flow.Flow{Protocol: flow.TCP, Src: own, Dst: other, Port: 80}, Want: flow.Allowed, Policy: shopAllow, Generation: 3, Why: "shop/allow ingress[0]"},
		{Flow: flow.Flow{Protocol: flow.UDP, Src: other6, Dst: own6, Port: 53}, Want: flow.Denied, Why: "shop/allow isolates"},
		{Flow: flow.Flow{Protocol: flow.SCTP, Src: other, Dst: netip.MustParseAddr("10.9.9.8"), Port: 7}, Want: flow.Allowed, Witness: true, Advisory: true},
	}
	d, err := NewTable().Of(asked, ips)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range asked {
		got, ok := d.Expectation(uint32(i), ips)
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); !ok || diff != "" {
			t.Errorf("expectation %d: %v (-want +got):\n%s", i, ok, diff)
		}
	}
	if _, ok := d.Expectation(3, ips); ok || d.Len() != 3 {
		t.Errorf("there is a fourth of %d", d.Len())
	}
	if _, ok := d.Expectation(0, nil); ok {
		t.Error("an expectation of a subject without addresses has a flow")
	}
	if _, ok := (Demand{}).Expectation(0, ips); ok {
		t.Error("a demand that asks nothing has an expectation")
	}
}

func TestWhatIsSentNamesEachRuleOnce(t *testing.T) {
	ip := netip.MustParseAddr("10.1.2.3")
	other := allow(shopAllow, "10.1.2.3", 81)
	advisory := allow(types.NamespacedName{Namespace: "shop", Name: "other"}, "10.1.2.3", 80)
	advisory.Advisory = true
	denied := allow(shopAllow, "10.1.2.3", 82)
	denied.Want, denied.Why = flow.Denied, "shop/allow isolates"
	witness := allow(shopAllow, "10.7.7.7", 80)
	witness.Witness = true
	message, made := newDemand([]expect.Expectation{allow(shopAllow, "10.1.2.3", 80), other, advisory, denied, witness}, []netip.Addr{ip})
	if diff := cmp.Diff([]string{"shop/allow ingress[0]", "shop/other ingress[0]", "shop/allow isolates"}, message.GetWhys()); diff != "" {
		t.Errorf("whys (-want +got):\n%s", diff)
	}
	want := []Why{
		{Rule: deviation.Rule{Policy: shopAllow, Generation: 1, Why: "shop/allow ingress[0]"}, Witnessed: true, Allows: deviation.Entire},
		{Rule: deviation.Rule{Policy: advisory.Policy, Generation: 1, Why: "shop/other ingress[0]"}, Allows: deviation.Advisory},
		{Rule: deviation.Rule{Policy: shopAllow, Generation: 1, Why: "shop/allow isolates"}},
	}
	if diff := cmp.Diff(want, made.whys, cmp.AllowUnexported(Why{})); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	var sent []string
	for _, e := range message.GetExpectations() {
		sent = append(sent, fmt.Sprintf("%d denied=%v advisory=%v witness=%v",
			e.GetWhy(), e.GetWant() == hubv1.Answer_ANSWER_DENIED, e.GetAdvisory(), e.GetWitness()))
	}
	wantSent := []string{
		"0 denied=false advisory=false witness=false",
		"0 denied=false advisory=false witness=false",
		"1 denied=false advisory=true witness=false",
		"2 denied=true advisory=false witness=false",
		"0 denied=false advisory=false witness=true",
	}
	if diff := cmp.Diff(wantSent, sent); diff != "" {
		t.Errorf("expectations (-want +got):\n%s", diff)
	}
}

func TestPodsOfOnePolicyShareTheirDemand(t *testing.T) {
	table := NewTable()
	demand := func(i int, generation int64) Demand {
		ip := fmt.Sprintf("10.0.%d.%d", i/250, i%250)
		e := allow(shopAllow, ip, 80)
		e.Generation = generation
		d, err := table.Of([]expect.Expectation{e}, []netip.Addr{netip.MustParseAddr(ip)})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	size := func() int {
		table.mu.Lock()
		defer table.mu.Unlock()
		return len(table.known)
	}
	first := demand(0, 1)
	for i := range 3000 {
		if demand(i, 1) != first {
			t.Fatalf("Pod %d has a demand of its own", i)
		}
	}
	if next := demand(0, 2); next == first || next.Content() != first.Content() {
		t.Error("another generation of the policy must be another demand with the same description")
	}
	if size() > 2 {
		t.Errorf("%d demands are kept, want 2", size())
	}
	runtime.KeepAlive(first.shared)

	// Nothing is left once the last Pod is gone.
	for deadline := time.Now().Add(10 * time.Second); size() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d demands are kept for nobody", size())
		}
		runtime.GC()
	}
}

// Whatever two expectations differ in, they are two demands.
func TestDemandsDifferInWhateverIsAsked(t *testing.T) {
	changes := map[string]func(*expect.Expectation){
		"nothing":              func(*expect.Expectation) {},
		"source":               func(e *expect.Expectation) { e.Flow.Src = netip.MustParseAddr("10.7.7.7") },
		"destination":          func(e *expect.Expectation) { e.Flow.Dst = netip.MustParseAddr("10.7.7.7") },
		"unspecified source":   func(e *expect.Expectation) { e.Flow.Src = netip.IPv4Unspecified() },
		"family":               func(e *expect.Expectation) { e.Flow.Dst = netip.MustParseAddr("::ffff:10.9.9.9") },
		"protocol":             func(e *expect.Expectation) { e.Flow.Protocol = flow.UDP },
		"port":                 func(e *expect.Expectation) { e.Flow.Port++ },
		"answer":               func(e *expect.Expectation) { e.Want = flow.Denied },
		"advisory":             func(e *expect.Expectation) { e.Advisory = true },
		"external":             func(e *expect.Expectation) { e.External = true },
		"witness":              func(e *expect.Expectation) { e.Witness = true },
		"generation":           func(e *expect.Expectation) { e.Generation++ },
		"policy":               func(e *expect.Expectation) { e.Policy.Name += "x" },
		"namespace":            func(e *expect.Expectation) { e.Policy.Namespace += "x" },
		"text":                 func(e *expect.Expectation) { e.Why += "x" },
		"where the names part": func(e *expect.Expectation) { e.Policy = types.NamespacedName{Namespace: "sho", Name: "pallow"} },
	}
	table, seen := NewTable(), map[Demand]string{}
	for name, change := range changes {
		e := allow(shopAllow, "10.0.0.1", 80)
		change(&e)
		d, err := table.Of([]expect.Expectation{e}, []netip.Addr{netip.MustParseAddr("10.0.0.1")})
		if err != nil {
			t.Fatal(err)
		}
		if other, known := seen[d]; known {
			t.Errorf("%q and %q are one demand", name, other)
		}
		seen[d] = name
	}
}

// BenchmarkDemand makes the demand of one more Pod, of eight expectations,
// that others have, and one that none has.
func BenchmarkDemand(b *testing.B) {
	eight := func(i int) ([]expect.Expectation, []netip.Addr) {
		ip := fmt.Sprintf("10.0.%d.%d", i/250%250, i%250)
		list := make([]expect.Expectation, 8)
		for j := range list {
			list[j] = allow(shopAllow, ip, uint16(80+j))
		}
		return list, []netip.Addr{netip.MustParseAddr(ip)}
	}
	b.Run("known", func(b *testing.B) {
		table := NewTable()
		first, err := table.Of(eight(0))
		if err != nil {
			b.Fatal(err)
		}
		list, ips := eight(1)
		b.ReportAllocs()
		for b.Loop() {
			if d, err := table.Of(list, ips); err != nil || d != first {
				b.Fatal("not the same demand", err)
			}
		}
	})
	b.Run("new", func(b *testing.B) {
		list, ips := eight(1)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := NewTable().Of(list, ips); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// allow is what a rule demands: that src reaches a Pod that is older.
func allow(policy types.NamespacedName, src string, port uint16) expect.Expectation {
	return expect.Expectation{
		Flow: flow.Flow{
			Protocol: flow.TCP, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr("10.9.9.9"), Port: port,
		},
		Want: flow.Allowed, Policy: policy, Generation: 1, Why: policy.String() + " ingress[0]",
	}
}

var shopAllow = types.NamespacedName{Namespace: "shop", Name: "allow"} //nolint:gochecknoglobals // a constant

func TestWhatWasAskedBefore(t *testing.T) {
	isolation := func(stranger string) expect.Expectation {
		e := allow(shopAllow, stranger, 80)
		e.Want, e.Why = flow.Denied, "shop/web ingress isolation, stranger from other node"
		return e
	}
	of := func(expectations ...expect.Expectation) Demand {
		d, err := NewTable().Of(expectations, nil)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	newer := allow(shopAllow, "10.1.2.3", 80)
	newer.Generation++
	for name, tc := range map[string]struct {
		now, before Demand
		want        bool
	}{
		"the same flow":                        {of(allow(shopAllow, "10.1.2.3", 80)), of(isolation("10.1.2.9"), allow(shopAllow, "10.1.2.3", 80)), true},
		"another peer of the rule":             {of(allow(shopAllow, "10.1.2.4", 80)), of(allow(shopAllow, "10.1.2.3", 80)), false},
		"the same flow, of another generation": {of(newer), of(allow(shopAllow, "10.1.2.3", 80)), false},
		"the isolation from another stranger":  {of(isolation("10.1.2.4")), of(allow(shopAllow, "10.1.2.3", 80), isolation("10.1.2.3")), true},
		"the isolation, and only an Allowed before": {
			of(isolation("10.1.2.3")), of(allow(shopAllow, "10.1.2.3", 80)), false,
		},
		"nothing before": {of(isolation("10.1.2.3")), Demand{}, false},
		"no such index":  {Demand{}, of(isolation("10.1.2.3")), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tc.now.AskedBefore(0, tc.before); got != tc.want {
				t.Errorf("asked before: %t, want %t", got, tc.want)
			}
		})
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/api/flow"
)

func TestExplain(t *testing.T) {
	t.Parallel()
	d := example()
	d.acl("eth", "", "to-lport", 1500, "outport == @np.db && eth.src == 0a:00:00:00:00:07", "allow")
	d.group("np", "db", []string{"srv.db"}, []string{"drop", "allow", "eth"})
	p := New(d.newest)
	got, err := p.Explain(t.Context(), tcp(other, server, 80))
	if err != nil {
		t.Fatal(err)
	}
	on := func(rule, effect, maybe string) Step {
		return Step{Direction: "to-lport", Switch: "ovn-default", Group: "np.db", Rule: rule, Effect: effect, Maybe: maybe}
	}
	want := Explanation{
		Verdict: got.Verdict, In: "oth.x", Out: "srv.db",
		Steps: []Step{
			on("tier 0, priority 2000: outport == @np.db && ip", "drops", ""),
			on("tier 0, priority 1500: outport == @np.db && eth.src == 0a:00:00:00:00:07", "allows", "eth.src == 0a:00:00:00:00:07"),
		},
		NearMisses: []NearMiss{{
			Step: on("tier 0, priority 2001: outport == @np.db && ip && ip4.src == $"+allowSet+" && ip4.src != $"+exceptSet+" && tcp.dst == 80", "allows", ""),
			Set:  allowSet, Address: other, Otherwise: flow.Allowed,
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" || got.Verdict.Answer != flow.Denied {
		t.Errorf("%s (-want +got):\n%s", got.Verdict, diff)
	}
	// Of a flow that nothing is known of there are no steps.
	for name, f := range map[string]flow.Flow{"no port": tcp("10.16.1.1", "10.16.1.2", 80), "no flow": {}} {
		if got, err := p.Explain(t.Context(), f); err != nil || got.Verdict.Answer != flow.Inconclusive || len(got.Steps) > 0 {
			t.Errorf("%s: %+v %v", name, got, err)
		}
	}
	d.err = errNoConnection
	if _, err := p.Explain(t.Context(), tcp(other, server, 80)); err == nil {
		t.Error("explained without a connection")
	}
}

func TestExplainKeepsMissesThatWouldNotHelp(t *testing.T) {
	t.Parallel()
	d := example()
	d.acl("egress", "db/eg", "from-lport", 2000, "inport == @eg.x && ip", "drop")
	d.group("eg", "x", []string{"oth.x"}, []string{"egress"})
	got, err := New(d.newest).Explain(t.Context(), tcp(other, server, 80))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.NearMisses) != 1 || got.NearMisses[0].Otherwise != flow.Denied {
		t.Errorf("%+v: want one near miss that would not help", got.NearMisses)
	}
}

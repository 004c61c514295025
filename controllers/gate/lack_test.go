// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/demand"
	"github.com/policygate/policygate/controllers/expect"
)

// threeDemands asks for a policy of shop, one of another namespace, and for
// what no policy restricts, in this order.
func threeDemands(t testing.TB) (demand.Demand, []netip.Addr) {
	t.Helper()
	theirs := types.NamespacedName{Namespace: "payroll", Name: "secret-plan"}
	own := netip.MustParseAddr("10.1.2.3")
	open := expect.Expectation{
		Flow: flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr("10.7.7.7"), Dst: own, Port: 80}, Want: flow.Allowed,
	}
	d, err := demand.NewTable().Of([]expect.Expectation{
		allow(shopAllow, own.String(), 80), allow(theirs, own.String(), 80), open,
	}, []netip.Addr{own})
	if err != nil {
		t.Fatal(err)
	}
	return d, []netip.Addr{own}
}

func TestWhatANodeLacksIsSaidInTheManagersWords(t *testing.T) {
	const rule = "nft ip filter/KUBE-NWPLCY-X: -m set --match-set KUBE-SRC-Y src -m comment --comment payroll/secret-plan"
	cases := map[string]struct {
		index  uint32
		reason string
		want   string
	}{
		"a refusal names the policy": {
			0, "denied (" + rule + ")", "shop/allow (this namespace) does not admit 10.1.2.3 there yet",
		},
		"a refusal by another namespace's names none": {
			1, "denied (" + rule + ")", "a policy in another namespace is not in force there yet",
		},
		"a refusal without a policy": {
			2, "denied (" + rule + ")", "the rules there are not complete yet",
		},
		"of a family that is not enforced": {
			0, "v6 is not enforced on this node, and nothing else was asked: denied (" + rule + ")",
			"shop/allow (this namespace) does not admit 10.1.2.3 there yet",
		},
		"what cannot be told, and why in a word": {
			0, "inconclusive (SourceRewritten: " + rule + ")",
			"it cannot be told there whether shop/allow (this namespace) is in force: SourceRewritten",
		},
		"what cannot be told of another namespace's policy": {
			1, "inconclusive (NoRoute: the route is of type 7)",
			"it cannot be told there whether a policy in another namespace is in force: NoRoute",
		},
		"what cannot be told without a policy": {
			2, "inconclusive (DestinationRewritten: " + rule + ")",
			"it cannot be told there whether the rules are complete: DestinationRewritten",
		},
		"a rule that is not understood is not told": {
			0, "inconclusive (" + rule + ")", "it cannot be told there whether shop/allow (this namespace) is in force",
		},
		"a word of ours elsewhere in a rule is the rule's": {
			0, "inconclusive (comment SourceRewritten)", "it cannot be told there whether shop/allow (this namespace) is in force",
		},
		"a reason that nobody has heard of cannot be told": {
			0, "payroll/secret-plan is to blame", "it cannot be told there whether shop/allow (this namespace) is in force",
		},
		"no reason at all": {
			0, "", "it cannot be told there whether shop/allow (this namespace) is in force",
		},
		"an expectation that there is not": {
			9, "inconclusive (NoRoute)", "it cannot be told there whether the rules are complete: NoRoute",
		},
		"rules that could not be read": {
			0, "the dataplane could not be read: netlink: " + rule, "its rules could not be read",
		},
		"an address that was another's": {
			0, "an address was another Pod's a short while ago: waiting for two rewrites of the rules, or 10 s without any",
			"the Pod's address was another Pod's a short while ago, so the policy engine's next rewrites are awaited",
		},
		"a question that was not understood": {
			0, "malformed expectation 0: it leaves out", "its agent does not understand what it is asked",
		},
		"a look that has to be taken again": {
			0, "assigned anew during the look", "its agent looks once more",
		},
	}
	d, ips := threeDemands(t)
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got := awaits(d, &hubv1.Unmet{Expectation: tc.index, Reason: tc.reason}, "shop", ips)
			if got != tc.want {
				t.Errorf("awaits = %q, want %q", got, tc.want)
			}
		})
	}
}

// Whatever a node says, none of it is repeated but three words.
func FuzzANodesReasonIsNotRepeated(f *testing.F) {
	f.Add(uint32(0), "inconclusive (NoRoute: x)")
	f.Add(uint32(1), "denied (payroll/secret-plan)")
	f.Add(uint32(2), "v4 is not enforced on this node, and nothing else was asked: inconclusive (SourceRewritten)")
	f.Add(uint32(7), "the dataplane could not be read: 10.7.7.7")
	d, ips := threeDemands(f)
	known := map[string]bool{}
	for index := range uint32(4) {
		for _, reason := range []string{"denied", "", "the dataplane could not be read", "an address was another Pod's a short while ago", "malformed ", "not confirmed"} {
			known[awaits(d, &hubv1.Unmet{Expectation: index, Reason: reason}, "shop", ips)] = true
		}
	}
	f.Fuzz(func(t *testing.T, index uint32, reason string) {
		got := awaits(d, &hubv1.Unmet{Expectation: index, Reason: reason}, "shop", ips)
		for _, word := range []string{"", ": NoRoute", ": SourceRewritten", ": DestinationRewritten"} {
			if text, ends := strings.CutSuffix(got, word); ends && known[text] {
				return
			}
		}
		t.Errorf("%q is told as %q", reason, got)
	})
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"strings"
	"testing"
)

// found are rules of which verdicts were once wrong, written as in decided.
// They need not be known, but must not be wrong again.
var found = map[string]string{
	"a last hop is not routed":                     "mangle PREROUTING -j TTL --ttl-dec 63",
	"a template is a connection before there is":   "raw OUTPUT -p udp -j CT --zone-orig 4; raw OUTPUT -m connmark --mark 0x0/0x2 -j DROP; raw PREROUTING -j CT --zone 4; raw PREROUTING -m conntrack --ctstate NEW -j DROP",
	"a template is not taken away by NOTRACK":      "raw PREROUTING -j CT --zone 4; raw PREROUTING -j CT --notrack; filter FORWARD -m conntrack --ctstate UNTRACKED -j DROP",
	"bitmaps of ports have none of other than TCP": "filter FORWARD -m set --match-set bmport4 dst -j DROP",
}

func TestWhatWasFoundWrongStaysRight(t *testing.T) {
	onNode(t, func(n *Node) {
		for name, rules := range found {
			for _, backend := range []string{"legacy", "nft"} {
				r := &Ruleset{Calls4: true, Calls6: true, Loads: []Load{{"ipset", lines(true, "add bmport4 80", "add bmport4 443")}, restore(backend, "4", rules), restore(backend, "6", strings.ReplaceAll(rules, "TTL --ttl", "HL --hl"))}}
				count := r.rules()
				outcomes, err := n.Try(t.Context(), r, newGenerator(1, n.sets).flows(n, 400))
				if err != nil || r.rules() != count {
					t.Errorf("%s: %s: %d rules refused, error %v", backend, name, count-r.rules(), err)
				}
				for _, o := range outcomes {
					if o.Wrong != "" {
						t.Errorf("%s: %s: %s: %s, %s", backend, name, o.Flow, o.Verdict, o.Wrong)
						break
					}
				}
			}
		}
	})
}

// foundNative are nft's own.
var foundNative = map[string]string{
	"nat chains see nothing where no rule needs connections": "add table inet t; add chain inet t c { type nat hook input priority 100; policy drop; }; add chain inet t p { type nat hook prerouting priority -100; policy drop; }",
	"nat of the other family does nothing":                   "add table inet t; add chain inet t c { type nat hook postrouting priority 100; policy drop; }; add rule inet t c ct state new snat ip6 to fd00:192:168:100::10; add chain inet t p { type nat hook prerouting priority -100; policy drop; }; add rule inet t p ct state new dnat ip to 10.244.1.10",
	"nor do they mark anything":                              "add table inet t; add chain inet t p { type nat hook prerouting priority -100; policy accept; }; add rule inet t p meta mark set 1; add chain inet t c { type filter hook forward priority 0; policy accept; }; add rule inet t c meta mark 1 drop",
}

func TestWhatWasFoundWrongInNftStaysRight(t *testing.T) {
	onNode(t, func(n *Node) {
		for name, rules := range foundNative {
			texts := strings.Split(rules, "; add ")
			for i := range texts {
				texts[i] = "add " + strings.TrimPrefix(texts[i], "add ")
			}
			outcomes, err := n.Try(t.Context(), &Ruleset{Loads: []Load{{"nft", lines(false, texts...)}}}, newGenerator(1, n.sets).flows(n, 400))
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for _, o := range outcomes {
				if o.Wrong != "" {
					t.Errorf("%s: %s: %s, %s", name, o.Flow, o.Verdict, o.Wrong)
					break
				}
			}
		}
	})
}

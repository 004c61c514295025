// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"fmt"
	"testing"

	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/test/ovn/fixture"
)

// TestMatches has one ACL at a time that drops, and wants what is said for sure to
// be what OVN does.
func TestMatches(t *testing.T) {
	w := newWorld(t, 2, fixture.Options{})
	src, dst := w.pods[0], w.pods[1]
	w.must(w.Nbctl(t.Context(), "pg-add", "g1", dst.Port(), "--", "pg-add", "g2"))
	for name, members := range map[string]string{
		"s.empty": "", "s.src": src.IP().String(), "s.all": "0.0.0.0/0", "s.mixed": src.IP().String() + `","fd00::5`, "s.bits": "10.16.0.9/24",
		"s.bitsandsrc": src.IP().String() + `","10.17.0.9/24`, "s.bad": "nothing", "s.badandsrc": src.IP().String() + `","nothing`,
		"s.words": "10.17.0.1 " + src.IP().String(),
	} {
		w.must(w.Nbctl(t.Context(), "create", "Address_Set", "name="+name))
		if members != "" {
			w.must(w.Nbctl(t.Context(), "set", "Address_Set", name, `addresses=["`+members+`"]`))
		}
	}
	f := flow.Flow{Protocol: flow.TCP, Src: src.IP(), Dst: dst.IP(), Port: 80}
	known := 0
	texts := []string{
		"1", "0", "ip", "ip4", "ip6", "!ip6", "!tcp", "!(!tcp)", "tcp", "udp", "ip.proto == 6", "ip.proto != 17", "ip.proto == {6, 17}",
		"ip4.src == $s.empty", "ip4.src != $s.empty", "!(ip4.src == $s.empty)", "!(ip4.src != $s.empty)",
		"ip4.src == $s.src", "ip4.src != $s.src", "!(ip4.src != $s.src)",
		"ip4.src == $s.all", "ip4.src != $s.all", "ip4.src == 0.0.0.0/0", "ip4.src != 0.0.0.0/0", "ip4.src == {10.17.0.1, 0.0.0.0/0}", "ip4.src != {10.17.0.1, 0.0.0.0/0}",
		"!(ip4.src != {10.17.0.1, 0.0.0.0/0})", "!(ip4.src != 0.0.0.0/0)",
		"ip4.src == $s.mixed", "ip4.src != $s.mixed", "ip4.src == $s.bits", "ip4.src != $s.bits", "ip4.src == $s.bitsandsrc",
		"ip4.src == $s.bad", "ip4.src != $s.bad", "ip4.src == $s.badandsrc", "ip4.src != $s.badandsrc", "ip4.src == $s.words",
		"ip4.src == {$s.src, 10.17.0.1}", "ip4.src == {$s.empty, 10.17.0.1}", "ip4.src != {$s.empty, 10.17.0.1}",
		"ip4.src == 10.16.0.9/24", "ip4.src == 10.16.0.0/255.255.0.0", "ip4.src == 10.16.0.0/255.0.255.0", "ip4.src == $s.none || ip", "ip4.src == fd00::1 || ip",
		"ip4.dst == $g1_ip4", "ip4.dst == $g2_ip4", "ip4.dst != $g2_ip4", "ip6.dst == $g1_ip6", "ip4.dst == $g1_ip6",
		"outport == @g1", "outport == @g2", "outport == @g.none", "outport == @g.none || ip", "outport != @g2", "!(outport == @g2)", "!(outport != @g1)",
		fmt.Sprintf("outport == %q", dst.Port()), fmt.Sprintf("inport == %q", src.Port()), `outport == "gone"`, `outport == "gone" || ip`,
		fmt.Sprintf("outport == {%q, @g2}", dst.Port()), "inport == @g1",
		"tcp.dst == 80", "tcp.dst != 80", "tcp.dst != 81", "!(tcp.dst == 81)", "!(udp.dst == 81)", "udp.dst != 81", "tcp.dst == {79, 80}", "tcp.dst != {79, 81}",
		"80 <= tcp.dst <= 80", "79 < tcp.dst < 81", "81 >= tcp.dst >= 80", "80 == tcp.dst", "tcp.dst == 0x50", "tcp.dst == 080", "tcp.dst == 65616", "tcp == 1", "tcp == 0",
		"1 <= tcp.dst >= 2", "ip && tcp || udp", "ip && (tcp || udp)", "!tcp.dst == 81", "ip &&", "tea.kind == 1 || ip", "", "(((ip)))",
		"ip4 /* all */", "tcp.dst == 80/0xfff0", "ip4.src == {}", "{10.16.0.0/16} == ip4.src", "ip4.src == {10.16.0.0/16,}", "ip4.src < 10.17.0.0",
	}
	for i, text := range texts {
		if _, err := w.Transact(t.Context(),
			fixture.Operation{"op": "insert", "table": "ACL", "uuid-name": "a", "row": map[string]any{
				"direction": "to-lport", "priority": 1000, "match": text, "action": "drop"}},
			fixture.Operation{"op": "update", "table": "Logical_Switch", "where": fixture.NameIs(podSwitch),
				"row": map[string]any{"acls": []any{"set", []any{[]string{"named-uuid", "a"}}}}}); err != nil {
			t.Fatal(err)
		}
		w.must(w.Nbctl(t.Context(), "--wait=sb", "sync"))
		w.awaitVersion(fmt.Sprint(i))
		verdicts, err := w.verdicts(f)
		if err != nil {
			t.Fatal(err)
		}
		v := verdicts[0]
		allowed, _ := w.trace(f)
		t.Logf("%-50s OVN allows: %-5v %s", text, allowed, v)
		if v.Answer == flow.Inconclusive {
			continue
		}
		known++
		if allowed != (v.Answer == flow.Allowed) {
			t.Errorf("%q: %s, and OVN allows it: %v", text, v, allowed)
		}
	}
	if known < len(texts)/2 {
		t.Errorf("%d of %d are sure: want more", known, len(texts))
	}
}

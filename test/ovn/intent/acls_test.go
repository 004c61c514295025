// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/test/ovn/fixture"
)

// acls makes up ACLs in OVN's language, Kube-OVN's and others.
type acls struct {
	*rand.Rand
	addresses []netip.Addr
	ports     []string
}

// The names that matches may use. One of either kind does not exist.
var (
	groups = []string{"g1", "g2", "g1", "g2", "g.none"}
	sets   = []string{"s1", "s2", "s1", "s2", "s.empty", "s.none", "g1_ip4"}
)

func of[T any](r *rand.Rand, all ...T) T { return all[r.IntN(len(all))] }

func (r acls) address() string {
	a := of(r.Rand, r.addresses...).String()
	return of(r.Rand, a, a, "10.16.0.0/16", "10.17.0.0/255.255.0.0", "0.0.0.0/0", "192.0.2.0/24", "10.16.0.5/24")
}

func (r acls) field() string { return of(r.Rand, "ip4.src", "ip4.dst") }

// term returns a comparison or a predicate.
func (r acls) term(direction string) string {
	side := of(r.Rand, "inport", "outport")
	if direction == "from-lport" {
		side = "inport"
	}
	proto := of(r.Rand, "tcp", "tcp", "udp")
	switch r.IntN(16) {
	case 0:
		return side + " == @" + of(r.Rand, groups...)
	case 1:
		return fmt.Sprintf("%s == %q", side, of(r.Rand, r.ports...))
	case 2:
		return fmt.Sprintf("%s == {@%s, %q}", side, of(r.Rand, groups...), of(r.Rand, r.ports...))
	case 3, 4:
		return r.field() + of(r.Rand, " == ", " != ") + "$" + of(r.Rand, sets...)
	case 5:
		return r.field() + of(r.Rand, " == ", " != ") + r.address()
	case 6:
		return r.field() + of(r.Rand, " == ", " != ") + "{" + r.address() + ", " + r.address() + "}"
	case 7:
		return fmt.Sprintf("%s.dst %s %d", proto, of(r.Rand, "==", "!=", "<", ">="), 79+r.IntN(3))
	case 8:
		return fmt.Sprintf("%d <= %s.dst <= %d", 78+r.IntN(3), proto, 80+r.IntN(3))
	case 9:
		return of(r.Rand, "ip", "ip4", "tcp", "udp", "1")
	case 10:
		return of(r.Rand, "ip6", "icmp6", "arp", "0", "ip.proto == 17", "ip.proto == {6, 17}")
	case 11:
		if r.IntN(3) > 0 {
			return "1"
		}
		return of(r.Rand, "tea.kind == 1", "ip4.src == ", "eth.src == 0a:00:00:00:17:05", "tcp.dst == 080", "ip4.src == fd00::1", `inport != "x"`)
	case 12:
		if r.IntN(3) > 0 {
			return "ip4"
		}
		return of(r.Rand, "!ip6", "!udp", "!icmp6", "!tcp")
	default:
		return fmt.Sprintf("%s.dst == {79, 80}", proto)
	}
}

// match returns a match of some terms.
func (r acls) match(direction string, depth int) string {
	var parts []string
	by := of(r.Rand, " && ", " && ", " || ")
	for range 1 + r.IntN(3) {
		if depth == 0 || r.IntN(3) > 0 {
			parts = append(parts, r.term(direction))
			continue
		}
		parts = append(parts, of(r.Rand, "", "", "!")+"("+r.match(direction, depth-1)+")")
	}
	text := strings.Join(parts, by)
	if depth == 2 && r.IntN(2) == 0 {
		side := map[string]string{"from-lport": "inport", "to-lport": "outport"}[direction]
		text = side + " == @" + of(r.Rand, groups[:2]...) + " && (" + text + ")"
	}
	return text
}

// operations returns what writes a world of ACLs, in place of the one before.
func (r acls) operations() (operations []fixture.Operation, description string) {
	var text strings.Builder
	pick := func(all []string) (picked []string) {
		for _, a := range all {
			if r.IntN(2) == 0 {
				picked = append(picked, a)
			}
		}
		return picked
	}
	var addresses []string
	for _, a := range r.addresses {
		addresses = append(addresses, a.String())
	}
	addresses = append(addresses, "10.17.0.0/16", "10.16.0.0/30")
	if r.IntN(4) == 0 {
		addresses = append(addresses, "fd00::5", "10.16.0.6/24")
	}
	for _, name := range sets[:2] {
		members := pick(addresses)
		fmt.Fprintf(&text, "$%s = %v\n", name, members)
		operations = append(operations, fixture.Operation{"op": "update", "table": "Address_Set", "where": fixture.NameIs(name),
			"row": map[string]any{"addresses": fixture.Set(members...)}})
	}
	for _, holder := range []struct{ table, name string }{{"Port_Group", "g1"}, {"Port_Group", "g2"}, {"Logical_Switch", podSwitch}, {"Logical_Switch", farSwitch}} {
		uuids := []any{}
		for i := range r.IntN(4) {
			direction := of(r.Rand, "to-lport", "to-lport", "from-lport")
			match, options := r.match(direction, 2), map[string]string{}
			if direction == "from-lport" && r.IntN(2) == 0 {
				options["apply-after-lb"] = "true"
			}
			action, priority := of(r.Rand, "allow-related", "allow", "drop", "drop", "reject", "allow-stateless"), 1000+r.IntN(4)
			uuid := fmt.Sprintf("%s_%d", strings.ReplaceAll(holder.name, "-", "_"), i)
			uuids = append(uuids, []string{"named-uuid", uuid})
			fmt.Fprintf(&text, "%s: %s %d %s %v: %s\n", holder.name, direction, priority, action, options, match)
			operations = append(operations, fixture.Operation{"op": "insert", "table": "ACL", "uuid-name": uuid, "row": map[string]any{
				"direction": direction, "priority": priority, "match": match, "action": action, "options": fixture.Map(options)}})
		}
		operations = append(operations, fixture.Operation{"op": "update", "table": holder.table, "where": fixture.NameIs(holder.name),
			"row": map[string]any{"acls": []any{"set", uuids}}})
	}
	return operations, text.String()
}

// TestRandomACLs makes up ACLs, many of them wrong or odd, and wants what is said
// for sure to be what OVN's own logical flows do.
func TestRandomACLs(t *testing.T) {
	w := newWorld(t, 3, fixture.Options{})
	var addresses []netip.Addr
	ports := []string{farPort, "gone"}
	for _, p := range w.pods {
		addresses, ports = append(addresses, p.IP()), append(ports, p.Port())
	}
	w.must(w.Nbctl(t.Context(), "pg-add", "g1", w.pods[0].Port(), w.pods[1].Port(), "--", "pg-add", "g2", w.pods[1].Port(), farPort,
		"--", "create", "Address_Set", "name=s1", "--", "create", "Address_Set", "name=s2", "--", "create", "Address_Set", "name=s.empty"))
	addresses = append(addresses, farAddress())
	sure, asked := map[flow.Answer]int{}, 0
	for seed := range worlds(t, 100) {
		r := acls{rand.New(rand.NewPCG(seed, 3)), addresses, ports}
		operations, description := r.operations()
		if _, err := w.Transact(t.Context(), operations...); err != nil {
			t.Fatal(err)
		}
		w.must(w.Nbctl(t.Context(), "--wait=sb", "sync"))
		w.awaitVersion(fmt.Sprint(seed))
		for range 6 {
			f := flow.Flow{Protocol: of(r.Rand, flow.TCP, flow.TCP, flow.UDP), Src: of(r.Rand, addresses...), Dst: of(r.Rand, addresses...), Port: 80}
			if f.Src == f.Dst {
				continue
			}
			asked++
			verdicts, err := w.verdicts(f)
			if err != nil {
				t.Fatal(err)
			}
			v := verdicts[0]
			sure[v.Answer]++
			if v.Answer == flow.Inconclusive {
				continue
			}
			if allowed, out := w.trace(f); allowed != (v.Answer == flow.Allowed) {
				t.Errorf("seed %d: %s: %s, and OVN says allowed: %v\n%s\n%s", seed, f, v, allowed, description, out)
			}
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("%d flows: %v", asked, sure)
	if sure[flow.Allowed] < asked/10 || sure[flow.Denied] < asked/10 {
		t.Errorf("of %d flows %v were sure: want a tenth of either answer", asked, sure)
	}
}

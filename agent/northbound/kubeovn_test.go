// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/policygate/policygate/api/flow"
)

// recorded has the rows that a kube-ovn-controller wrote, of 1.16.0-400-g1533681d7
// with --enable-anp, for Pods with an address of each family. Some groups and ports
// were left out.
func recorded(t *testing.T) *database {
	t.Helper()
	text, err := os.ReadFile("testdata/kube-ovn.json")
	if err != nil {
		t.Fatal(err)
	}
	var tables map[string][]map[string]any
	if err := json.Unmarshal(text, &tables); err != nil {
		t.Fatal(err)
	}
	d := newDatabase()
	d.put(tableGlobal, "global", map[string]any{"options": map[string]string{
		"ls_ct_skip_dst_lport_ips": "true", "ls_dnat_mod_dl_dst": "true", "use_ct_inv_match": "false",
	}})
	for table, rows := range tables {
		for _, r := range rows {
			for column, value := range r {
				switch v := value.(type) {
				case float64:
					r[column] = int(v)
				case []any:
					words := []string{}
					for _, word := range v {
						words = append(words, word.(string))
					}
					r[column] = words
				case map[string]any:
					keys := map[string]string{}
					for k, word := range v {
						keys[k] = word.(string)
					}
					r[column] = keys
				}
			}
			d.put(table, r["_uuid"].(string), r)
		}
	}
	return d
}

// TestKubeOVN asks about what the real controller wrote. ovn-trace said the same of
// each flow, with OVN 23.03, which knows no tiers.
func TestKubeOVN(t *testing.T) {
	t.Parallel()
	d := recorded(t)
	addresses := map[string][]string{"outside": {"192.0.2.5", "2001:db8::5"}, "node n1": {"192.168.7.1", "fd00:7::1"}, "node n2": {"192.168.7.2", "fd00:7::2"}}
	for name, r := range d.view.tables[tablePort] {
		addresses[name] = strings.Fields(r.Strings("addresses")[0])[1:]
	}
	const both, v4, v6 = 0, 4, 6
	look, err := New(d.newest).Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		what     string
		protocol flow.Protocol
		src, dst string
		port     uint16
		families int
		want     flow.Answer
		reason   string
	}{
		{"isolated", flow.TCP, "friend.db", "deny.db", 80, both, flow.Denied, "dropped by ACL db/default-deny-ingress of port group default.deny.ingress.db"},
		{"by its own node", flow.TCP, "node n1", "deny.db", 80, both, flow.Allowed, "to-lport: allowed by ACL 3000 ip"},
		{"by another node", flow.TCP, "node n2", "deny.db", 80, both, flow.Denied, "dropped by ACL db/default-deny-ingress"},
		{"a peer's port", flow.TCP, "friend.db", "server.db", 80, both, flow.Allowed, "to-lport: allowed by ACL np/allow-friend-80.db/ingress/IPv"},
		{"a peer's other port", flow.TCP, "friend.db", "server.db", 81, both, flow.Denied, "does tcp port 81 with it"},
		{"a peer's other protocol", flow.UDP, "friend.db", "server.db", 80, both, flow.Denied, "does udp port 80 with it"},
		{"a stranger", flow.TCP, "stranger.db", "server.db", 80, v4, flow.Denied, "address set allow.friend.80.db.ingress.allow.IPv4.0 lacks 10.16.0.21"},
		{"a stranger", flow.TCP, "stranger.db", "server.db", 80, v6, flow.Denied, "address set allow.friend.80.db.ingress.allow.IPv6.0 lacks fd00:10:16::15"},
		{"a named port", flow.TCP, "friend.db", "named.db", 8080, both, flow.Allowed, "np/allow-named.db/ingress/IPv"},
		{"a name that no port has", flow.TCP, "stranger.db", "named.db", 8080, both, flow.Denied, "db/allow-named"},
		{"the last port of a range", flow.TCP, "client2.web", "nsd.db", 8010, both, flow.Allowed, "np/allow-ns.db/ingress/IPv"},
		{"behind it", flow.TCP, "client2.web", "nsd.db", 8011, both, flow.Denied, "db/allow-ns"},
		{"another namespace", flow.UDP, "x.other", "nsd.db", 53, both, flow.Denied, "db/allow-ns"},
		{"excepted, but a peer", flow.TCP, "friend.db", "block.db", 80, both, flow.Allowed, "np/allow-block.db/ingress/IPv"},
		{"excepted", flow.TCP, "stranger.db", "block.db", 80, both, flow.Denied, "db/allow-block"},
		{"in the second block", flow.TCP, "outside", "block.db", 80, v4, flow.Allowed, "np/allow-block.db/ingress/IPv4/0/ipBlock"},
		{"in no block", flow.TCP, "outside", "block.db", 80, v6, flow.Denied, "db/allow-block"},
		{"out to no peer", flow.TCP, "egr.db", "free.db", 80, both, flow.Denied, "from-lport: dropped by ACL db/egress-some"},
		{"out to a block", flow.TCP, "egr.db", "outside", 443, v4, flow.Allowed, "np/egress-some.db/egress/IPv4/1/ipBlock"},
		{"out to a block of the other family", flow.TCP, "egr.db", "outside", 443, v6, flow.Denied, "db/egress-some"},
		{"out to what a Service has", flow.TCP, "svcclient.db", "backend.db", 8081, both, flow.Allowed, "from-lport: allowed by ACL np/to-service.db/egress/IPv"},
		{"lax: a peer", flow.TCP, "friend.db", "lax.db", 80, both, flow.Allowed, "np/lax-ingress.db/ingress/IPv"},
		{"lax: a stranger", flow.UDP, "stranger.db", "lax.db", 80, both, flow.Denied, "dropped by ACL db/lax-ingress"},
		{"logged: a peer", flow.TCP, "friend.db", "logged.db", 80, both, flow.Allowed, "np/logged.db/ingress/IPv"},
		{"logged: a stranger", flow.TCP, "stranger.db", "logged.db", 80, both, flow.Denied, "dropped by ACL db/logged"},
		{"the second of two policies", flow.TCP, "stranger.db", "two.db", 81, both, flow.Allowed, "np/two-b.db/ingress/IPv"},
		{"neither of two policies", flow.TCP, "stranger.db", "two.db", 80, both, flow.Denied, "dropped by ACL db/two-"},
		{"a long name", flow.TCP, "friend.db", "long.db", 80, both, flow.Allowed, "allowed by ACL np/a-very-long-policy-name-"},
		{"a name that begins with a digit", flow.TCP, "friend.db", "digit.db", 80, both, flow.Allowed, "np/np1st.db/ingress/IPv"},
		{"no policy", flow.TCP, "friend.db", "free.db", 80, both, flow.Allowed, "to-lport: logical port free.db is in no port group that denies; that of a policy of its namespace lacks it: "},
		{"into a private subnet", flow.TCP, "friend.db", "p1.priv", 80, both, flow.Allowed, "to-lport: allowed by ACL 1001 (ip"},
		{"from outside of it", flow.TCP, "outside", "p1.priv", 80, both, flow.Denied, "dropped by ACL priv on logical switch priv"},
		{"an AdminNetworkPolicy that allows", flow.TCP, "client.web", "a1.anp", 9000, both, flow.Allowed, "anp/my-anp/ingress/IPv"},
		{"one that denies", flow.TCP, "x.other", "a1.anp", 80, both, flow.Denied, "dropped by ACL anp/my-anp/ingress/IPv"},
		{"one that passes, to a policy that allows", flow.TCP, "friend.db", "a1.anp", 80, both, flow.Allowed, "np/only-db-80.anp/ingress/IPv"},
		{"one that passes, to a policy that does not", flow.TCP, "friend.db", "a1.anp", 81, both, flow.Denied, "dropped by ACL anp/only-db-80"},
		{"one that passes, to nothing", flow.TCP, "friend.db", "a2.anp", 80, both, flow.Allowed, "to-lport: no ACL matches of the port groups of logical port a2.anp"},
		{"the baseline that denies", flow.TCP, "client.web", "a2.anp", 80, both, flow.Denied, "dropped by ACL banp/default/ingress/IPv"},
		{"a security group before a policy", flow.TCP, "client.web", "s1.sgns", 80, v4, flow.Allowed, "allowed by ACL 18483"},
		{"a security group that allows nothing", flow.TCP, "friend.db", "s1.sgns", 80, v6, flow.Denied, "of port group ovn.sg.kubeovn_deny_all"},
		{"within a security group", flow.TCP, "s1.sgns", "s2.sgns", 82, both, flow.Allowed, "allowed by ACL 2004"},
	} {
		for i, family := range []int{v4, v6} {
			if test.families != both && test.families != family {
				continue
			}
			f := flow.Flow{Protocol: test.protocol, Src: netip.MustParseAddr(addresses[test.src][i]), Dst: netip.MustParseAddr(addresses[test.dst][i]), Port: test.port}
			answers, err := look.Together(t.Context(), []Question{{Flow: f}})
			if err != nil {
				t.Fatal(err)
			}
			if v := answers[0].Verdict; v.Answer != test.want || !strings.Contains(v.Reason, test.reason) {
				t.Errorf("%s, %s: %s\nwant %s with %q", test.what, f, v, test.want, test.reason)
			} else if strings.Contains(v.Reason, ".n1") && !strings.Contains(v.Reason, "$node.n1") || strings.Contains(v.Reason, ".n2") {
				t.Errorf("%s, %s: %s\nwant no word of a node's group", test.what, f, v)
			}
		}
	}
}

// TestGroupsOfNodes wants the groups that Kube-OVN has for nodes, and for subnets on
// nodes, told from policies'. A subnet is often called as its namespace.
func TestGroupsOfNodes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, np, want string }{
		{"allow.friend.80.db", "db/allow-friend-80", "db/allow-friend-80"},
		{"np1st.my.ns", "my-ns/np1st", "my-ns/np1st"},
		{"node.n1", "node/n1", ""},
		{"node.my.node", "node/my-node", ""},
		{"a.policy.node", "node/a-policy", "node/a-policy"},
		{"ovn.default.n1", "ovn-default/n1", ""},
		{"db.n1", "db/n1", ""},
		{"ovn.sg.sg.one", "", ""},
	} {
		g := groupOf(&testRow{"g", map[string]any{"name": test.name, "external_ids": map[string]string{"np": test.np}}})
		if g.policy != test.want {
			t.Errorf("group %s with np %q is taken for one of policy %q, want %q", test.name, test.np, g.policy, test.want)
		}
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/test/ovn/engine"
)

func TestPlanOfOnePolicy(t *testing.T) {
	got, err := engine.Plan(engine.Cluster{
		Policies: []*networkingv1.NetworkPolicy{fromFriend()},
		Pods:     []*corev1.Pod{apiPod("db", "server", "10.16.0.5"), apiPod("db", "friend", "10.16.0.6"), apiPod("web", "friend", "10.16.0.7")},
		Nodes: []*corev1.Node{{
			ObjectMeta: metav1.ObjectMeta{Name: "n1"},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeInternalIP, Address: "172.30.0.1"},
			}},
		}},
	}, engine.Release116())
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]string{"np": "db/from-friend/ingress", "vendor": "kube-ovn"}
	of := func(parent string) map[string]string {
		return map[string]string{"parent": parent, "vendor": "kube-ovn"}
	}
	want := engine.Objects{
		Policies: []engine.Policy{{
			Key: types.NamespacedName{Namespace: "db", Name: "from-friend"},
			PortGroup: engine.PortGroup{Name: "from.friend.db", Ports: []string{"server.db"},
				ExternalIDs: map[string]string{"np": "db/from-friend", "vendor": "kube-ovn"}},
			Ingress: engine.Direction{
				Isolated: true, Rules: 1,
				AddressSets: []engine.AddressSet{
					{Name: "from.friend.db.ingress.allow.IPv4.0", Addresses: []string{"10.16.0.6"}, ExternalIDs: set},
					{Name: "from.friend.db.ingress.except.IPv4.0", ExternalIDs: set},
				},
				ACLs: []engine.ACL{
					{Name: "db/from-friend", Direction: "to-lport", Priority: 2000, Action: "drop",
						Match: "outport == @from.friend.db && ip", ExternalIDs: of("from.friend.db")},
					{Name: "np/from-friend.db/ingress/IPv4/0", Direction: "to-lport", Priority: 2001, Action: "allow-related",
						Match: "outport == @from.friend.db && ip && ip4.src == $from.friend.db.ingress.allow.IPv4.0 && " +
							"ip4.src != $from.friend.db.ingress.except.IPv4.0 && tcp.dst == 80",
						ExternalIDs: of("from.friend.db")},
				},
			},
		}},
		Nodes: []engine.NodeGroup{{Name: "node.n1", ACLs: []engine.ACL{
			{Direction: "to-lport", Priority: 3000, Action: "allow-related",
				Match: "ip4.src == 172.30.0.1 && ip4.dst == $node.n1_ip4", ExternalIDs: of("node.n1")},
			{Direction: "from-lport", Priority: 3000, Action: "allow-related",
				Match: "ip4.dst == 172.30.0.1 && ip4.src == $node.n1_ip4", ExternalIDs: of("node.n1"),
				Options: map[string]string{"apply-after-lb": "true"}},
		}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
}

// apiPod is an allocated Pod with the label app of its name.
func apiPod(namespace, name string, ips ...string) *corev1.Pod {
	var addresses []netip.Addr
	for _, ip := range ips {
		addresses = append(addresses, netip.MustParseAddr(ip))
	}
	return engine.Allocate(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}}}, addresses...)
}

// lines writes a policy's rows, one each, without what they all have.
func lines(p engine.Policy) []string {
	out := []string{fmt.Sprintf("group %s %v", p.PortGroup.Name, p.PortGroup.Ports)}
	acls := func(acls []engine.ACL) {
		for _, a := range acls {
			line := fmt.Sprintf("%s %d %s | %s | %s", a.Direction, a.Priority, a.Action, a.Name, a.Match)
			for k, v := range a.Options {
				line += " | " + k + "=" + v
			}
			out = append(out, line)
		}
	}
	for _, d := range []engine.Direction{p.Ingress, p.Egress} {
		for _, s := range d.AddressSets {
			out = append(out, fmt.Sprintf("set %s %v", s.Name, s.Addresses))
		}
		acls(d.ACLs)
	}
	acls(p.Gateway)
	return out
}

func selecting(labels ...string) *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	for _, l := range labels {
		key, value, _ := strings.Cut(l, "=")
		metav1.AddLabelToSelector(s, key, value)
	}
	return s
}

func block(cidr string, except ...string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: except}}
}

func on(protocol corev1.Protocol, port intstr.IntOrString, end ...int32) networkingv1.NetworkPolicyPort {
	p := networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &port}
	if len(end) > 0 {
		p.EndPort = &end[0]
	}
	return p
}

func TestPlanOfRules(t *testing.T) {
	type spec = networkingv1.NetworkPolicySpec
	type in = networkingv1.NetworkPolicyIngressRule
	type out = networkingv1.NetworkPolicyEgressRule
	type peer = networkingv1.NetworkPolicyPeer
	type ports = []networkingv1.NetworkPolicyPort

	ready := apiPod("db", "server", "10.16.0.5")
	ready.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "sql", ContainerPort: 3306}}}}
	later := apiPod("db", "later", "10.16.0.8")
	later.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "sql", ContainerPort: 5432}}}}
	always := corev1.ContainerRestartPolicyAlways
	later.Spec.InitContainers = []corev1.Container{
		{Ports: []corev1.ContainerPort{{Name: "once", ContainerPort: 1}}},
		{RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "sidecar", ContainerPort: 2}}},
	}
	waiting := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "waiting", Labels: map[string]string{"app": "waiting"}}}
	host := apiPod("db", "host", "172.30.0.1")
	host.Spec.HostNetwork = true
	pods := []*corev1.Pod{ready, later, waiting, host, apiPod("db", "dual", "10.16.0.9", "fd00:10:16::9"), apiPod("web", "client", "10.16.0.6")}
	services := []*corev1.Service{
		{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "server"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.5", Selector: map[string]string{"app": "server"}}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "headless"}, Spec: corev1.ServiceSpec{ClusterIP: "None", Selector: map[string]string{"app": "server"}}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "all"}, Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.6", "fd00:10:96::6"}}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "web", Name: "other"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.7", Selector: map[string]string{"app": "server"}}},
	}
	server := *selecting("app=server")
	inAndOut := []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	const (
		group  = "group p.db [server.db]"
		inSets = "outport == @p.db && ip && ip4.src == $p.db.ingress.allow.IPv4.0 && ip4.src != $p.db.ingress.except.IPv4.0"
		inAll  = "outport == @p.db && ip && ip4.src == $p.db.ingress.allow.IPv4.all && ip4.src != $p.db.ingress.except.IPv4.all"
		eSets  = "inport == @p.db && ip && ip4.dst == $p.db.egress.allow.IPv4.0 && ip4.dst != $p.db.egress.except.IPv4.0"
		eAll   = "inport == @p.db && ip && ip4.dst == $p.db.egress.allow.IPv4.all && ip4.dst != $p.db.egress.except.IPv4.all"
		inDrop = "to-lport 2000 drop | db/p | outport == @p.db && ip"
		eDrop  = "from-lport 2000 drop | db/p | inport == @p.db && ip | apply-after-lb=true"
		in0    = "to-lport 2001 allow-related | np/p.db/ingress/IPv4/0 | "
		in0b   = "to-lport 2001 allow-related | np/p.db/ingress/IPv4/0/ipBlock | "
		allow0 = "set p.db.ingress.allow.IPv4.0 "
		none0  = "set p.db.ingress.except.IPv4.0 []"
	)
	tests := map[string]struct {
		shape       engine.Shape
		name        string
		annotations map[string]string
		spec        spec
		want        []string
	}{
		"deny all has sets and an ACL that match nothing": {
			shape: engine.Release116(), spec: spec{PodSelector: server, PolicyTypes: inAndOut},
			want: []string{group,
				"set p.db.ingress.allow.IPv4.all []", "set p.db.ingress.except.IPv4.all []",
				inDrop, "to-lport 2001 allow-related | np/p.db/ingress/IPv4/all | " + inAll,
				"set p.db.egress.allow.IPv4.all []", "set p.db.egress.except.IPv4.all []",
				eDrop, "from-lport 2001 allow-related | np/p.db/egress/IPv4/all | " + eAll + " | apply-after-lb=true"},
		},
		"a policy of no allocated Pod has no ACL": {
			shape: engine.Release116(), spec: spec{PodSelector: *selecting("app=waiting"), PolicyTypes: inAndOut, Ingress: []in{{}}},
			want: []string{"group p.db []"},
		},
		"Pods of the host's network are not selected": {
			shape: engine.Release116(), spec: spec{PodSelector: *selecting("app=host"), Ingress: []in{{}}},
			want: []string{"group p.db []"},
		},
		"a direction that only has rules is isolated, the other is not": {
			shape: engine.Release116(), spec: spec{PodSelector: server, Egress: []out{{}}},
			want: []string{group, "set p.db.egress.allow.IPv4.0 [0.0.0.0/0]", "set p.db.egress.except.IPv4.0 []",
				eDrop, "from-lport 2001 allow-related | np/p.db/egress/IPv4/0 | " + eSets + " | apply-after-lb=true"},
		},
		"each port has an ACL, and names are looked up in the policy's namespace": {
			shape: engine.Release116(),
			spec: spec{PodSelector: server, Ingress: []in{{Ports: ports{
				on("TCP", intstr.FromInt32(80)), on("UDP", intstr.FromInt32(53), 60), {}, on("TCP", intstr.FromString("sql")),
				on("TCP", intstr.FromString("sidecar")), on("TCP", intstr.FromString("once")), on("TCP", intstr.FromString("sql"), 4000),
			}}}},
			want: []string{group, allow0 + "[0.0.0.0/0]", none0, inDrop,
				in0 + inSets + " && tcp.dst == 80", in0 + inSets + " && 53 <= udp.dst <= 60", in0 + inSets + " && tcp",
				in0 + inSets + " && tcp.dst == 3306", in0 + inSets + " && tcp.dst == 2"},
		},
		"peers without a namespace selector are of the policy's namespace": {
			shape: engine.Release116(), spec: spec{PodSelector: server, Ingress: []in{{From: []peer{{PodSelector: selecting()}}}}},
			want: []string{group, allow0 + "[10.16.0.5 10.16.0.8 10.16.0.9 172.30.0.1]", none0, inDrop, in0 + inSets},
		},
		"peers of other namespaces": {
			shape: engine.Release116(),
			spec:  spec{PodSelector: server, Ingress: []in{{From: []peer{{NamespaceSelector: selecting("name=web")}, {NamespaceSelector: selecting("name=web"), PodSelector: selecting("app=client")}}}}},
			want:  []string{group, allow0 + "[10.16.0.6]", none0, inDrop, in0 + inSets},
		},
		"a rule without peers: no ACL in 1.16": {
			shape: engine.Release116(), spec: spec{PodSelector: server, Ingress: []in{{From: []peer{{PodSelector: selecting("app=nobody")}}, Ports: ports{on("TCP", intstr.FromInt32(80))}}}},
			want: []string{group, allow0 + "[]", none0, inDrop},
		},
		"a rule without peers: an ACL without ports in 1.15": {
			shape: engine.Release115(), spec: spec{PodSelector: server, Ingress: []in{{From: []peer{{PodSelector: selecting("app=nobody")}}, Ports: ports{on("TCP", intstr.FromInt32(80))}}}},
			want: []string{group, allow0 + "[]", none0, inDrop, in0 + inSets},
		},
		"blocks of 1.16 are in an ACL of their own, exceptions each with its block": {
			shape: engine.Release116(),
			spec: spec{PodSelector: server, Ingress: []in{{
				From:  []peer{{PodSelector: selecting("app=later")}, block("192.0.2.0/24", "192.0.2.1/32", "198.51.100.0/24"), block("203.0.113.0/24"), block("fd00::/8")},
				Ports: ports{on("TCP", intstr.FromInt32(80))},
			}}},
			want: []string{group, allow0 + "[10.16.0.8]", none0, inDrop, in0 + inSets + " && tcp.dst == 80",
				in0b + "outport == @p.db && ip && ((ip4.src == 192.0.2.0/24 && ip4.src != {192.0.2.1/32}) || ip4.src == 203.0.113.0/24) && tcp.dst == 80"},
		},
		"one block of 1.16": {
			shape: engine.Release116(), spec: spec{PodSelector: server, Ingress: []in{{From: []peer{block("192.0.2.0/24", "192.0.2.1/32")}}}},
			want: []string{group, allow0 + "[]", none0, inDrop, in0b + "outport == @p.db && ip && (ip4.src == 192.0.2.0/24 && ip4.src != {192.0.2.1/32})"},
		},
		"blocks of 1.15 are in the sets, and exceptions are everybody's": {
			shape: engine.Release115(),
			spec:  spec{PodSelector: server, Ingress: []in{{From: []peer{{PodSelector: selecting("app=dual")}, block("10.16.0.0/24", "10.16.0.9/32"), block("fd00::/8")}}}},
			want: []string{group, allow0 + "[10.16.0.0/24 10.16.0.9 10.96.0.6]", "set p.db.ingress.except.IPv4.0 [10.16.0.9/32]",
				inDrop, in0 + inSets},
		},
		"ClusterIPs of 1.15": {
			shape: engine.Release115(), spec: spec{PodSelector: server, Ingress: []in{{From: []peer{{PodSelector: selecting("app=server")}}}}},
			want: []string{group, allow0 + "[10.16.0.5 10.96.0.5 10.96.0.6]", none0, inDrop, in0 + inSets},
		},
		"both families, with neighbour discovery": {
			shape: engine.Release116(), spec: spec{PodSelector: *selecting("app=dual"), Ingress: []in{{From: []peer{{PodSelector: selecting("app=dual")}, {PodSelector: selecting("app=server")}}}}},
			want: []string{"group p.db [dual.db]",
				allow0 + "[10.16.0.5 10.16.0.9]", none0, "set p.db.ingress.allow.IPv6.0 [fd00:10:16::9]", "set p.db.ingress.except.IPv6.0 []",
				inDrop, in0 + inSets,
				"to-lport 2001 allow-related | np/p.db/ingress/IPv6/0 | outport == @p.db && ip && ip6.src == $p.db.ingress.allow.IPv6.0 && ip6.src != $p.db.ingress.except.IPv6.0",
				"from-lport 2001 allow-stateless |  | icmp6 | apply-after-lb=true", "to-lport 2001 allow-stateless |  | icmp6"},
		},
		"lax denies three protocols and lets addresses be configured": {
			shape: engine.Shape{InlineBlocks: true, Lax: true}, spec: spec{PodSelector: server, PolicyTypes: inAndOut[:1], Ingress: []in{{}}},
			want: []string{group, allow0 + "[0.0.0.0/0]", none0,
				"to-lport 2000 drop | db/p | outport == @p.db && (tcp || udp || sctp)",
				"to-lport 2001 allow-related | db/p | outport == @p.db && udp.src == 547 && udp.dst == 546 && ip6",
				"to-lport 2001 allow-related | db/p | outport == @p.db && udp.src == 67 && udp.dst == 68 && ip4",
				in0 + inSets},
		},
		"an annotation makes one policy lax": {
			shape: engine.Release116(), annotations: map[string]string{"ovn.kubernetes.io/network_policy_enforcement": "lax"},
			spec: spec{PodSelector: server, Egress: []out{{}}},
			want: []string{group, "set p.db.egress.allow.IPv4.0 [0.0.0.0/0]", "set p.db.egress.except.IPv4.0 []",
				"from-lport 2000 drop | db/p | inport == @p.db && (tcp || udp || sctp) | apply-after-lb=true",
				"from-lport 2001 allow-related | db/p | inport == @p.db && udp.src == 546 && udp.dst == 547 && ip6 | apply-after-lb=true",
				"from-lport 2001 allow-related | db/p | inport == @p.db && udp.src == 68 && udp.dst == 67 && ip4 | apply-after-lb=true",
				"from-lport 2001 allow-related | np/p.db/egress/IPv4/0 | " + eSets + " | apply-after-lb=true"},
		},
		"an annotation makes one policy strict": {
			shape: engine.Shape{InlineBlocks: true, Lax: true}, annotations: map[string]string{"ovn.kubernetes.io/network_policy_enforcement": "standard"},
			spec: spec{PodSelector: server, Ingress: []in{{}}},
			want: []string{group, allow0 + "[0.0.0.0/0]", none0, inDrop, in0 + inSets},
		},
		"a name that begins with a digit": {
			shape: engine.Release116(), name: "1-p", spec: spec{PodSelector: *selecting("app=waiting"), Ingress: []in{{}}},
			want: []string{"group np1.p.db []"},
		},
		"a name too long for an ACL": {
			shape: engine.Release116(), name: strings.Repeat("a", 60), spec: spec{PodSelector: server, Ingress: []in{{From: []peer{{PodSelector: selecting("app=nobody")}}}}},
			want: []string{"group " + strings.Repeat("a", 60) + ".db [server.db]",
				"set " + strings.Repeat("a", 60) + ".db.ingress.allow.IPv4.0 []", "set " + strings.Repeat("a", 60) + ".db.ingress.except.IPv4.0 []",
				"to-lport 2000 drop | db/" + strings.Repeat("a", 60) + " | outport == @" + strings.Repeat("a", 60) + ".db && ip"},
		},
		"a name one byte longer": {
			shape: engine.Release116(), name: strings.Repeat("a", 61), spec: spec{PodSelector: server, Ingress: []in{{From: []peer{{PodSelector: selecting("app=nobody")}}}}},
			want: []string{"group " + strings.Repeat("a", 61) + ".db [server.db]",
				"set " + strings.Repeat("a", 61) + ".db.ingress.allow.IPv4.0 []", "set " + strings.Repeat("a", 61) + ".db.ingress.except.IPv4.0 []",
				"to-lport 2000 drop | db/" + strings.Repeat("a", 57) + "... | outport == @" + strings.Repeat("a", 61) + ".db && ip"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: tc.name, Annotations: tc.annotations}, Spec: tc.spec}
			if np.Name == "" {
				np.Name = "p"
			}
			got, err := engine.Plan(engine.Cluster{
				Policies: []*networkingv1.NetworkPolicy{np}, Pods: pods, Services: services,
				Namespaces: []*corev1.Namespace{
					{ObjectMeta: metav1.ObjectMeta{Name: "db", Labels: map[string]string{"name": "db"}}},
					{ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: map[string]string{"name": "web"}}},
				},
			}, tc.shape)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, lines(got.Policies[0])); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlanRefusesWhatTheAPIServerWould(t *testing.T) {
	bad := metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Is"}}}
	for name, spec := range map[string]networkingv1.NetworkPolicySpec{
		"a selector of Pods":       {PodSelector: bad},
		"a selector of peers":      {Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &bad}}}}},
		"a selector of namespaces": {Egress: []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &bad}}}}},
		"a block":                  {Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{block("10.16.0.0")}}}},
		"an exception":             {Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{block("10.16.0.0/16", "10.16")}}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := engine.Plan(engine.Cluster{
				Policies: []*networkingv1.NetworkPolicy{{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "p"}, Spec: spec}},
				Pods:     []*corev1.Pod{apiPod("db", "server", "10.16.0.5")},
			}, engine.Release116())
			if err == nil || !strings.HasPrefix(err.Error(), "NetworkPolicy db/p: ") {
				t.Errorf("error is %v, want one of NetworkPolicy db/p", err)
			}
		})
	}
}

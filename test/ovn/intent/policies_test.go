// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/test/ovn/engine"
	"github.com/policygate/policygate/test/ovn/fixture"
)

// labelled returns the world's cluster: Pods with a label each, and policies.
func (w *world) labelled(labels []string, policies ...*networkingv1.NetworkPolicy) engine.Cluster {
	c := engine.Cluster{Policies: policies}
	for i, p := range w.pods[:len(labels)] {
		c.Pods = append(c.Pods, p.Object(map[string]string{"app": labels[i]}))
	}
	for _, name := range []string{"db", "web"} {
		c.Namespaces = append(c.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}})
	}
	for _, n := range w.Nodes() {
		c.Nodes = append(c.Nodes, n.Object())
	}
	return c
}

func selector(label string) *metav1.LabelSelector {
	if label == "" {
		return &metav1.LabelSelector{}
	}
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": label}}
}

// maker makes up NetworkPolicies.
type maker struct{ *rand.Rand }

func (m maker) label() string { return of(m.Rand, "", "x", "y", "z") }

func (m maker) peers() []networkingv1.NetworkPolicyPeer {
	var peers []networkingv1.NetworkPolicyPeer
	for range m.IntN(3) {
		switch m.IntN(4) {
		case 0:
			peers = append(peers, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{
				CIDR: of(m.Rand, "10.16.0.0/16", "10.16.0.0/30", "0.0.0.0/0", "192.0.2.0/24"), Except: of(m.Rand, nil, []string{"10.16.0.2/31"})}})
			if m.IntN(3) == 0 {
				peers[len(peers)-1].IPBlock = &networkingv1.IPBlock{CIDR: of(m.Rand, "fd00:10:16::/126", "::/0"), Except: of(m.Rand, nil, []string{"fd00:10:16::2/127"})}
			}
		case 1:
			peers = append(peers, networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{
				MatchLabels: map[string]string{"name": of(m.Rand, "db", "web")}}, PodSelector: selector(m.label())})
		default:
			peers = append(peers, networkingv1.NetworkPolicyPeer{PodSelector: selector(m.label())})
		}
	}
	return peers
}

func (m maker) ports() []networkingv1.NetworkPolicyPort {
	var ports []networkingv1.NetworkPolicyPort
	for range m.IntN(3) {
		protocol, port := of(m.Rand, corev1.ProtocolTCP, corev1.ProtocolUDP), intstr.FromInt32(79+m.Int32N(3))
		p := networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &port}
		switch m.IntN(4) {
		case 0:
			last := port.IntVal + m.Int32N(3)
			p.EndPort = &last
		case 1:
			p.Port = nil
		}
		ports = append(ports, p)
	}
	return ports
}

func (m maker) policy(name string) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: of(m.Rand, "db", "web"), Name: name},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: *selector(m.label())},
	}
	if m.IntN(4) > 0 {
		np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
		for range m.IntN(3) {
			np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: m.peers(), Ports: m.ports()})
		}
	}
	if m.IntN(3) == 0 {
		np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		for range m.IntN(3) {
			np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: m.peers(), Ports: m.ports()})
		}
	}
	return np
}

// TestRandomPolicies has the engine write small worlds of policies, in the shapes
// of two releases, and wants of every flow what OVN does. Nothing is in doubt
// there.
func TestRandomPolicies(t *testing.T) {
	w := newWorld(t, 4, fixture.Options{IPv6: true})
	answers := map[flow.Answer]int{}
	for seed := range worlds(t, 24) {
		m := maker{rand.New(rand.NewPCG(seed, 5))}
		shape := of(m.Rand, engine.Release115(), engine.Release116())
		shape.Lax = m.IntN(4) == 0
		var labels []string
		for range w.pods {
			labels = append(labels, of(m.Rand, "x", "y", "z"))
		}
		var policies []*networkingv1.NetworkPolicy
		for i := range 1 + m.IntN(3) {
			policies = append(policies, m.policy(fmt.Sprintf("np-%d", i)))
		}
		if err := engine.New(w, engine.Options{Shape: shape}).Sync(t.Context(), w.labelled(labels, policies...)); err != nil {
			t.Fatal(err)
		}
		w.must(w.Nbctl(t.Context(), "--wait=sb", "sync"))
		w.awaitVersion(fmt.Sprint("p", seed))
		for range 8 {
			src, dst := of(m.Rand, w.pods...), of(m.Rand, w.pods...)
			if src == dst {
				continue
			}
			f := flow.Flow{Protocol: of(m.Rand, flow.TCP, flow.UDP), Src: src.IP(), Dst: dst.IP(), Port: uint16(79 + m.IntN(3))}
			switch m.IntN(5) {
			case 0:
				f.Src = farAddress()
			case 1, 2:
				f.Src, f.Dst = src.IPs()[1], dst.IPs()[1]
			}
			verdicts, err := w.verdicts(f)
			if err != nil {
				t.Fatal(err)
			}
			v := verdicts[0]
			answers[v.Answer]++
			if allowed, out := w.trace(f); v.Answer == flow.Inconclusive || allowed != (v.Answer == flow.Allowed) {
				t.Errorf("seed %d, %+v: %s: %s, and OVN allows it: %v\n%s", seed, shape, f, v, allowed, out)
			}
		}
		if t.Failed() {
			break
		}
	}
	t.Log(answers)
	if answers[flow.Allowed] < 20 || answers[flow.Denied] < 20 {
		t.Errorf("%v: want 20 of either", answers)
	}
}

// halted is an engine that stops before each of its steps until the test has
// looked.
type halted struct {
	steps    chan engine.Step
	proceed  chan struct{}
	finished chan error
}

// apply has the engine write a cluster, step by step.
func (w *world) apply(shape engine.Shape, cluster engine.Cluster) *halted {
	h := &halted{make(chan engine.Step), make(chan struct{}), make(chan error, 1)}
	e := engine.New(w, engine.Options{Shape: shape, Lag: func(s engine.Step) time.Duration {
		h.steps <- s
		<-h.proceed
		return 0
	}})
	go func() {
		h.finished <- e.Sync(w.tb.Context(), cluster)
		close(h.steps)
	}()
	return h
}

// walk calls at before each step, and once more behind the last.
func (h *halted) walk(t *testing.T, at func(part engine.Part)) {
	t.Helper()
	for s := range h.steps {
		at(s.Part)
		h.proceed <- struct{}{}
	}
	if err := <-h.finished; err != nil {
		t.Fatal(err)
	}
	at("")
}

// want wants what is said of a flow.
func (w *world) want(t *testing.T, when string, f flow.Flow, answer flow.Answer, reason string) {
	t.Helper()
	w.await(func() error {
		verdicts, err := w.verdicts(f)
		if err == nil && (verdicts[0].Answer != answer || !strings.Contains(verdicts[0].Reason, reason)) {
			err = fmt.Errorf("%s: %s: %s\nwant %s with %q", when, f, verdicts[0], answer, reason)
		}
		return err
	})
}

// TestReasonsNameWhatIsNotWritten freezes the engine at each of its steps.
func TestReasonsNameWhatIsNotWritten(t *testing.T) {
	for name, shape := range map[string]engine.Shape{"1.15": engine.Release115(), "1.16": engine.Release116()} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 5, fixture.Options{})
			server, stranger, friend, late := w.pods[0], w.pods[1], w.pods[2], w.pods[4]
			port, protocol := intstr.FromInt32(80), corev1.ProtocolTCP
			policy := &networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "to-server"},
				Spec: networkingv1.NetworkPolicySpec{
					PodSelector: *selector("server"),
					PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
					Ingress: []networkingv1.NetworkPolicyIngressRule{{
						From:  []networkingv1.NetworkPolicyPeer{{PodSelector: selector("friend")}},
						Ports: []networkingv1.NetworkPolicyPort{{Protocol: &protocol, Port: &port}},
					}},
				},
			}
			in := flow.Flow{Protocol: flow.TCP, Src: stranger.IP(), Dst: server.IP(), Port: 80}
			out := flow.Flow{Protocol: flow.TCP, Src: server.IP(), Dst: stranger.IP(), Port: 80}
			peer := flow.Flow{Protocol: flow.TCP, Src: friend.IP(), Dst: server.IP(), Port: 80}
			other := peer
			other.Port = 81

			// The policy is new.
			seen := map[engine.Part]bool{}
			w.apply(shape, w.labelled([]string{"server", "stranger", "nobody"}, policy)).walk(t, func(part engine.Part) {
				if seen[part] {
					return
				}
				seen[part] = true
				when := "before " + string(part)
				switch part {
				case engine.PartPortGroup:
					w.want(t, when, in, flow.Allowed, "logical port a.db is in no port group that denies")
				case engine.PartPorts:
					w.want(t, when, in, flow.Allowed, "that of a policy of its namespace lacks it: to.server.db")
				case engine.PartAddressSet, engine.PartIngressACLs:
					w.want(t, when, in, flow.Allowed, "the ACLs are missing: port group to.server.db has none")
				case engine.PartEgressACLs:
					w.want(t, when, in, flow.Denied, "dropped by ACL db/to-server of port group to.server.db")
					w.want(t, when, out, flow.Allowed, "from-lport: the ACLs are missing: port group to.server.db has none")
				case engine.PartNode:
					w.want(t, when, out, flow.Denied, "from-lport: dropped by ACL db/to-server")
				case engine.PartGateway, engine.PartDelete:
				}
			})
			for _, part := range []engine.Part{engine.PartPortGroup, engine.PartPorts, engine.PartIngressACLs, engine.PartEgressACLs} {
				if !seen[part] {
					t.Errorf("the engine had no step %q", part)
				}
			}
			// One Pod more is let in.
			steps := 0
			w.apply(shape, w.labelled([]string{"server", "stranger", "friend"}, policy)).walk(t, func(part engine.Part) {
				steps++
				switch {
				case part == "":
					w.want(t, "in the end", peer, flow.Allowed, "allowed by ACL np/to-server.db/ingress/IPv4/0")
					w.want(t, "in the end", other, flow.Denied, "ACLs that allow something does tcp port 81")
					w.want(t, "in the end", in, flow.Denied, "address set to.server.db.ingress.allow.IPv4.0 lacks "+stranger.IP().String())
				case steps == 1:
					w.want(t, "before the first step", peer, flow.Denied, "no ACL")
				}
			})
			// Another: only an address set changes.
			lacking := flow.Flow{Protocol: flow.TCP, Src: late.IP(), Dst: server.IP(), Port: 80}
			sets := 0
			w.apply(shape, w.labelled([]string{"server", "stranger", "friend", "stranger", "friend"}, policy)).walk(t, func(part engine.Part) {
				if part == engine.PartAddressSet {
					if sets++; sets == 1 {
						w.want(t, "before the address sets", lacking, flow.Denied,
							"no ACL allows it: address set to.server.db.ingress.allow.IPv4.0 lacks "+late.IP().String())
					}
				}
				if part == engine.PartIngressACLs {
					w.want(t, "behind the address sets", lacking, flow.Allowed, "allowed by ACL")
				}
			})
			if sets == 0 {
				t.Error("the engine wrote no address set")
			}
			// A Pod without a logical port.
			if err := server.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.want(t, "without its port", peer, flow.Allowed, "no logical port has the address "+server.IP().String()+" (yet)")
		})
	}
}

var _ engine.Northbound = (*fixture.Fixture)(nil)

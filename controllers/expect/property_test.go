// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/policygate/policygate/api/flow"
)

// TestEveryExpectationIsWhatNetworkPolicyDemandsOfItsNode holds random small
// clusters against the slow evaluator.
func TestEveryExpectationIsWhatNetworkPolicyDemandsOfItsNode(t *testing.T) {
	asked, allowed := 0, 0
	for seed := range uint64(600) {
		w := randomWorld(t, rand.New(rand.NewPCG(seed, 1)))
		c := w.cluster()
		for _, p := range w.pods {
			if !NewPod(p).Peer() {
				continue
			}
			r := c.Expect(Subject{Pod: c.Pod(p.UID)}, DefaultOptions())
			for node, list := range r.Nodes {
				flows := map[flow.Flow]bool{}
				for _, e := range list {
					asked++
					if e.Want == flow.Allowed {
						allowed++
					}
					if got := w.slowVerdict(node, e.Flow); got != e.Want {
						t.Errorf("seed %d, subject %s, node %s: %s (%s): want %s, semantics say %s",
							seed, p.UID, node, e.Flow, e.Why, e.Want, got)
					}
					if flows[e.Flow] {
						t.Errorf("seed %d: %s is asked twice of %s", seed, e.Flow, node)
					}
					flows[e.Flow] = true
					checkEnds(t, w, p, node, e)
				}
			}
			checkSpan(t, c, p, r)
		}
	}
	if asked < 5000 || allowed < 1500 {
		t.Fatalf("only %d expectations, %d allowed: the worlds are too small to show anything", asked, allowed)
	}
}

// checkEnds: no flow between an address and itself, none of a Pod that is no
// peer, and every flow touches the subject or a Pod on the judging node.
func checkEnds(t *testing.T, w *world, subject *corev1.Pod, node string, e Expectation) {
	t.Helper()
	if err := e.Flow.Validate(); err != nil || e.Flow.Src == e.Flow.Dst {
		t.Errorf("subject %s: %s is no flow to ask: %v", subject.UID, e.Flow, err)
	}
	if e.Want == flow.Denied && e.Advisory {
		t.Errorf("subject %s: %s is Denied and advisory", subject.UID, e.Flow)
	}
	src, dst := w.slowPod(e.Flow.Src), w.slowPod(e.Flow.Dst)
	judged := src != nil && src.Spec.NodeName == node || dst != nil && dst.Spec.NodeName == node
	if !judged {
		t.Errorf("subject %s: %s judges no side of %s", subject.UID, node, e.Flow)
	}
}

// checkSpan: the subject's own node, and every node with a Pod known earlier
// whose policies name the subject, is in the span.
func checkSpan(t *testing.T, c *Cluster, subject *corev1.Pod, r Result) {
	t.Helper()
	if !slices.Contains(r.Span, subject.Spec.NodeName) {
		t.Errorf("span %v of %s is without its own node %s", r.Span, subject.UID, subject.Spec.NodeName)
	}
	p := c.Pod(subject.UID)
	for _, q := range c.Naming(p) {
		if ns := c.Namespace(q.Namespace); q.Namespace != p.Namespace && !ns.Inject {
			continue
		}
		for _, target := range c.PeersIn(q.Namespace) {
			if !q.Selects(target) || target.Seq >= p.Seq || slices.Contains(r.Span, target.Node) {
				continue
			}
			if plainlyGranted(q, p, c) {
				t.Errorf("span %v of %s is without %s, where %s of %s names it", r.Span, p, target.Node, q, target)
			}
		}
	}
}

// plainlyGranted: a rule without named ports that no other policy disturbs.
func plainlyGranted(q *Policy, p *Pod, c *Cluster) bool {
	for d := range q.Rules {
		for i := range q.Rules[d] {
			r := &q.Rules[d][i]
			if slices.Contains(c.Meaning(p), RuleOf{q, Direction(d), i}) && !r.everyone() && !slices.ContainsFunc(r.Ports, func(port Port) bool { return port.Name != "" }) {
				return true
			}
		}
	}
	return false
}

func randomWorld(t *testing.T, r *rand.Rand) *world {
	t.Helper()
	w := &world{t: t}
	nodes := 1 + r.IntN(3)
	for n := range nodes {
		w.node(fmt.Sprintf("n%d", n), fmt.Sprintf("10.0.%d.0/24", n), fmt.Sprintf("fd00:0:0:%d::/64", n))
	}
	spaces := []string{"a", "b", "c"}
	for _, ns := range spaces {
		w.namespace(ns, r.IntN(3) > 0, "tier", spaces[r.IntN(2)])
	}
	apps := []string{"x", "y", "z"}
	for i := range 3 + r.IntN(8) {
		n := r.IntN(nodes)
		ips := addr(n, 10+i)
		if r.IntN(3) == 0 {
			ips += fmt.Sprintf(" fd00:0:0:%d::%x", n, 16+i)
		}
		options := []podOption{labelled(apps[r.IntN(3)])}
		for j := range r.IntN(3) {
			options = append(options, port([]string{"http", "db"}[j], int32(8000+100*j+r.IntN(2))))
		}
		if r.IntN(6) == 0 {
			options = append(options, sidecarPort("side", 9000))
		}
		switch r.IntN(12) {
		case 0:
			options = append(options, func(p *corev1.Pod) { p.Spec.HostNetwork = true })
		case 1:
			options = append(options, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
		}
		w.pod(fmt.Sprintf("%s/p%d", spaces[r.IntN(3)], i), fmt.Sprintf("n%d", n), ips, options...)
	}
	for i := range r.IntN(6) {
		s := spec{}
		for range r.IntN(3) {
			s.Ingress = append(s.Ingress, in{From: randomPeers(r), Ports: randomPorts(r)})
		}
		for range r.IntN(3) {
			s.Egress = append(s.Egress, out{To: randomPeers(r), Ports: randomPorts(r)})
		}
		w.policy(fmt.Sprintf("%s/q%d", spaces[r.IntN(3)], i), append(apps, "")[r.IntN(4)], s)
	}
	return w
}

func randomPeers(r *rand.Rand) []peer {
	var list []peer
	for range r.IntN(3) {
		switch r.IntN(6) {
		case 0:
			list = append(list, everywhere())
		case 1:
			list = append(list, block("10.0.0.0/16", "10.0.1.0/24"))
		case 2:
			list = append(list, block(strings.Fields("0.0.0.0/0 ::/0 198.51.0.0/16")[r.IntN(3)]))
		case 3:
			list = append(list, podsIn([]string{"a", "b"}[r.IntN(2)], []string{"x", "y"}[r.IntN(2)]))
		default:
			list = append(list, pods([]string{"x", "y", "z"}[r.IntN(3)]))
		}
	}
	return list
}

func randomPorts(r *rand.Rand) []pport {
	switch r.IntN(7) {
	case 0:
		return nil
	case 1:
		return tcp("http")
	case 2:
		return tcp(80, "db", "side")
	case 3:
		return tcp([2]int32{1, 65535})
	case 4:
		return proto(corev1.ProtocolUDP)
	case 5:
		return append(tcp([2]int32{8000, 8001}), proto(corev1.ProtocolUDP, 53)...)
	}
	return tcp(80, 443)
}

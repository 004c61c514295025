// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/hub"
	"github.com/policygate/policygate/controllers/queue"
)

// TestTheLedgersCountsAgreeWithWhatIsThere lets everything happen in any order,
// and counts anew after each event what the ledger counts as it goes.
func TestTheLedgersCountsAgreeWithWhatIsThere(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			b := newBench(t)
			for range 400 {
				happen(b, r)
				b.clock.Step(time.Duration(r.IntN(3000)) * time.Millisecond)
				b.step()
				checkCounts(t, b.ledger)
				b.hub.sent = nil
			}
		})
	}
}

// happen has one thing happen.
func happen(b *bench, r *rand.Rand) {
	i := r.IntN(6)
	uid, namespace := fmt.Sprintf("p%d", i), fmt.Sprintf("ns%d", i%3)
	node, ip := fmt.Sprintf("n%d", r.IntN(8)), fmt.Sprintf("10.0.%d.%d", i, 1+r.IntN(2))
	switch r.IntN(12) {
	case 0:
		b.ledger.PodDeleted(types.UID(uid))
	case 1:
		b.ledger.PodChanged(b.pod(func(p *corev1.Pod) {
			p.UID, p.Namespace, p.Name, p.Spec.NodeName = types.UID(uid), namespace, uid, "n1"
			opened(ip, "boot-1")(p)
		}, ip))
	case 2:
		b.ledger.NodeChanged(node, fmt.Sprintf("boot-%d", r.IntN(2)))
	case 3:
		b.ledger.Disconnected(node)
		if r.IntN(3) == 0 {
			b.ledger.NodeDeleted(node)
		}
	case 4:
		hello := hub.Hello{}
		if r.IntN(4) == 0 {
			hello.State.Unsupported = "eBPF"
		}
		b.ledger.Connected(node, hello)
	case 5, 6:
		b.ledger.PodChanged(b.named(uid, namespace, ip))
		b.barrier.pass(types.UID(uid))
	case 7, 8:
		perNode := map[string][]expect.Expectation{"n1": nil}
		for range r.IntN(5) {
			perNode[fmt.Sprintf("n%d", r.IntN(8))] = witnessed(allow(shopAllow, ip, uint16(80+r.IntN(2))))
		}
		b.demandFor(uid, namespace, ip, uint64(b.version), perNode)
		if a := b.coverage.assignments[types.UID(uid)]; r.IntN(3) == 0 {
			a.Span = a.Span[:1]
		}
	default:
		b.answer(uid, node, func(report *hubv1.Report) {
			if r.IntN(2) == 0 {
				confirms(report)
			} else {
				unrealized(report)
			}
			if r.IntN(8) == 0 {
				report.Realized = []uint32{0}
			}
		})
	}
}

// checkCounts counts anew.
func checkCounts(t *testing.T, l *Ledger) {
	t.Helper()
	waits, inquiries, excusing, pending := map[string]int{}, 0, 0, 0
	for uid, e := range l.entries {
		lacking := 0
		for _, q := range e.inquiries {
			inquiries++
			if l.nodes[q.name] != q.node || q.node.inquiries[uid] != q {
				t.Fatalf("%s: the inquiry of %s is not the node's", uid, q.name)
			}
			if !q.optional && !q.answer.confirmed {
				lacking++
				waits[q.name+"/"+e.pod.namespace]++
				pending += q.demand.Len()
			}
		}
		if e.lacking != lacking {
			t.Fatalf("%s: lacking = %d, want %d", uid, e.lacking, lacking)
		}
		_, shut := l.shut[uid]
		if _, deaf := l.deaf[uid]; shut && deaf || !shut && len(e.inquiries) > 0 {
			t.Fatalf("%s: shut %v, deaf %v, %d inquiries", uid, shut, deaf, len(e.inquiries))
		}
		if shut && e.stale && len(e.pod.ips) > 0 && !e.staleIn[queue.Urgent] && !e.staleIn[queue.Usual] {
			t.Fatalf("%s: stale and not queued", uid)
		}
		if shut && e.touched && !e.touchedIn[queue.Urgent] && !e.touchedIn[queue.Usual] {
			t.Fatalf("%s: touched and not queued", uid)
		}
		if queued := shut && e.stale && len(e.pod.ips) > 0; queued == e.queued.IsZero() {
			t.Fatalf("%s: queued since %v, want it %v", uid, e.queued, queued)
		}
		if l.node(e.pod.node).residents[uid] != e {
			t.Fatalf("%s: is no resident of its node", uid)
		}
	}
	if l.pending != pending || len(l.names) != len(l.entries) {
		t.Fatalf("%d expectations are pending, want %d; %d names of %d Pods", l.pending, pending, len(l.names), len(l.entries))
	}
	for name, n := range l.nodes {
		inquiries -= len(n.inquiries)
		if n.excuses {
			excusing++
		}
		if n.excuses != (n.connected && n.unsupported != "" || n.stalled || len(n.stalledFor) > 0) {
			t.Fatalf("%s: excuses = %v", name, n.excuses)
		}
		for namespace, w := range n.waits {
			if w.pods != waits[name+"/"+namespace] || w.pods == 0 {
				t.Fatalf("%s: %d Pods of %s wait, want %d", name, w.pods, namespace, waits[name+"/"+namespace])
			}
			delete(waits, name+"/"+namespace)
		}
	}
	if inquiries != 0 || len(waits) > 0 || excusing != l.excusing {
		t.Fatalf("%d inquiries too few, waits that nodes lack: %v, excusing %d, want %d", inquiries, waits, l.excusing, excusing)
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// policyFlows is how many flows are asked of a policy on a node.
const policyFlows = 8

// BenchmarkAgentPolicies runs the agent as BenchmarkAgent does and measures what
// policies cost that it has been asked about: none, a hundred and a thousand
// that are in force, and a hundred of which one flow each is not as it should
// be, for half a minute. Beside them it reports how long Pods take from their
// assignment to the report that confirms them, one after the other.
func BenchmarkAgentPolicies(b *testing.B) {
	binary := filepath.Join(b.TempDir(), "agent")
	build := []string{"env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "github.com/policygate/policygate/cmd/agent"}
	if err := run(b.Context(), "", build...); err != nil {
		b.Fatal(err)
	}
	for _, variant := range []string{"legacy", "iptables-nft", "nftables"} {
		b.Run(variant, func(b *testing.B) {
			l := newLarge(b, variant, 1)
			r := l.load(b)
			a := startAgent(b, r, binary)
			w := a.describeAll(b, l, r)
			for _, stage := range []struct {
				name          string
				inForce, lack int
				pause         time.Duration
			}{
				{name: "none"},
				{name: "100-in-force", inForce: 100},
				{name: "1000-in-force", inForce: 900},
				{name: "1000-and-100-waiting", lack: 100, pause: 30 * time.Second},
			} {
				b.Run(stage.name, func(b *testing.B) {
					w.assign(b, stage.inForce, true)
					w.assign(b, stage.lack, false)
					time.Sleep(stage.pause + 5*time.Second)
					for b.Loop() {
						// Longer than the pause between two audits.
						before, began := a.spent(b), time.Now()
						time.Sleep(30 * time.Second)
						b.ReportMetric(100*float64(a.spent(b)-before)/float64(time.Since(began)), "%-of-a-core")
						b.ReportMetric(float64(w.pods(b, 20).Microseconds())/1000, "ms-to-confirm")
						b.ReportMetric(a.memory(b, "VmRSS"), "RSS-MiB")
						b.ReportMetric(a.memory(b, "RssAnon"), "anonymous-MiB")
					}
					b.ReportMetric(0, "ns/op")
				})
			}
			a.stop(b)
		})
	}
}

// world is what an agent is assigned from: flows with what the node does with
// them.
type world struct {
	agent *agent
	flows []flow.Flow
	wants []flow.Answer
	// next numbers subjects and descriptions.
	next int
}

func (a *agent) describeAll(b *testing.B, l *large, r *rig) *world {
	b.Helper()
	w := &world{agent: a, flows: l.flows(8800, false)}
	r.node.do(b, func() error {
		nf, err := kernel.New(kernel.Options{})
		if err != nil {
			return err
		}
		defer func() { _ = nf.Close() }()
		verdicts, err := answer(b.Context(), nf, &question{flows: w.flows})
		if err != nil {
			return err
		}
		for i, v := range verdicts {
			if v.Answer == flow.Inconclusive {
				return fmt.Errorf("%s: %s", w.flows[i], v)
			}
			w.wants = append(w.wants, v.Answer)
		}
		return nil
	})
	return w
}

// send describes and assigns a subject, of which the last flow is expected to be
// what it is not unless it is met.
func (w *world) send(b *testing.B, s *hubv1.Assign, met bool) {
	b.Helper()
	w.next++
	d := &hubv1.Description{Whys: []string{"measured"}}
	for i := range policyFlows {
		at := (policyFlows*w.next + i) % len(w.flows)
		want := w.wants[at]
		if i == policyFlows-1 && !met {
			want = map[flow.Answer]flow.Answer{flow.Allowed: flow.Denied, flow.Denied: flow.Allowed}[want]
		}
		d.Expectations = append(d.Expectations, &hubv1.Expectation{Flow: hubv1.FlowOf(w.flows[at]), Want: hubv1.AnswerOf(want)})
	}
	content, err := proto.Marshal(d)
	if err != nil {
		b.Fatal(err)
	}
	s.Generation, s.Description = 1, uint64(w.next)
	s.Subject.Uid, s.Subject.Namespace = fmt.Sprint("subject-", w.next), fmt.Sprint("tenant-", w.next%10)
	w.agent.hub.send <- &hubv1.HubMessage{Message: &hubv1.HubMessage_Describe{Describe: &hubv1.Describe{Id: s.GetDescription(), Content: content}}}
	w.agent.hub.send <- &hubv1.HubMessage{Message: &hubv1.HubMessage_Assign{Assign: s}}
}

// await waits for the report on a subject.
func (w *world) await(b *testing.B, uid string, met bool) {
	b.Helper()
	for deadline := time.After(time.Minute); ; {
		select {
		case r := <-w.agent.hub.reports:
			w.agent.reports[r.GetUid()] = r
		case <-deadline:
			b.Fatalf("no report on %s within a minute: want one that it is confirmed: %v", uid, met)
		}
		if r := w.agent.reports[uid]; r != nil && r.GetConfirmed() == met {
			return
		}
	}
}

// assign assigns so many policies and waits for the reports on them.
func (w *world) assign(b *testing.B, n int, met bool) {
	b.Helper()
	var uids []string
	for range n {
		s := &hubv1.Assign{Policy: true, Subject: &hubv1.Subject{Name: "p"}}
		w.send(b, s, met)
		uids = append(uids, s.GetSubject().GetUid())
	}
	for _, uid := range uids {
		if r := w.agent.reports[uid]; r == nil || r.GetConfirmed() != met {
			w.await(b, uid, met)
		}
	}
}

// pods assigns so many Pods, each after the one before was confirmed, and
// returns how long that took on average.
func (w *world) pods(b *testing.B, n int) time.Duration {
	b.Helper()
	var took time.Duration
	for range n {
		s := &hubv1.Assign{OwnNode: true, Subject: &hubv1.Subject{Name: "pod", Ips: []string{"10.244.1.10"}}}
		began := time.Now()
		w.send(b, s, true)
		w.await(b, s.GetSubject().GetUid(), true)
		took += time.Since(began)
		w.agent.hub.send <- &hubv1.HubMessage{Message: &hubv1.HubMessage_Withdraw{Withdraw: &hubv1.Withdraw{Uid: s.GetSubject().GetUid()}}}
		time.Sleep(70 * time.Millisecond)
	}
	return took / time.Duration(n)
}

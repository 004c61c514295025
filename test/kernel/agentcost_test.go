// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// BenchmarkAgent runs the agent as it is, beside an API server and a hub that
// know just what it asks for, on a node with kube-router's rules for 110 pods.
// It reports its memory and the share of one core that it takes: with nothing
// to do (idle), and while one and thirty subjects of 20 flows each are young
// and one flow of each is not as it should be, which is when it looks most
// often. A measurement takes a fixed time.
func BenchmarkAgent(b *testing.B) {
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
			subjects := a.pendingSubjects(b, l, r, 30)
			for _, stage := range []struct {
				name     string
				subjects []*hubv1.Assign
				window   time.Duration
			}{
				// Longer than the pause between two audits of an idle agent.
				{"idle", nil, 16 * time.Second},
				{"1-pending", subjects[:1], 6 * time.Second},
				{"30-pending", subjects[1:], 6 * time.Second},
			} {
				b.Run(stage.name, func(b *testing.B) {
					for b.Loop() {
						a.measure(b, stage.subjects, stage.window)
					}
					b.ReportMetric(0, "ns/op")
				})
			}
			a.stop(b)
		})
	}
}

// pendingSubjects returns assignments of 20 flows each, of which the last is
// expected to be what it is not. The agent is told of the flows.
func (a *agent) pendingSubjects(b *testing.B, l *large, r *rig, n int) []*hubv1.Assign {
	b.Helper()
	flows := l.flows(20*n, false)
	assigns := make([]*hubv1.Assign, 0, n)
	r.node.do(b, func() error {
		nf, err := kernel.New(kernel.Options{})
		if err != nil {
			return err
		}
		defer func() { _ = nf.Close() }()
		verdicts, err := answer(b.Context(), nf, &question{flows: flows})
		if err != nil {
			return err
		}
		for i := range n {
			d := &hubv1.Description{Whys: []string{"measured"}}
			s := &hubv1.Assign{Generation: 1, Description: uint64(i + 1), OwnNode: true, Subject: &hubv1.Subject{
				Uid: fmt.Sprintf("subject-%d", i), Namespace: "default", Name: fmt.Sprintf("pod-%d", i),
				Ips: []string{flows[20*i].Dst.String()},
			}}
			for j, f := range flows[20*i : 20*i+20] {
				want := verdicts[20*i+j].Answer
				if want == flow.Inconclusive {
					return fmt.Errorf("%s: %s", f, verdicts[20*i+j])
				}
				if j == 19 {
					want = map[flow.Answer]flow.Answer{flow.Allowed: flow.Denied, flow.Denied: flow.Allowed}[want]
				}
				d.Expectations = append(d.Expectations, &hubv1.Expectation{
					Flow: hubv1.FlowOf(f), Want: hubv1.AnswerOf(want),
				})
			}
			content, err := proto.Marshal(d)
			if err != nil {
				return err
			}
			a.hub.send <- &hubv1.HubMessage{Message: &hubv1.HubMessage_Describe{Describe: &hubv1.Describe{
				Id: s.GetDescription(), Content: content,
			}}}
			assigns = append(assigns, s)
		}
		return nil
	})
	return assigns
}

// agent is the agent's process and what it talks to.
type agent struct {
	hub *fakeHub
	cmd *exec.Cmd
	// log is what the process wrote; it is complete once it has ended.
	log *bytes.Buffer
	// reports are the newest by uid.
	reports map[string]*hubv1.Report
}

// startAgent starts the agent in the rig's node.
func startAgent(b *testing.B, r *rig, binary string) *agent {
	b.Helper()
	dir := b.TempDir()
	a := &agent{log: &bytes.Buffer{}, reports: map[string]*hubv1.Report{}}
	var kubeconfig string
	r.node.do(b, func() (err error) {
		var roots string
		if a.hub, roots, err = serveHub(b); err != nil {
			return err
		}
		kubeconfig, err = serveAPI(b, a.hub.port, roots)
		return err
	})
	for name, text := range map[string]string{"kubeconfig": kubeconfig, "token": "a token"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	r.node.do(b, func() error {
		a.cmd = exec.CommandContext(context.WithoutCancel(b.Context()), binary, "--node-name=node1",
			"--kubeconfig="+filepath.Join(dir, "kubeconfig"), "--token-file="+filepath.Join(dir, "token"))
		a.cmd.Stdout, a.cmd.Stderr = a.log, a.log
		return a.cmd.Start()
	})
	b.Cleanup(func() {
		if a.cmd.ProcessState == nil {
			_ = a.cmd.Process.Kill()
			_ = a.cmd.Wait()
		}
	})
	select {
	case <-a.hub.opened:
	case <-time.After(30 * time.Second):
		_ = a.cmd.Process.Kill()
		_ = a.cmd.Wait()
		b.Fatalf("the agent opened no session within 30 s:\n%s", a.log)
	}
	return a
}

// stop ends the agent as the kubelet does.
func (a *agent) stop(b *testing.B) {
	b.Helper()
	if err := errors.Join(a.cmd.Process.Signal(syscall.SIGTERM), a.cmd.Wait()); err != nil {
		b.Errorf("the agent ended with %v:\n%s", err, a.log)
	}
}

// measure assigns the subjects, waits for what the agent says of each, and
// measures what it takes from then on.
func (a *agent) measure(b *testing.B, subjects []*hubv1.Assign, window time.Duration) {
	b.Helper()
	for _, s := range subjects {
		a.hub.send <- &hubv1.HubMessage{Message: &hubv1.HubMessage_Assign{Assign: s}}
	}
	for deadline := time.After(30 * time.Second); !a.answered(subjects); {
		select {
		case report := <-a.hub.reports:
			a.reports[report.GetUid()] = report
		case <-deadline:
			b.Fatalf("no answer for each subject within 30 s: %v", a.reports)
		}
	}
	// What is done once for a subject is no part of its watch.
	time.Sleep(2 * time.Second)
	before, began := a.spent(b), time.Now()
	time.Sleep(window)
	share := float64(a.spent(b)-before) / float64(time.Since(began))
	for uid, r := range a.reports {
		if r.GetConfirmed() || r.GetUnmetRequired() != 1 {
			b.Fatalf("%s: %v; want one flow that is unmet", uid, r)
		}
	}
	b.ReportMetric(100*share, "%-of-a-core")
	b.ReportMetric(a.memory(b, "VmRSS"), "RSS-MiB")
	b.ReportMetric(a.memory(b, "RssAnon"), "anonymous-MiB")
	b.ReportMetric(a.memory(b, "VmHWM"), "peak-MiB")
}

func (a *agent) answered(subjects []*hubv1.Assign) bool {
	for _, s := range subjects {
		if a.reports[s.GetSubject().GetUid()] == nil {
			return false
		}
	}
	return true
}

// spent is the CPU time that the process has had, to the nanosecond.
func (a *agent) spent(b *testing.B) time.Duration {
	b.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", a.cmd.Process.Pid))
	if err != nil || len(files) == 0 {
		b.Fatalf("the agent has ended: %v\n%s", err, a.log)
	}
	var sum time.Duration
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			b.Fatal(err)
		}
		first, _, _ := strings.Cut(string(text), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			b.Fatalf("%s: %v", file, err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// memory returns a field of the process's status in MiB.
func (a *agent) memory(b *testing.B, field string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(line, field+":"); found {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err != nil {
				b.Fatalf("%q: %v", line, err)
			}
			return float64(kib) / 1024
		}
	}
	b.Fatalf("no %s in the agent's status", field)
	return 0
}

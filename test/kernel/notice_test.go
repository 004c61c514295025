// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/protobuf/proto"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/confirm"
	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/agent/kernel/notice"
	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// noticed collects what is noticed in a namespace.
type noticed struct {
	all chan string
}

// watch watches the namespace's rules until the test ends, and returns when it
// has begun to.
func (ns *namespace) watch(t *testing.T, lock string) *noticed {
	t.Helper()
	n := &noticed{all: make(chan string, 1000)}
	ctx, cancel := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	ended.Add(1)
	ns.begin(t, func() {
		defer ended.Done()
		rules := notice.New(notice.Options{XtablesLock: lock, Clock: clock.RealClock{}, Log: logr.Discard()})
		rules.Watch(ctx, func(what string) { n.all <- what })
	})
	t.Cleanup(func() {
		cancel()
		ended.Wait()
	})
	n.expect(t, notice.Begun)
	if lock != "" {
		n.expect(t, notice.Begun)
	}
	return n
}

// expect waits for the next notice.
func (n *noticed) expect(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-n.all:
		if got != want {
			t.Errorf("noticed %q, want %q", got, want)
		}
	case <-time.After(5 * time.Second):
		t.Errorf("nothing was noticed, want %q", want)
	}
}

// nothing expects that nothing else was noticed until what is done last is.
func (n *noticed) nothing(t *testing.T, last func(), want string) {
	t.Helper()
	last()
	n.expect(t, want)
	select {
	case got := <-n.all:
		t.Errorf("noticed %q as well", got)
	default:
	}
}

func TestACommitIsNoticed(t *testing.T) {
	ns := newNamespace(t)
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "xtables.lock"))
	n := ns.watch(t, "")
	tables := 0
	commit := func() {
		// What is there already is no commit.
		tables++
		ns.run(t, fmt.Sprintf("add table ip mine%d\n", tables), "nft", "-f", "-")
	}
	commit()
	n.expect(t, notice.Commits)
	ns.run(t, "*filter\n:FORWARD DROP\nCOMMIT\n", "iptables-nft-restore", "-w")
	n.expect(t, notice.Commits)
	// What else goes over nfnetlink wakes nobody: neither reading, nor the
	// events of ipsets, connections and legacy tables, nor another namespace.
	other := newNamespace(t)
	other.run(t, "add table ip mine\n", "nft", "-f", "-")
	ns.run(t, "create s hash:ip\nadd s 10.0.0.1\n", "ipset", "restore")
	ns.run(t, "", "nft", "list", "ruleset")
	ns.run(t, "", "iptables-nft", "-w", "-S")
	ns.run(t, "*filter\n:FORWARD ACCEPT\nCOMMIT\n", "iptables-legacy-restore", "-w")
	ns.run(t, "link add b0 type bridge\nlink set b0 up\n", "ip", "-batch", "-")
	n.nothing(t, commit, notice.Commits)
}

func TestOneCommitIsNoticedOnce(t *testing.T) {
	ns := newNamespace(t)
	n := ns.watch(t, "")
	var b strings.Builder
	b.WriteString("add table ip mine\nadd set ip mine s { type ipv4_addr; flags interval; }\n")
	for i := range 1000 {
		fmt.Fprintf(&b, "add element ip mine s { 10.%d.%d.0/25 }\n", i/256, i%256)
	}
	for i := range 300 {
		fmt.Fprintf(&b, "add chain ip mine c%d\nadd rule ip mine c%d ip saddr 10.0.0.%d drop\n", i, i, i%256)
	}
	n.nothing(t, func() { ns.run(t, b.String(), "nft", "-f", "-") }, notice.Commits)
}

func TestMoreCommitsThanTheBufferHoldsAreNoticedAsLost(t *testing.T) {
	ns := newNamespace(t)
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "xtables.lock"))
	ns.do(t, func() error {
		// The kernel makes it its least, which holds a few messages.
		g, err := notice.Join(1)
		if err != nil {
			return err
		}
		tables := 0
		commits := func(count int) error {
			for range count {
				tables++
				if out, err := exec.CommandContext(t.Context(), "nft", "add", "table", "ip", fmt.Sprint("t", tables)).CombinedOutput(); err != nil {
					return fmt.Errorf("nft: %w: %s", err, out)
				}
			}
			return nil
		}
		// Nobody reads meanwhile.
		if err := commits(40); err != nil {
			return err
		}
		if what, err := g.Wait(); what != notice.Lost || err != nil {
			t.Errorf("noticed %q, %v, want %q", what, err, notice.Lost)
		}
		for range 3 {
			if err := commits(1); err != nil {
				return err
			}
			if what, err := g.Wait(); what != notice.Commits || err != nil {
				t.Errorf("noticed %q, %v after a loss, want %q", what, err, notice.Commits)
			}
		}
		if err := g.Close(); err != nil {
			return err
		}
		if what, err := g.Wait(); err == nil {
			t.Errorf("noticed %q after Close, want an error", what)
		}
		// A new socket goes on.
		if g, err = notice.Join(0); err != nil {
			return err
		}
		if err := commits(1); err != nil {
			return err
		}
		if what, err := g.Wait(); what != notice.Commits || err != nil {
			t.Errorf("noticed %q, %v by a new socket, want %q", what, err, notice.Commits)
		}
		return g.Close()
	})
}

func TestTheXtablesLockIsNoticed(t *testing.T) {
	ns := newNamespace(t)
	lock := filepath.Join(t.TempDir(), "xtables.lock")
	t.Setenv("XTABLES_LOCKFILE", lock)
	if err := os.WriteFile(lock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n := ns.watch(t, lock)
	ns.run(t, "*filter\n:FORWARD DROP\nCOMMIT\n", "iptables-legacy-restore", "-w")
	n.expect(t, notice.Lock)
	ns.run(t, "", "iptables-legacy", "-w", "-A", "FORWARD", "-j", "DROP")
	n.expect(t, notice.Lock)
}

// lookPlane is the netfilter of a namespace as package confirm consumes it.
type lookPlane struct{ *kernel.Netfilter }

type lookOf struct{ *kernel.Look }

func (p lookPlane) Look(ctx context.Context) (confirm.Look, error) {
	l, err := p.Netfilter.Look(ctx)
	return lookOf{l}, err
}

func (l lookOf) Together(ctx context.Context, questions []confirm.Question) ([]confirm.Answer, error) {
	var asked []kernel.Question
	for _, q := range questions {
		asked = append(asked, kernel.Question(q))
	}
	answers, err := l.Look.Together(ctx, asked)
	var all []confirm.Answer
	for _, a := range answers {
		all = append(all, confirm.Answer(a))
	}
	return all, err
}

// noticesOf are those of a namespace.
type noticesOf struct {
	t    *testing.T
	ns   *namespace
	lock string
}

func (n noticesOf) Watch(ctx context.Context, noticed func(string)) {
	ended := make(chan struct{})
	n.ns.begin(n.t, func() {
		defer close(ended)
		rules := notice.New(notice.Options{XtablesLock: n.lock, Clock: clock.RealClock{}, Log: logr.Discard()})
		rules.Watch(ctx, noticed)
	})
	<-ended
}

// told is a confirm.Reports that passes on whether a subject is confirmed.
type told chan bool

func (r told) Send(_ confirm.Source, report *hubv1.Report) { r <- report.GetConfirmed() }

func (r told) expect(t *testing.T, want bool) {
	t.Helper()
	select {
	case got := <-r:
		if got != want {
			t.Errorf("told confirmed %v, want %v", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Errorf("told nothing, want confirmed %v", want)
	}
}

// confirmer runs a Confirmer on the node's kernel until the test's end. Its
// dataplane and clock are the real ones, its log goes nowhere.
func (r *rig) confirmer(t *testing.T, o confirm.Options) *confirm.Confirmer {
	t.Helper()
	var nf *kernel.Netfilter
	r.node.do(t, func() (err error) {
		nf, err = kernel.New(kernel.Options{})
		return err
	})
	o.Dataplane, o.Clock, o.Log = lookPlane{nf}, clock.RealClock{}, logr.Discard()
	c := confirm.New(o)
	ctx, cancel := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	ended.Add(1)
	r.node.begin(t, func() {
		defer ended.Done()
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		ended.Wait()
		if err := nf.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// asking returns the description that asks for one answer.
func asking(t *testing.T, f flow.Flow, want flow.Answer) *confirm.Description {
	t.Helper()
	content, err := proto.Marshal(&hubv1.Description{
		Expectations: []*hubv1.Expectation{{Flow: hubv1.FlowOf(f), Want: hubv1.AnswerOf(want)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	description, err := confirm.ParseDescription(content)
	if err != nil {
		t.Fatal(err)
	}
	return description
}

func TestATableThatIsFlushedByHandIsRetracted(t *testing.T) {
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			r := newRig(t, capturePods[:2], captureRemote[:2])
			lock := os.Getenv("XTABLES_LOCKFILE")
			if err := os.WriteFile(lock, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			restore := func(rules string) {
				t.Helper()
				r.node.run(t, "*filter\n:FORWARD ACCEPT\n"+rules+"COMMIT\n", "iptables-"+backend+"-restore", "-w")
			}
			restore("-A FORWARD -p tcp -m tcp --dport 80 -j DROP\n")
			reports := make(told, 100)
			c := r.confirmer(t, confirm.Options{Reports: reports, Notices: noticesOf{t, r.node, lock}})
			err := c.Assign(confirm.Source{Replica: "a", Session: 1}, &hubv1.Assign{
				Subject:    &hubv1.Subject{Uid: "u", Ips: []string{"10.244.1.10"}},
				Generation: 1,
			}, asking(t, toPod, flow.Denied))
			if err != nil {
				t.Fatal(err)
			}
			reports.expect(t, true)
			r.node.run(t, "", "iptables-"+backend, "-w", "-F", "FORWARD")
			reports.expect(t, false)
			restore("-A FORWARD -p tcp -m tcp --dport 80 -j DROP\n")
			reports.expect(t, true)
		})
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"fmt"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/api/flow"
)

const (
	// engineSets are the sets that an engine's rounds write anew.
	engineSets = 20
	// engineRounds is how many rounds of an engine the confirmer is beside.
	engineRounds = 2000
	// agentPause is the shortest time between two looks of the agent's
	// confirmer while a Pod waits.
	agentPause = 100 * time.Millisecond
)

// engine writes sets and rules in the way of kube-router: each set is filled
// under another name, swapped in, and what it was is destroyed; then the table
// is replaced. The rules are legacy in every second round.
type engine struct {
	node   *namespace
	rounds int
	// failed are the rounds in which a tool failed, and how the last one did.
	failed int
	last   string
}

func (e *engine) sets() string {
	var b strings.Builder
	for i := range engineSets {
		fmt.Fprintf(&b, "create next-%d hash:ip\n", i)
		for host := range 50 {
			fmt.Fprintf(&b, "add next-%d 10.244.2.%d\n", i, (host+i+e.rounds)%200+1)
		}
		fmt.Fprintf(&b, "swap next-%d peers-%d\ndestroy next-%d\n", i, i, i)
	}
	return b.String()
}

func (e *engine) rules() string {
	var b strings.Builder
	fmt.Fprintf(&b, "*filter\n:FORWARD ACCEPT\n:pods-%d -\n-A FORWARD -j pods-%d\n", e.rounds, e.rounds)
	for i := range engineSets {
		fmt.Fprintf(&b, "-A pods-%d -m set --match-set peers-%d src -p tcp --dport %d -j DROP\n", e.rounds, i, 3000+i)
	}
	return b.String() + "COMMIT\n"
}

// prepare makes the sets.
func (e *engine) prepare(t *testing.T) {
	t.Helper()
	var b strings.Builder
	for i := range engineSets {
		fmt.Fprintf(&b, "create peers-%d hash:ip\n", i)
	}
	e.node.run(t, b.String(), "ipset", "restore")
}

// round runs one round on the calling thread, which is in the namespace, and
// returns how long its tools took.
func (e *engine) round() time.Duration {
	e.rounds++
	restore := "iptables-nft-restore"
	if e.rounds%2 == 0 {
		restore = "iptables-legacy-restore"
	}
	began := time.Now()
	why := ""
	for tool, input := range map[string]string{"ipset": e.sets(), restore: e.rules()} {
		option := "-w"
		if tool == "ipset" {
			option = "restore"
		}
		cmd := exec.Command(tool, option)
		cmd.Stdin = strings.NewReader(input)
		if out, err := cmd.CombinedOutput(); err != nil {
			why += fmt.Sprintf("%s: %v: %s", tool, err, out)
		}
	}
	took := time.Since(began)
	if why != "" {
		e.failed++
		e.last = why
		// What a swap that failed left there would fail the next round as well.
		for i := range engineSets {
			_ = exec.Command("ipset", "destroy", fmt.Sprintf("next-%d", i)).Run()
		}
	}
	return took
}

// confirmer looks and asks as the agent does, until the test ends, or pauses.
type confirmer struct {
	pause  time.Duration
	active atomic.Bool
	// looks and answers count; broken counts those that failed.
	looks, answers, broken atomic.Int64
}

// start asks every set about flows, with pause between two looks.
func (c *confirmer) start(t *testing.T, ns *namespace) (stop func()) {
	t.Helper()
	end, ended := make(chan struct{}), make(chan struct{})
	var questions []kernel.Question
	for i := range 4 * engineSets {
		questions = append(questions, kernel.Question{Flow: flow.Flow{
			Protocol: flow.TCP, Src: addr(fmt.Sprintf("10.244.2.%d", i+1)), Dst: addr("10.244.1.10"), Port: uint16(3000 + i%engineSets)}})
	}
	go func() {
		defer close(ended)
		ns.do(t, func() error {
			nf, err := kernel.New(kernel.Options{})
			if err != nil {
				return err
			}
			defer func() { _ = nf.Close() }()
			for {
				select {
				case <-end:
					return nil
				case <-time.After(c.pause):
				}
				if !c.active.Load() {
					time.Sleep(time.Millisecond)
					continue
				}
				look, err := nf.Look(t.Context())
				if err != nil {
					c.broken.Add(1)
					continue
				}
				c.looks.Add(1)
				answers, err := look.Together(t.Context(), questions)
				if err != nil {
					c.broken.Add(1)
					continue
				}
				for _, a := range answers {
					if a.Verdict.Answer != flow.Inconclusive {
						c.answers.Add(1)
					}
				}
			}
		})
	}()
	return func() {
		close(end)
		<-ended
	}
}

// TestTheEngineNeverFailsBesideTheAgent asks at full rate, barriers included,
// what an engine rewrites.
func TestTheEngineNeverFailsBesideTheAgent(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	e := &engine{node: r.node}
	e.prepare(t)
	var c confirmer
	c.active.Store(true)
	stop := c.start(t, r.node)
	r.node.do(t, func() error {
		for range engineRounds {
			e.round()
		}
		return nil
	})
	stop()
	t.Logf("%d rounds: %d failed; beside them %d looks, %d answers, %d looks or batches without", e.rounds, e.failed, c.looks.Load(), c.answers.Load(), c.broken.Load())
	if e.failed > 0 {
		t.Errorf("%d of %d rounds failed, the last with %s", e.failed, e.rounds, e.last)
	}
	if c.answers.Load() < engineRounds {
		t.Errorf("only %d answers: the confirmer was not beside them", c.answers.Load())
	}
}

// TestTheEngineTakesItsTimeBesideTheAgent has rounds with and without the
// agent in turn, at the agent's own rate, and logs how their times compare.
func TestTheEngineTakesItsTimeBesideTheAgent(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	e := &engine{node: r.node}
	e.prepare(t)
	c := confirmer{pause: agentPause}
	stop := c.start(t, r.node)
	var alone, beside time.Duration
	r.node.do(t, func() error {
		for i := range 600 {
			c.active.Store(i%20 >= 10)
			if i%20 >= 10 {
				beside += e.round()
			} else {
				alone += e.round()
			}
		}
		return nil
	})
	stop()
	t.Logf("%d rounds alone %v, as many beside the agent %v: %.3f of the time; %d looks, %d answers",
		e.rounds/2, alone, beside, float64(beside)/float64(alone), c.looks.Load(), c.answers.Load())
	if e.failed > 0 || c.answers.Load() == 0 {
		t.Errorf("%d rounds failed (%s), %d answers", e.failed, e.last, c.answers.Load())
	}
}

// TestTheEngineFailsBesideOneWhoLists is the control: a LIST in flight pins
// its sets, so that rounds fail of which the tests above count none.
func TestTheEngineFailsBesideOneWhoLists(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	e := &engine{node: r.node}
	e.prepare(t)
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		r.node.do(t, func() error {
			conn, err := nlconn.Dial(unix.NETLINK_NETFILTER)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			const ipsetList, ipsetAttrProtocol, ipsetProtocol = 7, 1, 6 // linux/netfilter/ipset/ip_set.h
			request := nlconn.Attribute([]byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}, ipsetAttrProtocol, []byte{ipsetProtocol})
			for {
				select {
				case <-end:
					return nil
				default:
				}
				// A set that is destroyed meanwhile makes it fail, too.
				_ = conn.Ask(unix.NFNL_SUBSYS_IPSET<<8|ipsetList, unix.NLM_F_DUMP, request, func([]byte) error { return nil })
			}
		})
	}()
	r.node.do(t, func() error {
		for e.failed < 5 && e.rounds < engineRounds {
			e.round()
		}
		return nil
	})
	close(end)
	<-ended
	t.Logf("%d of %d rounds failed, the last with %s", e.failed, e.rounds, e.last)
	if e.failed == 0 {
		t.Error("no round failed: the tests above could not fail either")
	}
}

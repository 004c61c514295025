// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/api/flow"
)

// rewritten are the ways in which a transaction changes what becomes of a
// flow: each has one of its own, by its source.
var rewritten = []flow.Flow{
	hammerFlow("10.244.2.1"), // a chain's policy
	hammerFlow("10.244.2.2"), // a set of intervals
	hammerFlow("10.244.2.3"), // a set of concatenated intervals
	hammerFlow("10.244.2.4"), // a map of verdicts
	hammerFlow("10.244.2.5"), // a rule
}

func hammerFlow(src string) flow.Flow {
	return flow.Flow{Protocol: flow.TCP, Src: addr(src), Dst: addr("10.244.1.10"), Port: 80}
}

// hammered is what the versions rewrite. The sets have other elements as well,
// so that a commit takes its time.
const hammered = `table ip policies {
	chain forward { type filter hook forward priority 0; policy accept; }
}
table ip sets {
	set intervals { type ipv4_addr; flags interval; }
	set pairs { type ipv4_addr . inet_service; flags interval; }
	map verdicts { type ipv4_addr : verdict; }
	chain rules { }
	chain forward {
		type filter hook forward priority 10; policy accept;
		ip saddr @intervals drop
		ip saddr . tcp dport @pairs drop
		ip saddr vmap @verdicts
		jump rules
	}
}
add rule ip policies forward ip saddr != 10.244.2.1 accept
`

// transaction returns what makes every flow of rewritten Allowed in an even
// version, and Denied in an odd one.
func transaction(version int64) string {
	policy, first, verdict, rule := "accept", 100, "accept", ""
	if version%2 == 1 {
		policy, first, verdict, rule = "drop", 2, "drop", "add rule ip sets rules ip saddr 10.244.2.5 drop\n"
	}
	var intervals, pairs []string
	for i := range 30 {
		intervals = append(intervals, fmt.Sprintf("10.%d.%d.0-10.%d.%d.100", version%2, i, version%2, i))
		pairs = append(pairs, fmt.Sprintf("10.%d.%d.0-10.%d.%d.100 . 80-90", version%2, i, version%2, i))
	}
	intervals = append(intervals, fmt.Sprintf("10.244.2.%d/32", first))
	pairs = append(pairs, fmt.Sprintf("10.244.2.%d/32 . 70-90", first+1))
	return "flush set ip sets intervals\nflush set ip sets pairs\nflush map ip sets verdicts\nflush chain ip sets rules\n" +
		"add chain ip policies forward { type filter hook forward priority 0; policy " + policy + "; }\n" +
		"add element ip sets intervals { " + strings.Join(intervals, ", ") + " }\n" +
		"add element ip sets pairs { " + strings.Join(pairs, ", ") + " }\n" +
		"add element ip sets verdicts { 10.244.2.4 : " + verdict + " }\n" + rule
}

// versions says which version may be in the kernel: begun is the newest whose
// transaction may have begun, done the newest that has ended.
type versions struct {
	begun, done atomic.Int64
	// between counts answers that were asked and given between transactions,
	// so that they have to be those of the version.
	between atomic.Int64
}

// rewrite commits so many versions, with some answers between each and the
// next, and then closes the channel.
func (v *versions) rewrite(t *testing.T, ns *namespace, count int64, done chan<- struct{}) {
	defer close(done)
	ns.do(t, func() error {
		for range count {
			for known := v.between.Load(); v.between.Load() < known+answersBetween; time.Sleep(50 * time.Microsecond) {
				if err := t.Context().Err(); err != nil {
					return nil //nolint:nilerr // The test is over: its readers have failed.
				}
			}
			next := v.begun.Add(1)
			cmd := exec.CommandContext(t.Context(), "nft", "-f", "-")
			cmd.Stdin = strings.NewReader(transaction(next))
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("version %d: %w: %s", next, err, out)
			}
			v.done.Store(next)
		}
		return nil
	})
}

// wrong says what is wrong with answers that were asked between the moments
// when from was the newest version that was done and to the newest begun.
func wrong(answers []flow.Answer, from, to int64) string {
	for i, a := range answers {
		switch {
		case a == flow.Inconclusive:
			return fmt.Sprintf("%s is inconclusive", rewritten[i])
		case a != answers[0]:
			return fmt.Sprintf("torn: %v", answers)
		}
	}
	want := flow.Allowed
	if from%2 == 1 {
		want = flow.Denied
	}
	if from == to && answers[0] != want {
		return fmt.Sprintf("stale: version %d is %s, want %s", from, answers[0], want)
	}
	return ""
}

const (
	// commits is how many transactions the readers are asked under.
	commits = 300
	// answersBetween is how many answers there are between two of them at
	// least. A reader that was in the middle of the last one gives one of them.
	answersBetween = 5
)

// TestReadersAreNeverStaleUnderTransactions asks without a pause while what is
// asked about is rewritten.
func TestReadersAreNeverStaleUnderTransactions(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	r.node.run(t, hammered, "nft", "-f", "-")
	r.node.run(t, transaction(0), "nft", "-f", "-")
	var v versions
	done := make(chan struct{})
	go v.rewrite(t, r.node, commits, done)
	var readers sync.WaitGroup
	var asked, unsettled, bad atomic.Int64
	questions := make([]kernel.Question, 0, len(rewritten))
	for _, f := range rewritten {
		questions = append(questions, kernel.Question{Flow: f})
	}
	for reader := range 2 {
		readers.Go(func() {
			r.node.do(t, func() error {
				nf, err := kernel.New(kernel.Options{})
				if err != nil {
					return err
				}
				defer func() { _ = nf.Close() }()
				var look *kernel.Look
				for i := 0; ; i++ {
					select {
					case <-done:
						return nil
					default:
					}
					from := v.done.Load()
					// The agent takes a look each time; asking an old one
					// again is a way to be stale.
					if look == nil || reader > 0 || i%10 == 0 {
						if look, err = nf.Look(t.Context()); err != nil {
							look = nil
							unsettled.Add(1)
							continue
						}
					}
					answers, err := look.Together(t.Context(), questions)
					to := v.begun.Load()
					if errors.Is(err, kernel.ErrUnsettled) {
						unsettled.Add(1)
						continue
					}
					if err != nil {
						return err
					}
					asked.Add(1)
					got := make([]flow.Answer, 0, len(answers))
					for _, a := range answers {
						got = append(got, a.Verdict.Answer)
					}
					if what := wrong(got, from, to); what != "" && bad.Add(1) < 10 {
						t.Errorf("%s: %s", what, answers[0].Verdict)
					}
					if from == to {
						v.between.Add(1)
					}
				}
			})
		})
	}
	readers.Wait()
	t.Logf("%d commits: %d batches of %d answers, %d of them between commits, %d not settled, %d wrong",
		v.done.Load(), asked.Load(), len(rewritten), v.between.Load(), unsettled.Load(), bad.Load())
	if v.done.Load() != commits || asked.Load() < commits {
		t.Error("want every commit, and answers beside them")
	}
}

// TestAnUnchangedGenerationAloneIsStale is the control of the test above: it
// believes what it read if the generation was the same before and afterwards,
// without waiting for the commit's end, and keeps it for that generation.
func TestAnUnchangedGenerationAloneIsStale(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	r.node.run(t, hammered, "nft", "-f", "-")
	r.node.run(t, transaction(0), "nft", "-f", "-")
	// The versions go on where the last round ended.
	var v versions
	for round := range 10 {
		done := make(chan struct{})
		go v.rewrite(t, r.node, commits, done)
		asked, stale := 0, 0
		r.node.do(t, func() error {
			conn, err := nlconn.Dial(unix.NETLINK_NETFILTER)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			var known uint32
			var answer flow.Answer
			for {
				select {
				case <-done:
					return nil
				default:
				}
				from := v.done.Load()
				before, err := rawGeneration(conn)
				if err != nil {
					return err
				}
				if before != known {
					drop, err := rawPolicy(conn, "policies", "forward")
					if err != nil {
						return err
					}
					after, err := rawGeneration(conn)
					if err != nil {
						return err
					}
					if after != before {
						continue
					}
					known, answer = before, flow.Allowed
					if drop {
						answer = flow.Denied
					}
				}
				asked++
				to := v.begun.Load()
				if wrong([]flow.Answer{answer}, from, to) != "" {
					stale++
				}
				if from == to {
					v.between.Add(1)
				}
			}
		})
		t.Logf("round %d: %d of %d answers are stale", round, stale, asked)
		if stale > 0 {
			return
		}
	}
	t.Error("no answer was stale: the readers' test could not fail either")
}

// What the control asks, linux/netfilter/nf_tables.h.
const (
	getChain = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETCHAIN
	getGen   = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
)

// nfgenmsg is the header of nfnetlink for IPv4.
var nfgenmsg = []byte{unix.NFPROTO_IPV4, unix.NFNETLINK_V0, 0, 0}

func rawGeneration(c *nlconn.Conn) (gen uint32, err error) {
	err = c.Ask(getGen, 0, nfgenmsg, func(body []byte) error {
		return nlconn.Attributes(body[len(nfgenmsg):], func(kind uint16, value []byte) {
			if kind == unix.NFTA_GEN_ID {
				gen = binary.BigEndian.Uint32(value)
			}
		})
	})
	return gen, err
}

func rawPolicy(c *nlconn.Conn, table, chain string) (drop bool, err error) {
	request := nlconn.Attribute(append([]byte(nil), nfgenmsg...), unix.NFTA_CHAIN_TABLE, []byte(table+"\x00"))
	request = nlconn.Attribute(request, unix.NFTA_CHAIN_NAME, []byte(chain+"\x00"))
	err = c.Ask(getChain, 0, request, func(body []byte) error {
		return nlconn.Attributes(body[len(nfgenmsg):], func(kind uint16, value []byte) {
			if kind == unix.NFTA_CHAIN_POLICY {
				drop = binary.BigEndian.Uint32(value) == 0 // NF_DROP
			}
		})
	})
	return drop, err
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/hub"
)

// lies is what the agent of n7 can say that the hub lets pass: anything.
func (b *bench) lies(random *rand.Rand, pods []string) {
	either := func() bool { return random.IntN(2) == 0 }
	switch random.IntN(8) {
	case 0:
		b.ledger.Changed("n7", hub.State{Unsupported: []string{"", "eBPF"}[random.IntN(2)]})
	case 1:
		b.ledger.Disconnected("n7")
		b.ledger.Connected("n7", hub.Hello{BootID: fmt.Sprint("boot ", random.IntN(3))})
	default:
		b.answer(pods[random.IntN(len(pods))], "n7", func(r *hubv1.Report) {
			r.Confirmed, r.Steady = either(), either()
			r.UnmetRequired, r.UnmetAdvisory = random.Uint32N(3), random.Uint32N(3)
			r.Unmet = []*hubv1.Unmet{{Expectation: random.Uint32N(2), Reason: "denied (chain x: drops)"}}
			r.Ipv4Unenforced, r.Ipv6Unenforced = either(), false
			r.Unrealized = [][]uint32{nil, {0}, {0, 1}, {7}}[random.IntN(4)]
			r.Realized = [][]uint32{nil, {0}, {1}, {7}}[random.IntN(4)]
		})
	}
}

// TestALiarSpeaksForItsOwnNodeAlone lets the agent of one node say whatever it
// wants of Pods that two others must confirm, too: what is demanded of these
// stays as it was, and no gate opens without them.
func TestALiarSpeaksForItsOwnNodeAlone(t *testing.T) {
	// timeout is the step before which no Pod has waited for too long.
	const timeout = 40
	learned := 0
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 0))
		b := newBench(t)
		b.ledger.Connected("n8", hub.Hello{})
		required := allow(shopAllow, "10.0.0.1", 80)
		all := append(witnessed(required), advisory(required))
		perNode := map[string][]expect.Expectation{"n1": all, "n7": all, "n8": all}
		pods := []string{"p", "q", "r"}
		for i, uid := range pods {
			b.start(uid, []string{"shop", "shop", "other"}[i], fmt.Sprint("10.0.0.", i+1), perNode)
			b.answer(uid, "n1", confirms)
		}
		b.settled()
		b.hub.sent = nil
		excused := false
		// What n7 says is learned at the timeout. From then on a Pod may start
		// without n8, which has said nothing, but n8 is asked as before.
		for step := range 60 {
			b.lies(random, pods)
			b.settled()
			b.clock.Step(900 * time.Millisecond)
			if step == timeout {
				b.clock.Step(v1alpha1.DefaultTimeout)
			}
			b.settled()
			for _, sent := range b.hub.sent {
				switch {
				case strings.Contains(sent, " to n7 "):
					excused = excused || strings.Contains(sent, "excused")
				case strings.HasPrefix(sent, "assign "), strings.HasPrefix(sent, "withdraw ") && step < timeout && !strings.HasSuffix(sent, " n7"),
					strings.HasPrefix(sent, "release ") && step < timeout:
					t.Fatalf("seed %d, step %d: %s, by what n7 says alone", seed, step, sent)
				}
			}
			b.hub.sent = nil
		}
		if excused {
			learned++
		}
	}
	if learned == 0 {
		t.Error("nothing that n7 said excused n7: it did not lie well")
	}
}

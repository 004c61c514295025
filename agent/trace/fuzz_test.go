// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// check holds what is said of made up rules against packets that are sent
// through them, and returns the verdict and whether any packet met it.
func check(t *testing.T, data []byte) flow.Verdict {
	t.Helper()
	m := &model{data: data}
	path, f, tables := m.path(), m.flow(), m.tables()
	got := trace.Trace(tables, path, f, m)
	if again := trace.Trace(tables, path, f, m); again != got {
		t.Errorf("%s, and asked again %s", got, again)
	}
	explained, steps, misses := trace.Explain(tables, path, f, m)
	if explained != got || len(steps) > trace.MostSteps+1 {
		t.Errorf("%s, and explained in %d steps as %s", got, len(steps), explained)
	}
	texts := []string{got.Reason}
	for _, s := range steps {
		texts = append(texts, s.Base, s.Chain, s.Effect, s.Maybe)
	}
	for _, m := range misses {
		texts = append(texts, m.Base, m.Chain, m.Effect, m.Set, m.Element)
		turns := m.Otherwise != got.Answer && m.Otherwise != flow.Inconclusive
		if m.Set == "" || m.Element == "" || m.Rule == "" || !turns && (got.Answer == flow.Allowed || misses[0].Otherwise != got.Answer && misses[0].Otherwise != flow.Inconclusive) {
			t.Errorf("%s, and a near miss is %+v", got, m)
		}
	}
	for _, text := range texts {
		if trace.Clean(text) != text {
			t.Errorf("%q is not short printable text", text)
		}
	}
	if got.Reason == "" {
		t.Error("a verdict without reason")
	}
	chance := rand.New(rand.NewPCG(uint64(len(data)), 1))
	for range 12 {
		met := send(tables, path, f, m, chance)
		if met == endless {
			break
		}
		if got.Answer == flow.Allowed && met != passes || got.Answer == flow.Denied && met != falls {
			t.Errorf("%s, but a packet met fate %d; the steps are", got, met)
			for _, s := range steps {
				t.Logf("%+v", s)
			}
			break
		}
	}
	return got
}

func TestPacketsMeetWhatTheVerdictSays(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	answers := map[flow.Answer]int{}
	for range 4_000 {
		data := make([]byte, 64+random.IntN(256))
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		answers[check(t, data).Answer]++
		if t.Failed() {
			t.Fatalf("of %x", data)
		}
	}
	if answers[flow.Allowed] < 100 || answers[flow.Denied] < 100 {
		t.Errorf("answers are %v, want many of each kind", answers)
	}
}

func FuzzVerdict(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte(strings.Repeat("\x07\x0d\x11\x03", 60)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 1<<12 {
			check(t, data)
		}
	})
}

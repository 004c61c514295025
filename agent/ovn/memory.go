// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"github.com/policygate/policygate/api/flow"
)

const (
	// mostRemembered bounds the answers that are remembered, of a hundred bytes
	// each. Beyond it one that the current batch has not asked for makes room,
	// of so many that are looked at.
	mostRemembered = 16384
	mostWeighed    = 8
)

// memory keeps for each question what its answer was and since when, so that it
// counts only when the flow cache has forgotten what was before. It is not safe
// for concurrent use.
type memory struct {
	answers map[Question]*remembered
	batch   uint64
}

// remembered is an answer.
type remembered struct {
	answer flow.Answer
	// ground is that of the ports.
	ground string
	// since is the mark of the cycles when it was first so.
	since uint64
	// asked is the batch that asked last.
	asked uint64
}

func newMemory() memory { return memory{answers: map[Question]*remembered{}} }

// forget forgets everything.
func (m *memory) forget() { clear(m.answers) }

// stale is the reason of an answer that does not count yet.
const stale = "the flow cache may still hold what was before"

// settle returns the verdict, or an Inconclusive one if it is not old enough to
// count. changed is whether the answer was another before.
func (m *memory) settle(q Question, ground string, v flow.Verdict, mark uint64, ended func(mark uint64) bool) (settled flow.Verdict, changed bool) {
	known := m.answers[q]
	if v.Answer == flow.Inconclusive {
		delete(m.answers, q)
		return v, known != nil
	}
	if known != nil && known.answer == v.Answer && known.ground == ground {
		known.asked = m.batch
		if ended(known.since) {
			return v, false
		}
		return inconclusive(v.Answer.String() + ", but " + stale), false
	}
	if known == nil && len(m.answers) >= mostRemembered && !m.makeRoom() {
		return inconclusive("more flows are asked about at once than can be remembered"), false
	}
	m.answers[q] = &remembered{answer: v.Answer, ground: ground, since: mark, asked: m.batch}
	return inconclusive(v.Answer.String() + ", but " + stale), known != nil && known.answer != v.Answer
}

// makeRoom drops an answer that the current batch has not asked for, if it comes
// upon one.
func (m *memory) makeRoom() bool {
	weighed := 0
	for q, known := range m.answers {
		if known.asked < m.batch {
			delete(m.answers, q)
			return true
		}
		if weighed++; weighed == mostWeighed {
			break
		}
	}
	return false
}

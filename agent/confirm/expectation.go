// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

const (
	// maxUnmet is how many unmet expectations a report names.
	maxUnmet = 3
	// maxReason is the length of a reason in bytes.
	maxReason = 200
)

// expectation is one flow and the answer that this node must give.
type expectation struct {
	flow     flow.Flow
	want     flow.Answer
	advisory bool
	external bool
}

// questions returns what to ask for the expectations, in their order.
func questions(expectations []expectation) []Question {
	all := make([]Question, len(expectations))
	for i, e := range expectations {
		all[i] = Question{Flow: e.flow, External: e.external}
	}
	return all
}

// unmet is an expectation, by its index, that does not hold.
type unmet struct {
	index  int
	reason string
}

// result is what one look says about a subject's expectations.
type result struct {
	// unmet are at most maxUnmet, required ones first.
	unmet []unmet
	// required and advisory count all that do not hold.
	required, advisory int
	// without are the families whose expectations were left out of the above.
	without [families]bool
}

// parse returns the expectations of a, or the first that is malformed. A
// Denied is required whatever its advisory says.
func parse(a *hubv1.Assign) ([]expectation, *unmet) {
	parsed := make([]expectation, 0, len(a.GetExpectations()))
	for i, e := range a.GetExpectations() {
		malformed := func(err error) *unmet {
			return &unmet{index: i, reason: printable(fmt.Sprintf("malformed expectation %d: %v", i, err))}
		}
		f, err := e.GetFlow().Value()
		if err != nil {
			return nil, malformed(err)
		}
		want, err := e.GetWant().Value()
		if err != nil {
			return nil, malformed(err)
		}
		// An assignment without whys names no reasons; its indexes are all 0.
		if why, whys := int(e.GetWhy()), len(a.GetWhys()); why >= whys && (why > 0 || whys > 0) {
			return nil, malformed(fmt.Errorf("why %d: want an index into %d whys", why, whys))
		}
		parsed = append(parsed, expectation{
			flow:     f,
			want:     want,
			advisory: e.GetAdvisory() && want == flow.Allowed,
			external: e.GetExternal(),
		})
	}
	return parsed, nil
}

// contentKey identifies what an assignment asks. Assignments of one key have
// the same answer, whichever replica sent them and why.
type contentKey [sha256.Size]byte

func keyOf(a *hubv1.Assign) (contentKey, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(&hubv1.Assign{
		Subject: &hubv1.Subject{
			Uid: a.GetSubject().GetUid(),
			Ips: a.GetSubject().GetIps(),
		},
		Expectations: a.GetExpectations(),
		// Only the number of whys decides whether the indexes are in range.
		Whys:           make([]string, len(a.GetWhys())),
		OwnNode:        a.GetOwnNode(),
		Settle:         a.GetSettle(),
		ExcuseFamilies: a.GetExcuseFamilies(),
	})
	if err != nil {
		return contentKey{}, fmt.Errorf("marshal assignment of %q: %w", a.GetSubject().GetUid(), err)
	}
	return sha256.Sum256(data), nil
}

// requiredIn counts the expectations that are not advisory.
func requiredIn(expectations []expectation) int {
	n := 0
	for _, e := range expectations {
		if !e.advisory {
			n++
		}
	}
	return n
}

// printable reduces text, which may come from the kernel, to printable ASCII
// of at most maxReason bytes.
func printable(text string) string {
	out := make([]byte, 0, min(len(text), maxReason))
	for _, r := range text {
		if len(out) == maxReason {
			break
		}
		if r < ' ' || r > '~' {
			r = '?'
		}
		out = append(out, byte(r))
	}
	return string(out)
}

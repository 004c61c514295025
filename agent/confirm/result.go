// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

const (
	// maxUnmet is how many unmet expectations a report names.
	maxUnmet = 3
	// maxReason is the length of a reason in bytes.
	maxReason = 200
)

// unmet is an expectation, by its index, that does not hold.
type unmet struct {
	index  int
	reason string
}

// result is what one look says about a subject's expectations.
type result struct {
	// unmet are at most maxUnmet, required ones first.
	unmet []unmet
	// required and advisory count all that are awaited and do not hold.
	required, advisory int
	// without are the families whose expectations were left out of the above
	// and the below.
	without [families]bool
	// outcome is which rules are realized.
	outcome outcome
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

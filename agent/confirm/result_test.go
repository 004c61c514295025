// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPrintable(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"plain text stays":            {in: "denied (KUBE-NWPLCY-X)", want: "denied (KUBE-NWPLCY-X)"},
		"control characters go":       {in: "a\x1b[2Jb\n", want: "a?[2Jb?"},
		"other scripts go":            {in: "sä\xff", want: "s??"},
		"what is too long is cut off": {in: strings.Repeat("x", 300), want: strings.Repeat("x", 200)},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, printable(tc.in)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package installation

import (
	"strings"
	"testing"
	"time"
)

func TestUsage(t *testing.T) {
	const stat = "42 (man) ager) S 1 42 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 9 0 12345 1 1"
	cases := map[string]struct {
		stat, status string
		want         Usage
		fails        bool
	}{
		"a name with a parenthesis": {stat, "Name:\tm\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n", Usage{2 * time.Second, 1 << 20, 2 << 20}, false},
		"too short":                 {"42 (m) S 1", "", Usage{}, true},
		"no numbers":                {strings.Replace(stat, "150", "x", 1), "", Usage{}, true},
		"another unit":              {stat, "VmRSS:\t1 MB\n", Usage{}, true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := parseUsage(tc.stat, tc.status)
			if (err != nil) != tc.fails {
				t.Fatalf("error %v", err)
			}
			if err == nil && got != tc.want {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
}

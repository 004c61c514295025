// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nlconn

import "testing"

func FuzzAttributes(f *testing.F) {
	f.Add(Attribute(Attribute(nil, 1, []byte("filter\x00")), 2, nil))
	f.Add([]byte{3, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		if err := Attributes(b, func(_ uint16, value []byte) { total += 4 + len(value) }); err == nil && total > len(b) {
			t.Errorf("%d bytes of attributes in %d", total, len(b))
		}
	})
}

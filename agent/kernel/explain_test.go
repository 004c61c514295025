// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/ipset"
	"github.com/policygate/policygate/agent/kernel/nlconn"
)

// element returns an element as TEST takes it: linux/netfilter/ipset/ip_set.h.
func element() []byte {
	b := nlconn.Attribute(nil, 1|unix.NLA_F_NESTED, nlconn.Attribute(nil, 1|unix.NLA_F_NET_BYTEORDER, []byte{10, 0, 0, 1}))
	b = nlconn.Attribute(b, 4|unix.NLA_F_NET_BYTEORDER, []byte{0, 80})
	b = nlconn.Attribute(b, 7, []byte{6})
	return nlconn.Attribute(b, 23, []byte("eth0\x00"))
}

func TestAQuestionToASetReadsAsWords(t *testing.T) {
	for want, q := range map[string]ipset.Question{
		"set s":                      {Set: "s"},
		"set s 10.0.0.1,tcp:80,eth0": {Set: "s", Element: string(element())},
		"set s br0":                  {Set: "s", Element: string(nlconn.Attribute(nil, 23, []byte("br0\x00")))},
		"set s ?":                    {Set: "s", Element: "\x02\x00\x00\x00"},
		"set s 0x10": {
			Set: "s", Element: string(nlconn.Attribute(nil, 10|unix.NLA_F_NET_BYTEORDER, []byte{0, 0, 0, 16})),
		},
	} {
		if got := asked(q); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func FuzzParts(f *testing.F) {
	f.Add(element())
	f.Fuzz(func(_ *testing.T, b []byte) { _ = parts(b) })
}

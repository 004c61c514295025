// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func addresses(all ...string) []netip.Addr {
	var parsed []netip.Addr
	for _, a := range all {
		parsed = append(parsed, netip.MustParseAddr(a))
	}
	return parsed
}

func TestLinked(t *testing.T) {
	t.Parallel()
	mysql := Service{VIPs: addresses("10.96.0.1"), Backends: addresses("10.16.0.5", "10.16.0.6")}
	web := Service{VIPs: addresses("10.96.0.2", "fd00:96::2"), Backends: addresses("10.16.0.7", "fd00::7")}
	tests := map[string]struct {
		sets map[string][]string
		want []Link
	}{
		"without any set there is no link": {want: []Link{{}, {}}},
		"where no set holds a ClusterIP none is missing (1.16)": {
			sets: map[string][]string{"a": {"10.16.0.5"}, "b": {"10.16.0.7"}}, want: []Link{{}, {}},
		},
		"a set that holds a backend lacks its ClusterIP": {
			sets: map[string][]string{"a": {"10.16.0.5", "10.96.0.1"}, "b": {"10.16.0.6"}, "c": {"10.16.0.6", "10.16.0.9"}},
			want: []Link{{Lacking: []string{"b", "c"}, Linked: 1}, {}},
		},
		"another Service's ClusterIP shows that they belong there": {
			sets: map[string][]string{"a": {"10.16.0.7"}, "b": {"10.96.0.1"}},
			want: []Link{{}, {Lacking: []string{"a"}}},
		},
		"each family has its own": {
			sets: map[string][]string{"a": {"10.16.0.7", "10.96.0.2"}, "b": {"fd00::7"}},
			want: []Link{{}, {Lacking: []string{"b"}, Linked: 1}},
		},
		"a range may hold the ClusterIP": {
			sets: map[string][]string{"a": {"10.16.0.5", "10.96.0.0/16"}, "b": {"10.96.0.2"}},
			want: []Link{{Linked: 1}, {}},
		},
		"a range that holds a backend is nobody's link": {
			sets: map[string][]string{"a": {"10.16.0.0/16"}, "b": {"10.96.0.2"}}, want: []Link{{}, {}},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDatabase()
			for set, all := range test.sets {
				d.set(set, "db/np/egress", all...)
			}
			// Sets of nodes, and of nobody, are none of policies.
			d.set("node", "node/n1", "10.16.0.5")
			d.set("mine", "", "10.16.0.5", "10.96.0.1")
			got, err := New(d.newest).Linked([]Service{mysql, web})
			if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
				t.Errorf("%v %s", err, diff)
			}
		})
	}
	d := newDatabase()
	d.err = errNoConnection
	if got, err := New(d.newest).Linked([]Service{mysql}); err == nil {
		t.Errorf("%v without a connection", got)
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package programmed

import (
	"strings"
	"testing"
)

func TestNew(t *testing.T) {
	for name, tc := range map[string]struct {
		uid     string
		ips     []string
		boot    string
		want    string
		wantErr string
	}{
		"addresses are sorted and their text is one": {
			uid: "u", ips: []string{"fd00::0:2", "10.0.0.9", "10.0.0.10", "10.0.0.9"}, boot: "b\n",
			want: "uid=u;ips=10.0.0.9,10.0.0.10,fd00::2;boot=b",
		},
		"no UID":                    {ips: []string{"10.0.0.1"}, boot: "b", wantErr: "UID is empty"},
		"no address":                {uid: "u", ips: []string{" "}, boot: "b", wantErr: "no address"},
		"no boot id":                {uid: "u", ips: []string{"10.0.0.1"}, wantErr: "boot id is empty"},
		"an address that is none":   {uid: "u", ips: []string{"10.0.0.300"}, boot: "b", wantErr: `"10.0.0.300"`},
		"an address with a zone":    {uid: "u", ips: []string{"fe80::1%eth0"}, boot: "b", wantErr: "want an IPv4 or IPv6"},
		"a separator in the UID":    {uid: "u;ips=1", ips: []string{"10.0.0.1"}, boot: "b", wantErr: "separator"},
		"an IPv4 address in IPv6's": {uid: "u", ips: []string{"::ffff:10.0.0.1"}, boot: "b", want: "uid=u;ips=10.0.0.1;boot=b"},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := New(tc.uid, tc.ips, tc.boot)
			if (err == nil) != (tc.wantErr == "") || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Fatalf("error %v, want %q", err, tc.wantErr)
			}
			if got := id.String(); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

func TestMatches(t *testing.T) {
	id, err := New("u", []string{"10.0.0.1"}, "b")
	if err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]bool{
		id.String():                          true,
		id.Again(0):                          true,
		id.Again(1):                          true,
		id.Again(20):                         true,
		"":                                   false,
		"uid=u;ips=10.0.0.1;boot=bb":         false,
		"uid=u;ips=10.0.0.1,10.0.0.2;boot=b": false,
		"uid=u;ips=10.0.0.1;boot=b;x":        false,
		"uid=u;ips=10.0.0.1;boot=":           false,
	} {
		if got := id.Matches(value); got != want {
			t.Errorf("Matches(%q) = %t, want %t", value, got, want)
		}
	}
	for value, want := range map[string]bool{
		id.String():                          true,
		id.Again(1):                          true,
		"uid=u;ips=10.0.0.1;boot=another":    true,
		"":                                   false,
		"uid=u;ips=10.0.0.1":                 false,
		"uid=u;ips=10.0.0.1,10.0.0.2;boot=b": false,
		"uid=v;ips=10.0.0.1;boot=b":          false,
	} {
		if got := id.MatchesAnyBoot(value); got != want {
			t.Errorf("MatchesAnyBoot(%q) = %t, want %t", value, got, want)
		}
	}
	for _, value := range []string{"", ";again=1"} {
		if (Identity{}).Matches(value) || (Identity{}).MatchesAnyBoot(value) {
			t.Errorf("an empty identity matches %q", value)
		}
	}
	if id.Again(1) == id.Again(2) || id.Again(1) == id.String() {
		t.Error("values that are written again do not differ")
	}
}

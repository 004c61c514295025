// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package programmed

import (
	"net/netip"
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

func FuzzNew(f *testing.F) {
	f.Add("u", "10.0.0.1,fd00::2", "b\n", "uid=u;ips=10.0.0.1,fd00::2;boot=b", uint32(3))
	f.Add("u", "::ffff:10.0.0.1,10.0.0.1", "b", "uid=u;ips=10.0.0.1;boot=b;again=1", uint32(0))
	f.Add("u;ips=10.0.0.1", " ,", "b;again=1", ";again=1", uint32(1))
	f.Add("", "fe80::1%eth0", "any", "", uint32(1<<31))
	f.Fuzz(func(t *testing.T, uid, ips, boot, value string, n uint32) {
		id, err := New(uid, strings.Split(ips, ","), boot)
		if err != nil {
			if id.Matches(value) || id.MatchesAnyBoot(value) || id.String() != "" {
				t.Fatalf("what is no identity (%v) matches %q", err, value)
			}
			return
		}
		own := id.String()
		for _, written := range []string{own, id.Again(n)} {
			if !id.Matches(written) || !id.MatchesAnyBoot(written) {
				t.Fatalf("%+v does not match %q, which was written for it", id, written)
			}
		}
		if id.Matches(value) && value != own && !strings.HasPrefix(value, own+";again=") {
			t.Fatalf("%q matches %q", own, value)
		}
		// Of every other Pod, address or boot.
		for _, other := range []Identity{
			{UID: uid + "x", IPs: id.IPs, BootID: id.BootID},
			{UID: uid, IPs: append([]netip.Addr{netip.MustParseAddr("203.0.113.77")}, id.IPs...), BootID: id.BootID},
			{UID: uid, IPs: id.IPs, BootID: id.BootID + "x"},
		} {
			if id.Matches(other.String()) && other.String() != own || other.Matches(own) && other.String() != own {
				t.Fatalf("%q and %q match", own, other.String())
			}
		}
	})
}

// A hold compares what it is shown, whatever that is, with one identity.
func FuzzMatches(f *testing.F) {
	id, err := New("u", []string{"10.0.0.1"}, "b")
	if err != nil {
		f.Fatal(err)
	}
	for _, value := range []string{"", id.String(), id.Again(7), "uid=u;ips=10.0.0.1;boot=", "uid=u;ips=10.0.0.1;boot=b;x", "\x00", ";again="} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		const own = "uid=u;ips=10.0.0.1;boot=b"
		if want := value == own || strings.HasPrefix(value, own+";again="); id.Matches(value) != want {
			t.Fatalf("Matches(%q) = %t", value, !want)
		}
		if want := strings.HasPrefix(value, "uid=u;ips=10.0.0.1;boot="); id.MatchesAnyBoot(value) != want {
			t.Fatalf("MatchesAnyBoot(%q) = %t", value, !want)
		}
		if (Identity{}).Matches(value) || (Identity{}).MatchesAnyBoot(value) {
			t.Fatalf("no identity matches %q", value)
		}
	})
}

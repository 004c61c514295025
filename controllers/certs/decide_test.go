// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"crypto/x509"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const day = 24 * time.Hour

// epoch is where the tests' clocks begin.
func epoch() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

func testOptions() Options { return DefaultOptions("policygate-system") }

func authorityAt(t *testing.T, at time.Time) *pair {
	t.Helper()
	ca, err := newAuthority(at, testOptions().CALife)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func leafAt(t *testing.T, ca *pair, at time.Time, names ...string) *pair {
	t.Helper()
	if len(names) == 0 {
		names = testOptions().DNSNames
	}
	leaf, err := newLeaf(ca, names, at, testOptions().LeafLife)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func caData(ca *pair, published time.Time, previous ...*pair) map[string][]byte {
	data := map[string][]byte{keyCert: ca.certPEM, keyKey: ca.keyPEM}
	if !published.IsZero() {
		data[keyPublished] = []byte(published.Format(time.RFC3339))
	}
	for _, p := range previous {
		data[keyPrevious] = append(data[keyPrevious], p.certPEM...)
	}
	return data
}

func leafData(leaf *pair) map[string][]byte {
	return map[string][]byte{keyTLSCert: leaf.certPEM, keyTLSKey: leaf.keyPEM}
}

func with(data map[string][]byte, key, value string) map[string][]byte {
	out := maps.Clone(data)
	out[key] = []byte(value)
	return out
}

// What is due of the Secrets as they are read at now, without anything done.
func TestDecide(t *testing.T) {
	t0 := epoch()
	old := authorityAt(t, t0)
	ca := authorityAt(t, t0.Add(1300*day))
	rotated := t0.Add(1300 * day)
	oldLeaf := leafAt(t, old, t0.Add(1290*day))
	leaf := leafAt(t, ca, rotated.Add(day))
	foreign := authorityAt(t, t0)

	tests := map[string]struct {
		now    time.Time
		ca     map[string][]byte
		leaf   map[string][]byte
		bundle string
		// requested is the value of AnnotationRotate.
		requested string
		// wantCA and wantLeaf are part of the reason to make one; none is due
		// if empty. wantLeaf is decided only where no authority is due.
		wantCA, wantLeaf string
		wantPrevious     []*pair
	}{
		"at the first start nothing is there": {
			now: t0, wantCA: "there is none",
		},
		"an authority without a serving certificate, as after a crash between the two": {
			now: t0, ca: caData(old, t0), wantLeaf: "there is none",
		},
		"all is in order": {
			now: rotated.Add(2 * day), ca: caData(ca, rotated), leaf: leafData(leaf),
		},
		"a key that was cut off": {
			now: t0, ca: with(caData(old, t0), keyKey, "-----BEGIN PRIVATE KEY-----\nMIGH"),
			wantCA: "failed to find any PEM data in key",
		},
		"a key of another authority": {
			now: t0, ca: with(caData(old, t0), keyKey, string(foreign.keyPEM)),
			wantCA: "private key does not match",
		},
		"a serving certificate in the place of the authority": {
			now: t0, ca: map[string][]byte{keyCert: oldLeaf.certPEM, keyKey: oldLeaf.keyPEM},
			wantCA: "not an authority's",
		},
		"a lost authority stays trusted as long as what it signed is served": {
			now: rotated, leaf: leafData(oldLeaf), bundle: string(old.certPEM) + string(foreign.certPEM),
			wantCA: "there is none", wantPrevious: []*pair{old},
		},
		"an authority at two thirds of its life": {
			now: renewal(old.cert), ca: caData(old, t0), leaf: leafData(oldLeaf),
			wantCA: "two thirds",
		},
		"an authority just before two thirds of its life": {
			now: renewal(old.cert).Add(-time.Second), ca: caData(old, t0),
			leaf: leafData(leafAt(t, old, renewal(old.cert).Add(-time.Hour))),
		},
		"an expired authority": {
			now: old.cert.NotAfter, ca: caData(old, t0), leaf: leafData(oldLeaf),
			wantCA: "it expired at",
		},
		"an authority from the future": {
			now: t0.Add(-2*backdate - time.Second), ca: caData(old, t0), wantCA: "it begins only at",
		},
		"an authority of a replica whose clock is early": {
			now: t0.Add(-30 * time.Minute), ca: caData(old, t0), leaf: leafData(leafAt(t, old, t0)),
		},
		"a new authority does not sign before every client trusts it": {
			now: rotated.Add(day - time.Second), ca: caData(ca, rotated, old), leaf: leafData(oldLeaf),
			wantPrevious: []*pair{old},
		},
		"a new authority signs once every client trusts it": {
			now: rotated.Add(day), ca: caData(ca, rotated, old), leaf: leafData(oldLeaf),
			wantLeaf: "has been replaced", wantPrevious: []*pair{old},
		},
		"a new authority signs at once if what is served would expire": {
			now: rotated, ca: caData(ca, rotated, old),
			leaf:     leafData(leafAt(t, old, rotated.Add(time.Hour).Add(-testOptions().LeafLife))),
			wantLeaf: "it expires before", wantPrevious: []*pair{old},
		},
		"the former authority is trusted while some replica may serve its certificate": {
			now: rotated.Add(2*day - time.Second), ca: caData(ca, rotated, old), leaf: leafData(leaf),
			wantPrevious: []*pair{old},
		},
		"the former authority is dropped when every replica serves the new certificate": {
			now: rotated.Add(2 * day), ca: caData(ca, rotated, old), leaf: leafData(leaf),
		},
		"an expired former authority is dropped": {
			now: old.cert.NotAfter, ca: caData(ca, rotated, old),
			leaf: leafData(leafAt(t, ca, old.cert.NotAfter)),
		},
		"a serving certificate at two thirds of its life": {
			now: renewal(leaf.cert), ca: caData(ca, rotated), leaf: leafData(leaf), wantLeaf: "two thirds",
		},
		"an expired serving certificate": {
			now: leaf.cert.NotAfter, ca: caData(ca, rotated), leaf: leafData(leaf), wantLeaf: "it expired at",
		},
		"a serving certificate of an authority that nobody trusts": {
			now: rotated, ca: caData(ca, rotated), leaf: leafData(oldLeaf), wantLeaf: "no authority that is trusted",
		},
		"a rotation that an administrator requests": {
			now: t0.Add(day), ca: caData(old, t0), requested: "1", wantCA: "annotation policygate.io/rotate",
		},
		"a second request": {
			now: t0.Add(day), ca: with(caData(old, t0), keyRotated, "1"), requested: "2", wantCA: "annotation policygate.io/rotate",
		},
		"a request that was met": {
			now: rotated.Add(2 * day), ca: with(caData(ca, rotated), keyRotated, "1"), leaf: leafData(leaf), requested: "1",
		},
		"a request that was met and taken back": {
			now: rotated.Add(2 * day), ca: with(caData(ca, rotated), keyRotated, "1"), leaf: leafData(leaf),
		},
		"a request waits while a rotation is under way": {
			now: rotated.Add(day - time.Second), ca: caData(ca, rotated, old), leaf: leafData(oldLeaf), requested: "1",
			wantPrevious: []*pair{old},
		},
		"a serving certificate that lacks a name": {
			now: t0, ca: caData(old, t0), leaf: leafData(leafAt(t, old, t0, "policygate-webhook.policygate-system.svc")),
			wantLeaf: "not for the name policygate-webhook.policygate-system.svc.cluster.local",
		},
		"a serving certificate without its key": {
			now: t0, ca: caData(old, t0), leaf: map[string][]byte{keyTLSCert: oldLeaf.certPEM},
			wantLeaf: "failed to find any PEM data in key",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			o := testOptions()
			m := readMaterial(tc.ca, tc.leaf, tc.bundle)
			why := m.authorityDue(tc.now, tc.requested)
			if (why == "") != (tc.wantCA == "") || !strings.Contains(why, tc.wantCA) {
				t.Errorf("a new authority is due because %q, want %q", why, tc.wantCA)
			}
			m = m.prune(tc.now, o.Overlap)
			want := make([]string, 0)
			for _, p := range tc.wantPrevious {
				want = append(want, string(p.certPEM))
			}
			got := make([]string, 0)
			for _, c := range m.previous {
				got = append(got, string(encodeBundle([]*x509.Certificate{c})))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("former authorities (-want +got):\n%s", diff)
			}
			if why != "" {
				return
			}
			why = m.leafDue(tc.now, o.DNSNames, o.Overlap)
			if (why == "") != (tc.wantLeaf == "") || !strings.Contains(why, tc.wantLeaf) {
				t.Errorf("a new serving certificate is due because %q, want %q", why, tc.wantLeaf)
			}
		})
	}
}

func TestNext(t *testing.T) {
	t0 := epoch()
	old, ca := authorityAt(t, t0), authorityAt(t, t0.Add(100*day))
	tests := map[string]struct {
		m    material
		now  time.Time
		want time.Duration
	}{
		"the serving certificate's renewal": {
			m:   material{ca: old, leaf: leafAt(t, old, t0), published: t0},
			now: t0.Add(day), want: 59 * day,
		},
		"the day on which a new authority may sign": {
			m: material{
				ca: ca, leaf: leafAt(t, old, t0.Add(99*day)), published: t0.Add(100 * day),
				previous: []*x509.Certificate{old.cert},
			},
			now: t0.Add(101*day - time.Hour), want: time.Hour,
		},
		"the day on which a former authority may go": {
			m: material{
				ca: ca, leaf: leafAt(t, ca, t0.Add(101*day)), published: t0.Add(100 * day),
				previous: []*x509.Certificate{old.cert},
			},
			now: t0.Add(102*day - time.Hour), want: time.Hour,
		},
		"what is due already is not asked for without pause": {
			m: material{ca: old, leaf: leafAt(t, old, t0), published: t0}, now: t0.Add(80 * day), want: time.Second,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := tc.m.next(tc.now, day); got != tc.want {
				t.Errorf("next = %s, want %s", got, tc.want)
			}
		})
	}
}

func TestOptionsValidate(t *testing.T) {
	if err := testOptions().Validate(); err != nil {
		t.Errorf("the defaults are not valid: %v", err)
	}
	tests := map[string]struct {
		edit func(*Options)
		want string
	}{
		"no namespace":             {func(o *Options) { o.Namespace = "" }, "namespace is empty"},
		"no webhook configuration": {func(o *Options) { o.WebhookConfiguration = "" }, "webhook configuration is empty"},
		"no names":                 {func(o *Options) { o.DNSNames = nil }, "DNS names are empty"},
		"no overlap":               {func(o *Options) { o.Overlap = 0 }, "overlap 0s"},
		"an overlap that a serving certificate may not outlive": {
			func(o *Options) { o.Overlap = o.LeafLife / 3 }, "overlap 720h0m0s",
		},
		"an authority that lives no longer than what it signs": {
			func(o *Options) { o.CALife = o.LeafLife }, "life 2160h0m0s of the authority",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			o := testOptions()
			tc.edit(&o)
			if err := o.Validate(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Validate() = %v, want an error that says %q", err, tc.want)
			}
		})
	}
}

func FuzzReadMaterial(f *testing.F) {
	ca, err := newAuthority(epoch(), 100*day)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ca.certPEM, ca.keyPEM, ca.certPEM, string(ca.certPEM))
	f.Add([]byte("-----BEGIN CERTIFICATE-----"), []byte(nil), []byte("x"), "")
	f.Fuzz(func(t *testing.T, cert, key, previous []byte, bundle string) {
		data := map[string][]byte{keyCert: cert, keyKey: key, keyPrevious: previous, keyPublished: previous}
		m := readMaterial(data, map[string][]byte{keyTLSCert: cert, keyTLSKey: key}, bundle)
		if m.ca == nil && m.authorityDue(epoch(), "") == "" {
			t.Error("no authority, and none is due")
		}
		if m.ca != nil && !m.ca.cert.IsCA {
			t.Error("took what is no authority for one")
		}
	})
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"crypto/x509"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	clocktesting "k8s.io/utils/clock/testing"
)

// An hour is what a wrong zone makes, and what is left between two machines
// whose clocks are wrong in opposite ways.
func TestAClockThatIsSetByAnHourMakesNothingDue(t *testing.T) {
	o := testOptions()
	clk := clocktesting.NewFakePassiveClock(epoch())
	ca := authorityAt(t, clk.Now())
	former := authorityAt(t, clk.Now().Add(-1300*day))
	signedBy := func(leafOf *pair) material {
		return material{ca: ca, leaf: leafAt(t, leafOf, epoch()), published: epoch(), previous: []*x509.Certificate{former.cert}}
	}
	for name, m := range map[string]struct {
		material
		previous int
	}{
		"all is signed by the present authority": {signedBy(ca), 1},
		"the former authority signed the leaf":   {signedBy(former), 1},
	} {
		t.Run(name, func(t *testing.T) {
			serving := NewServing(clk)
			if err := serving.load(&corev1.Secret{Data: leafData(m.leaf)}); err != nil {
				t.Fatal(err)
			}
			for _, step := range []time.Duration{time.Hour, -time.Hour, 0, -time.Hour, time.Hour} {
				clk.SetTime(epoch().Add(step))
				if why := m.authorityDue(clk.Now(), ""); why != "" {
					t.Errorf("%s: an authority is due: %s", step, why)
				}
				if why := m.leafDue(clk.Now(), o.DNSNames, o.Overlap); why != "" {
					t.Errorf("%s: a leaf is due: %s", step, why)
				}
				if got := len(m.prune(clk.Now(), o.Overlap).previous); got != m.previous {
					t.Errorf("%s: %d former authorities are trusted, want %d", step, got, m.previous)
				}
				if err := serving.Ready(nil); err != nil {
					t.Errorf("%s: not ready: %v", step, err)
				}
				if got := m.next(clk.Now(), o.Overlap); got < time.Second || got > o.Overlap+time.Hour {
					t.Errorf("%s: next after %s", step, got)
				}
				roots := x509.NewCertPool()
				for _, c := range m.trusted() {
					roots.AddCert(c)
				}
				// A client's clock is not the manager's.
				if _, err := m.leaf.cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: o.DNSNames[0], CurrentTime: clk.Now()}); err != nil {
					t.Errorf("%s: a client refuses the leaf: %v", step, err)
				}
			}
		})
	}
}

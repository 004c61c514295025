// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

func TestStale(t *testing.T) {
	release := func(change func(*hubv1.Release)) *hubv1.Release {
		r := &hubv1.Release{Subject: assign("u", 1).GetSubject(), Basis: assign("u", 1).GetBasis()}
		change(r)
		return r
	}
	for name, tc := range map[string]struct {
		release *hubv1.Release
		want    bool
	}{
		"the same basis is not stale":         {release: release(func(*hubv1.Release) {})},
		"a newer basis is not stale":          {release: release(func(r *hubv1.Release) { r.Basis.NetworkPolicies++ })},
		"older policies are stale":            {release: release(func(r *hubv1.Release) { r.Basis.NetworkPolicies-- }), want: true},
		"older namespaces are stale":          {release: release(func(r *hubv1.Release) { r.Basis.Namespaces-- }), want: true},
		"an older pod is stale":               {release: release(func(r *hubv1.Release) { r.Basis.Pod-- }), want: true},
		"newer in one and older in the other": {release: release(func(r *hubv1.Release) { r.Basis.Pod++; r.Basis.Namespaces-- }), want: true},
		"no basis is stale":                   {release: release(func(r *hubv1.Release) { r.Basis = nil }), want: true},
		"another address is stale":            {release: release(func(r *hubv1.Release) { r.Subject.Ips = []string{"10.0.0.2"} }), want: true},
		"another uid is not known":            {release: release(func(r *hubv1.Release) { r.Subject.Uid = "v" })},
		"an empty message":                    {release: &hubv1.Release{}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConfirmer(&dataplane{}, &outbox{})
			must(t, give(c, replicaA, assign("u", 1)))
			older := assign("u", 1)
			older.Basis = &hubv1.Basis{NetworkPolicies: 1, Namespaces: 1, Pod: 1}
			must(t, give(c, replicaB, older))
			if stale, reason := c.Stale(tc.release); stale != tc.want || (reason != "") != tc.want {
				t.Errorf("Stale = %v, %q, want %v", stale, reason, tc.want)
			}
		})
	}
}

func TestHolds(t *testing.T) {
	for name, tc := range map[string]struct {
		// before is done while a's and b's assignments have been confirmed.
		before func(t *testing.T, c *Confirmer, d *dataplane)
		want   bool
		reason string
		// retracted is how many retractions are reported.
		retracted int
	}{
		"what was confirmed and still holds": {
			before: func(*testing.T, *Confirmer, *dataplane) {},
			want:   true,
		},
		"what does not hold any more is retracted to both": {
			before: func(_ *testing.T, _ *Confirmer, d *dataplane) {
				d.set(func(d *dataplane) { d.verdicts[client] = flow.Denied })
			},
			reason: "denied (rule)", retracted: 2,
		},
		"what cannot be looked at is retracted": {
			before: func(_ *testing.T, _ *Confirmer, d *dataplane) {
				d.set(func(d *dataplane) { d.err = errors.New("busy") })
			},
			reason: "the dataplane could not be read: busy", retracted: 2,
		},
		"what was withdrawn by all": {
			before: func(_ *testing.T, c *Confirmer, _ *dataplane) {
				c.Withdraw(replicaA, "u")
				c.Withdraw(replicaB, "u")
			},
			reason: "not assigned as a subject of this node",
		},
		"what was withdrawn by one": {
			before: func(_ *testing.T, c *Confirmer, _ *dataplane) { c.Withdraw(replicaB, "u") },
			want:   true,
		},
		"what one replica assigned otherwise and is not confirmed yet": {
			before: func(t *testing.T, c *Confirmer, _ *dataplane) {
				other := assign("u", 9)
				other.Expectations = append(other.Expectations, want(tcp("10.0.0.3", "10.0.0.9"), flow.Denied))
				must(t, give(c, replicaB, other))
			},
			reason: "inconclusive (rule)", retracted: 2,
		},
		"what one replica assigned otherwise from an older state": {
			before: func(t *testing.T, c *Confirmer, _ *dataplane) {
				other := assign("u", 9)
				other.Basis = &hubv1.Basis{NetworkPolicies: 4, Namespaces: 5, Pod: 5}
				other.Expectations = append(other.Expectations, want(tcp("10.0.0.3", "10.0.0.9"), flow.Denied))
				must(t, give(c, replicaB, other))
			},
			want: true,
		},
		"what is another node's": {
			before: func(t *testing.T, c *Confirmer, _ *dataplane) {
				for _, replica := range []Source{replicaA, replicaB} {
					other := assign("u", 9)
					other.OwnNode = false
					must(t, give(c, replica, other))
				}
			},
			reason: "not assigned as a subject of this node",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, out := &dataplane{verdicts: programmed()}, &outbox{}
				c := newConfirmer(d, out)
				must(t, give(c, replicaA, assign("u", 1)))
				must(t, give(c, replicaB, assign("u", 1)))
				c.look(t.Context())
				pass(secondLook)
				c.look(t.Context())
				if got := out.taken(); len(got) != 2 || !got[0].Report.GetConfirmed() {
					t.Fatalf("reports %v, want two that confirm", got)
				}
				pass(secondLook)
				tc.before(t, c, d)
				holds, reason := c.Holds(t.Context(), "u")
				if holds != tc.want || reason != tc.reason {
					t.Errorf("Holds = %v, %q, want %v, %q", holds, reason, tc.want, tc.reason)
				}
				retracted := 0
				for _, s := range out.taken() {
					if !s.Report.GetConfirmed() {
						retracted++
					}
				}
				if retracted != tc.retracted {
					t.Errorf("%d retractions reported, want %d", retracted, tc.retracted)
				}
			})
		})
	}
}

// A replica that is gone renews nothing: what it asked may never hold again.
func TestAReleaseDoesNotWaitForWhatAReplicaAskedThatIsGone(t *testing.T) {
	for name, tc := range map[string]struct {
		ended []Source
		want  bool
		stale bool
	}{
		"both are there":                         {},
		"the one that asks for more is gone":     {ended: []Source{replicaB}, want: true},
		"the other one is gone":                  {ended: []Source{replicaA}},
		"both are gone":                          {ended: []Source{replicaA, replicaB}},
		"an earlier session of it is over":       {ended: []Source{{Replica: "b", Session: 1}}},
		"older releases than its own are stale":  {ended: []Source{replicaB}, want: true, stale: true},
		"newer releases than its own are not so": {ended: []Source{replicaB}, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &dataplane{verdicts: programmed()}
				c := newConfirmer(d, &outbox{})
				more := assign("u", 9)
				more.Expectations = append(more.Expectations, want(tcp("10.0.0.3", "10.0.0.9"), flow.Denied))
				if tc.stale {
					more.Basis = &hubv1.Basis{NetworkPolicies: 99, Namespaces: 5, Pod: 5}
				}
				must(t, give(c, replicaA, assign("u", 1)))
				must(t, give(c, replicaB, more))
				for _, session := range tc.ended {
					c.Ended(session)
				}
				c.look(t.Context())
				pass(secondLook)
				c.look(t.Context())
				if holds, reason := c.Holds(t.Context(), "u"); holds != tc.want {
					t.Errorf("Holds = %v (%s), want %v", holds, reason, tc.want)
				}
				r := &hubv1.Release{Subject: assign("u", 1).GetSubject(), Basis: assign("u", 1).GetBasis()}
				if stale, reason := c.Stale(r); stale != tc.stale {
					t.Errorf("Stale = %v (%s), want %v", stale, reason, tc.stale)
				}
			})
		})
	}
}

func TestAfterARefusedReleaseTheSubjectIsConfirmedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, assign("u", 1)))
		pass(time.Second)
		out.taken()
		// b's content differs and needs its two looks.
		other := assign("u", 1)
		other.Settle = true
		must(t, give(c, replicaB, other))
		if holds, _ := c.Holds(t.Context(), "u"); holds {
			t.Fatal("holds although b's content was never looked at twice")
		}
		pass(15 * time.Second)
		last := map[string]bool{}
		refused := false
		for _, s := range out.taken() {
			last[s.To.Replica] = s.Report.GetConfirmed()
			refused = refused || (s.To == replicaA && !s.Report.GetConfirmed())
		}
		if !refused || !last["a"] || !last["b"] {
			t.Errorf("a was refused: %v, confirmed in the end: %v, want true and both", refused, last)
		}
	})
}

func TestReleasesThatWaitShareOneLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dataplane{verdicts: programmed(), block: make(chan struct{})}
		c := newConfirmer(d, &outbox{})
		for _, uid := range []string{"u", "v", "w"} {
			must(t, give(c, replicaA, assign(uid, 1)))
		}
		var wg sync.WaitGroup
		wg.Go(func() { c.Holds(t.Context(), "u") })
		synctest.Wait() // the first look is in flight
		for _, uid := range []string{"u", "v", "w"} {
			wg.Go(func() { c.Holds(t.Context(), uid) })
		}
		synctest.Wait()
		close(d.block)
		wg.Wait()
		if d.taken() != 2 {
			t.Errorf("%d looks, want the one in flight and one more for all that waited", d.taken())
		}
	})
}

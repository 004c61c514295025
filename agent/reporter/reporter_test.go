// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package reporter

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
)

// subjects is a Subjects whose answers the test sets.
type subjects struct {
	mu    sync.Mutex
	stale []bool // for each call; the last stands for all later ones
	holds bool
	asked int
}

func (s *subjects) Stale(*hubv1.Release) (bool, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stale := s.stale[0]
	if len(s.stale) > 1 {
		s.stale = s.stale[1:]
	}
	return stale, "older"
}

func (s *subjects) Holds(context.Context, string) (bool, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return s.holds, "denied"
}

func (s *subjects) set(holds bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds = holds
}

// pods is a Pods that fails with errs, one after the other, and the last
// for ever.
type pods struct {
	mu      sync.Mutex
	errs    []error
	patches []string
	at      []time.Time
}

func (p *pods) PatchStatus(_ context.Context, namespace, name string, patch []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.patches = append(p.patches, namespace+"/"+name+" "+string(patch))
	p.at = append(p.at, time.Now())
	err := p.errs[0]
	if len(p.errs) > 1 {
		p.errs = p.errs[1:]
	}
	return err
}

func (p *pods) taken() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.patches
}

func release() *hubv1.Release {
	return &hubv1.Release{
		Subject: &hubv1.Subject{
			Uid: "u-1", Namespace: "jobs", Name: "backup", Ips: []string{"fd00::5", "10.0.0.5"}, Generation: 3,
		},
		Reason: v1alpha1.ReasonConfirmed, Message: "on 2 nodes in 0.8 s",
	}
}

func start(t *testing.T, s Subjects, p Pods) *Reporter {
	t.Helper()
	r := New(Options{
		Subjects: s, Pods: p, ConditionType: v1alpha1.ConditionProgrammed, BootID: "b-1",
		Clock: clock.RealClock{}, Log: logr.Discard(),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return r
}

func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

var pod = schema.GroupResource{Resource: "pods"}

func invalid(path string) error {
	return apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "backup", field.ErrorList{
		field.Invalid(field.NewPath(path), "x", "field is immutable"),
	})
}

func TestPatchOf(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	for name, tc := range map[string]struct {
		change func(*hubv1.Release)
		want   string
		err    string
	}{
		"condition and annotation in one, with the UID": {
			change: func(*hubv1.Release) {},
			want: `{"metadata":{"uid":"u-1","annotations":{"policygate.io/programmed":"uid=u-1;ips=10.0.0.5,fd00::5;boot=b-1"}},` +
				`"status":{"conditions":[{"type":"policygate.io/PolicyProgrammed","status":"True","reason":"Confirmed",` +
				`"message":"on 2 nodes in 0.8 s","lastTransitionTime":"2026-01-02T03:04:05Z","observedGeneration":3}]}}`,
		},
		"an unknown generation is left out, a message made printable": {
			change: func(r *hubv1.Release) { r.Subject.Generation = 0; r.Message = "a\nb\u00e9" },
			want: `{"metadata":{"uid":"u-1","annotations":{"policygate.io/programmed":"uid=u-1;ips=10.0.0.5,fd00::5;boot=b-1"}},` +
				`"status":{"conditions":[{"type":"policygate.io/PolicyProgrammed","status":"True","reason":"Confirmed",` +
				`"message":"a?b?","lastTransitionTime":"2026-01-02T03:04:05Z"}]}}`,
		},
		"no name":          {change: func(r *hubv1.Release) { r.Subject.Name = "" }, err: `subject "" in namespace "jobs": want both names`},
		"no uid":           {change: func(r *hubv1.Release) { r.Subject.Uid = "" }, err: "pod UID is empty"},
		"no address":       {change: func(r *hubv1.Release) { r.Subject.Ips = nil }, err: "pod has no address"},
		"a broken address": {change: func(r *hubv1.Release) { r.Subject.Ips = []string{"10.0.0"} }, err: `pod address "10.0.0": want an IPv4 or IPv6 address`},
		"no reason":        {change: func(r *hubv1.Release) { r.Reason = "" }, err: "reason is empty: want one for the condition"},
		"no subject":       {change: func(r *hubv1.Release) { r.Subject = nil }, err: `subject "" in namespace "": want both names`},
	} {
		t.Run(name, func(t *testing.T) {
			r := release()
			tc.change(r)
			got, _, err := patchOf(r, v1alpha1.ConditionProgrammed, "b-1", now)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if text != tc.err {
				t.Errorf("error %q, want %q", text, tc.err)
			}
			if diff := cmp.Diff(tc.want, string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPatchOfBoundsTheMessage(t *testing.T) {
	r := release()
	r.Message = strings.Repeat("x", 5000)
	data, _, err := patchOf(r, v1alpha1.ConditionProgrammed, "b-1", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	var patch statusPatch
	if err := json.Unmarshal(data, &patch); err != nil {
		t.Fatal(err)
	}
	if n := len(patch.Status.Conditions[0].Message); n != maxMessage {
		t.Errorf("message of %d bytes, want %d", n, maxMessage)
	}
}

func TestOutcomeOf(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want outcome
	}{
		"no error":                         {want: written},
		"no such Pod":                      {err: apierrors.NewNotFound(pod, "backup"), want: gone},
		"another UID":                      {err: invalid("metadata.uid"), want: gone},
		"an admission policy that invalid": {err: invalid("status"), want: refused},
		"invalid without details":          {err: &apierrors.StatusError{ErrStatus: metav1.Status{Code: 422, Reason: metav1.StatusReasonInvalid}}, want: refused},
		"forbidden":                        {err: apierrors.NewForbidden(pod, "backup", errors.New("policy")), want: refused},
		"unauthorized":                     {err: apierrors.NewUnauthorized("x"), want: refused},
		"bad request":                      {err: apierrors.NewBadRequest("x"), want: refused},
		"a conflict":                       {err: apierrors.NewConflict(pod, "backup", errors.New("x")), want: failed},
		"an internal error":                {err: apierrors.NewInternalError(errors.New("x")), want: failed},
		"too many requests":                {err: apierrors.NewTooManyRequests("x", 1), want: failed},
		"the network":                      {err: errors.New("connection refused"), want: failed},
	} {
		t.Run(name, func(t *testing.T) {
			if got := outcomeOf(tc.err); got != tc.want {
				t.Errorf("outcomeOf(%v) = %v, want %v", tc.err, got, tc.want)
			}
		})
	}
}

func TestRelease(t *testing.T) {
	for name, tc := range map[string]struct {
		subjects *subjects
		errs     []error
		within   time.Duration
		patches  int
		asked    int
	}{
		"one that holds is written once": {
			subjects: &subjects{stale: []bool{false}, holds: true},
			errs:     []error{nil}, within: time.Hour, patches: 1, asked: 1,
		},
		"a stale one is dropped": {
			subjects: &subjects{stale: []bool{true}, holds: true},
			errs:     []error{nil}, within: time.Hour, patches: 0, asked: 0,
		},
		"one that turns stale during the look is dropped": {
			subjects: &subjects{stale: []bool{false, true}, holds: true},
			errs:     []error{nil}, within: time.Hour, patches: 0, asked: 1,
		},
		"one that does not hold any more is dropped": {
			subjects: &subjects{stale: []bool{false}},
			errs:     []error{nil}, within: time.Hour, patches: 0, asked: 1,
		},
		"a Pod that is gone is dropped": {
			subjects: &subjects{stale: []bool{false}, holds: true},
			errs:     []error{apierrors.NewNotFound(pod, "backup")}, within: time.Hour, patches: 1, asked: 1,
		},
		"another Pod of the name is dropped": {
			subjects: &subjects{stale: []bool{false}, holds: true},
			errs:     []error{invalid("metadata.uid")}, within: time.Hour, patches: 1, asked: 1,
		},
		"a failure is tried again, and looked at again": {
			subjects: &subjects{stale: []bool{false}, holds: true},
			errs:     []error{errors.New("reset"), apierrors.NewConflict(pod, "backup", errors.New("x")), nil},
			within:   time.Second, patches: 3, asked: 3,
		},
		"a refusal is tried again slowly": {
			subjects: &subjects{stale: []bool{false}, holds: true},
			errs:     []error{apierrors.NewForbidden(pod, "backup", errors.New("policy"))},
			within:   100 * time.Second, patches: 4, asked: 4,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pods{errs: tc.errs}
				r := start(t, tc.subjects, p)
				r.Release(release())
				pass(tc.within)
				if got := len(p.taken()); got != tc.patches {
					t.Errorf("%d patches, want %d", got, tc.patches)
				}
				if tc.subjects.asked != tc.asked {
					t.Errorf("looked %d times, want %d", tc.subjects.asked, tc.asked)
				}
			})
		})
	}
}

func TestRetriesEndWhenTheSubjectIsWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := &subjects{stale: []bool{false}, holds: true}, &pods{errs: []error{errors.New("unreachable")}}
		r := start(t, s, p)
		r.Release(release())
		pass(time.Minute)
		before := len(p.taken())
		if before < 8 || before > 20 {
			t.Errorf("%d patches in a minute, want a backoff up to 10 s", before)
		}
		s.set(false)
		pass(time.Hour)
		if got := len(p.taken()); got != before {
			t.Errorf("%d patches after the withdrawal", got-before)
		}
	})
}

func TestReleasesOfTwoReplicasSendOnePatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := &subjects{stale: []bool{false}, holds: true}, &pods{errs: []error{nil}}
		r := start(t, s, p)
		r.Release(release())
		pass(time.Second)
		second := release()
		second.Message = "on 2 nodes in 0.9 s"
		r.Release(second)
		partial := release()
		partial.Reason = v1alpha1.ReasonEngineDeviates
		pass(time.Second)
		r.Release(partial)
		pass(time.Second)
		if got := p.taken(); len(got) != 1 {
			t.Fatalf("patches %q, want one: the others are echoes", got)
		}
		r.Release(second)
		pass(echoWithin)
		if got := p.taken(); len(got) != 2 || got[0] != got[1] {
			t.Fatalf("patches %q, want the same again: the gate may have been shut in between", got)
		}
		r.Release(partial)
		pass(replicasWithin)
		r.Release(release())
		pass(time.Second)
		if got := p.taken(); len(got) != 4 || got[2] == got[1] || got[3] == got[1] {
			t.Errorf("patches %q, want another one for another reason, and one later", got)
		}
	})
}

// A kubelet that missed the annotation is woken by another value of it.
func TestOnlyAGateThatThisAgentOpenedIsWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := &subjects{stale: []bool{false}, holds: true}, &pods{errs: []error{nil}}
		r := start(t, s, p)
		again := func(n uint32) {
			next := release()
			next.Again = n
			r.Release(next)
			pass(time.Second)
		}
		again(1)
		if got := p.taken(); len(got) != 0 {
			t.Fatalf("a gate that nobody opened was written: %q", got)
		}
		r.Release(release())
		pass(time.Second)
		// It is open: the subject is withdrawn, and nothing holds any more.
		s.set(false)
		again(1)
		again(1) // of the other replica
		again(2)
		got := p.taken()
		if len(got) != 3 || !strings.Contains(got[1], ";again=1") || !strings.Contains(got[2], ";again=2") {
			t.Fatalf("patches %q, want one that opens and two with another annotation", got)
		}
		pass(rememberFor)
		again(3)
		if got := p.taken(); len(got) != 3 {
			t.Errorf("a gate that was opened long ago was written again: %q", got[3:])
		}
	})
}

// A new sandbox can have the addresses of the former one: its hold waits for
// another value than the one that stands, which is asked for as of the first.
func TestAGateThatIsOpenedAnewIsWrittenAgainAsAnyOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := &subjects{stale: []bool{false}, holds: true}, &pods{errs: []error{nil}}
		r := start(t, s, p)
		again := release()
		again.Again = 1
		for round := range 2 {
			r.Release(release())
			pass(time.Second)
			r.Release(again)
			pass(rememberFor - 10*time.Second)
			got := p.taken()
			if len(got) != 2*round+2 || !strings.Contains(got[2*round+1], ";again=1") {
				t.Fatalf("patches %q, want one that opens and one with another annotation each time", got)
			}
			if at := transition(t, got[2*round]); transition(t, got[2*round+1]) != at {
				t.Errorf("waking the kubelet changed since when the gate is open, from %s: %s", at, got[2*round+1])
			}
		}
	})
}

// transition returns since when the condition of a patch holds.
func transition(t *testing.T, patch string) string {
	t.Helper()
	_, text, _ := strings.Cut(patch, " ")
	var body statusPatch
	if err := json.Unmarshal([]byte(text), &body); err != nil || len(body.Status.Conditions) != 1 {
		t.Fatalf("patch %q: %v", patch, err)
	}
	return body.Status.Conditions[0].LastTransitionTime.String()
}

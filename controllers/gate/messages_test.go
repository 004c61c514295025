// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/policygate/policygate/api/v1alpha1"
)

// fakePatcher records patches and answers with errs, in turn.
type fakePatcher struct {
	patches []string
	errs    []error
	during  func()
}

func (p *fakePatcher) PatchStatus(_ context.Context, namespace, name string, patch []byte) error {
	p.patches = append(p.patches, namespace+"/"+name+" "+string(patch))
	if p.during != nil {
		p.during()
	}
	if len(p.errs) == 0 {
		return nil
	}
	err := p.errs[0]
	p.errs = p.errs[1:]
	return err
}

func newMessages(p StatusPatcher) (*Messages, *clocktesting.FakeClock) {
	clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
	return NewMessages(p, nil, v1alpha1.ConditionProgrammed, clk, logr.Discard()), clk
}

func message(uid, text string) Message {
	return Message{
		UID: types.UID(uid), Namespace: "shop", Name: uid, ResourceVersion: "7",
		Reason: v1alpha1.ReasonWaiting, Text: text,
	}
}

// turn writes the message whose turn it is, and returns its text or "".
func turn(m *Messages, clk *clocktesting.FakeClock) string {
	msg, _ := m.next(clk.Now())
	if msg == nil {
		return ""
	}
	m.write(context.Background(), *msg)
	return msg.Text
}

func TestMessagesOfOnePodKeepTheirDistance(t *testing.T) {
	m, clk := newMessages(&fakePatcher{})
	m.Tell(message("p", "one"))
	if got := turn(m, clk); got != "one" {
		t.Fatalf("wrote %q, want the first at once", got)
	}
	m.Tell(message("p", "two"))
	m.Tell(message("p", "three"))
	clk.Step(messageInterval - 1)
	if got := turn(m, clk); got != "" {
		t.Fatalf("wrote %q within %s of the first", got, messageInterval)
	}
	clk.Step(1)
	if got := turn(m, clk); got != "three" {
		t.Fatalf("wrote %q, want the latest", got)
	}
	if got := turn(m, clk); got != "" {
		t.Fatalf("wrote %q, want nothing twice", got)
	}
}

func TestAnUrgentMessageIsWrittenAtOnceAndOnce(t *testing.T) {
	m, clk := newMessages(&fakePatcher{})
	m.Tell(message("p", "one"))
	turn(m, clk)
	urgent := message("p", "timed out")
	urgent.Reason, urgent.Urgent = v1alpha1.ReasonTimeout, true
	m.Tell(urgent)
	m.Tell(message("a", "not urgent"))
	if got := turn(m, clk); got != "timed out" {
		t.Fatalf("wrote %q, want the urgent one first", got)
	}
	turn(m, clk)
	urgent.Text = "timed out, other words"
	m.Tell(urgent)
	if got := turn(m, clk); got != "" {
		t.Fatalf("wrote %q: other words of the same reason are not urgent", got)
	}
}

func TestMessagesInAllAreLimited(t *testing.T) {
	m, clk := newMessages(&fakePatcher{})
	for i := range 3 * messagesPerSecond {
		m.Tell(message(fmt.Sprint(i), "waiting"))
	}
	written := 0
	for turn(m, clk) != "" {
		written++
	}
	if written != messagesPerSecond {
		t.Errorf("%d were written at once, want %d", written, messagesPerSecond)
	}
	clk.Step(time.Second)
	for turn(m, clk) != "" {
		written++
	}
	if written != 2*messagesPerSecond {
		t.Errorf("%d were written within a second, want %d", written, 2*messagesPerSecond)
	}
}

func TestWhatThePodShowsAlreadyIsNotWritten(t *testing.T) {
	m, clk := newMessages(&fakePatcher{})
	m.Tell(message("p", "old"))
	shown := message("p", "new")
	shown.Current = corev1.PodCondition{Status: corev1.ConditionFalse, Reason: shown.Reason, Message: "new"}
	m.Tell(shown)
	if got := turn(m, clk); got != "" {
		t.Errorf("wrote %q", got)
	}
	m.Tell(message("p", "taken back"))
	m.Hush("p")
	if got := turn(m, clk); got != "" {
		t.Errorf("wrote %q", got)
	}
}

func TestAFailedWrite(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	conflict := apierrors.NewConflict(pods, "p", errors.New("changed"))
	cases := map[string]struct {
		err        error
		newer      bool
		wantAtOnce string
		want       string
	}{
		"is tried again after a second":                  {err: errors.New("down"), want: "one"},
		"is tried again after a conflict":                {err: conflict, want: "one"},
		"gives way to a newer message at once":           {err: conflict, newer: true, wantAtOnce: "newer"},
		"is not tried again for a Pod that is gone":      {err: apierrors.NewNotFound(pods, "p")},
		"is not tried again for another Pod of its name": {err: apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "p", nil)},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := &fakePatcher{errs: []error{tc.err}}
			m, clk := newMessages(p)
			if tc.newer {
				p.during = func() { p.during = nil; m.Tell(message("p", "newer")) }
			}
			m.Tell(message("p", "one"))
			turn(m, clk)
			if got := turn(m, clk); got != tc.wantAtOnce {
				t.Errorf("wrote %q at once, want %q", got, tc.wantAtOnce)
			}
			clk.Step(retryAfter)
			if got := turn(m, clk); got != tc.want {
				t.Errorf("wrote %q after a second, want %q", got, tc.want)
			}
		})
	}
}

func TestThePatchIsFalseWithPreconditions(t *testing.T) {
	then, now := time.Unix(500, 0), time.Unix(1000, 0)
	cases := map[string]struct {
		current        corev1.PodCondition
		wantTransition time.Time
	}{
		"the first message is a transition":         {corev1.PodCondition{}, now},
		"a gate that shuts is a transition":         {corev1.PodCondition{Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(then)}, now},
		"another message of a shut gate is not one": {corev1.PodCondition{Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(then)}, then},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			msg := message("p", "waiting for n7")
			msg.Generation, msg.Current = 3, tc.current
			body, err := msg.patch(v1alpha1.ConditionProgrammed, now)
			if err != nil {
				t.Fatal(err)
			}
			var got corev1.Pod
			if err := json.Unmarshal(body, &got); err != nil {
				t.Fatal(err)
			}
			want := corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{UID: "p", ResourceVersion: "7"},
				Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{
					Type: v1alpha1.ConditionProgrammed, Status: corev1.ConditionFalse, ObservedGeneration: 3,
					Reason: v1alpha1.ReasonWaiting, Message: "waiting for n7",
					LastTransitionTime: metav1.NewTime(tc.wantTransition),
				}}},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("patch (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMessagesAreWrittenWhileStartRuns(t *testing.T) {
	written := make(chan string, 1)
	m, _ := newMessages(patcherFunc(func(namespace, name string) error {
		written <- namespace + "/" + name
		return nil
	}))
	m.Tell(message("p", "one"))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Start(ctx) }()
	select {
	case got := <-written:
		if got != "shop/p" {
			t.Errorf("wrote %s, want shop/p", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing is written")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Start: %v", err)
	}
}

type patcherFunc func(namespace, name string) error

func (f patcherFunc) PatchStatus(_ context.Context, namespace, name string, _ []byte) error {
	return f(namespace, name)
}

func TestAReplicaThatNoLongerLeadsBeginsNoMessage(t *testing.T) {
	p := &fakePatcher{}
	m, _ := newMessages(p)
	m.Tell(message("p", "one"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Start(ctx); err != nil {
		t.Errorf("Start: %v, want nil when its context ends", err)
	}
	if len(p.patches) > 0 {
		t.Errorf("wrote %q after the context ended", p.patches)
	}
}

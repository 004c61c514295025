// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/controllers/gate"
	"github.com/policygate/policygate/controllers/ungated"
)

func TestAWarningBecomesAnEvent(t *testing.T) {
	cases := map[string]struct {
		object        corev1.ObjectReference
		wantNamespace string
	}{
		"of a Pod, in its namespace":      {corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "shop", Name: "p", UID: "1"}, "shop"},
		"of a Node, where all Nodes' are": {corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: "n1", UID: "n1"}, "default"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
			defer broadcaster.Shutdown()
			if err := broadcaster.StartRecordingToSinkWithContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			written, err := client.EventsV1().Events(metav1.NamespaceAll).Watch(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer written.Stop()
			recorder := eventRecorder{broadcaster.NewRecorder(scheme.Scheme, reportingController)}
			recorder.Warn(gate.Warning{Object: tc.object, Reason: "Timeout", Note: "100% late: %s"})
			select {
			case change := <-written.ResultChan():
				got, ok := change.Object.(*eventsv1.Event)
				if !ok {
					t.Fatalf("wrote %T", change.Object)
				}
				want := eventsv1.Event{
					TypeMeta:            got.TypeMeta,
					ObjectMeta:          metav1.ObjectMeta{Namespace: tc.wantNamespace, Name: got.Name, ManagedFields: got.ManagedFields},
					EventTime:           got.EventTime,
					ReportingController: "policygate.io/manager", ReportingInstance: got.ReportingInstance,
					Action: "Confirming", Reason: "Timeout", Regarding: tc.object, Note: "100% late: %s", Type: "Warning",
				}
				if diff := cmp.Diff(want, *got); diff != "" {
					t.Errorf("event (-want +got):\n%s", diff)
				}
			case <-time.After(10 * time.Second):
				t.Error("nothing was written")
			}
		})
	}
}

// recorded are the warnings that a recorder was given.
type recorded chan gate.Warning

func (r recorded) Warn(w gate.Warning) { r <- w }

func TestThePeopleOfAPodWithoutAGateAreTold(t *testing.T) {
	cases := map[string]struct {
		asks bool
		want string
	}{
		"that is in a labelled namespace": {false, "has the label policygate.io/inject=enabled: it was created while"},
		"that asks itself":                {true, "has the annotation policygate.io/inject: it was created while"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				told := make(recorded, 1)
				warnings := gate.NewWarnings(told, clock.RealClock{})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- warnings.Start(ctx) }()
				synctest.Wait()
				ungatedTeller{warnings}.TellUngated(ungated.Pod{Namespace: "shop", Name: "p", UID: "1", Asks: tc.asks})
				got := <-told
				want := corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "shop", Name: "p", UID: "1"}
				if got.Object != want || got.Reason != "Ungated" || !strings.Contains(got.Note, tc.want) {
					t.Errorf("warned of %+v, want one of Pod p that says %q", got, tc.want)
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

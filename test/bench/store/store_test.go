// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
)

func newPod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
}

func TestWatch(t *testing.T) {
	s := New(clocktesting.NewFakePassiveClock(time.Unix(1000, 0)))
	first := s.Create(newPod("a"))
	var got []string
	stop := s.Watch(func(e Event) {
		p := &corev1.Pod{}
		if err := p.Unmarshal(e.Data); err != nil {
			t.Errorf("data of %s: %v", e.Object.GetName(), err)
		}
		got = append(got, fmt.Sprintf("%s %s@%s deleted=%t phase=%s", e.Kind, p.Name, p.ResourceVersion, e.Deleted, p.Status.Phase))
	})
	key := types.NamespacedName{Namespace: "shop", Name: "a"}
	s.UpdatePod(key, first.GetUID(), func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning })
	s.UpdatePod(key, "another", func(*corev1.Pod) { t.Error("a Pod of another UID was changed") })
	s.Create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	s.Delete(Pods, key)
	s.Delete(Pods, key)
	stop()
	s.Create(newPod("b"))
	want := []string{
		"Pod a@1 deleted=false phase=",
		"Pod a@2 deleted=false phase=Running",
		"Namespace shop@3 deleted=false phase=",
		"Pod a@4 deleted=true phase=Running",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if got := s.List(Pods); len(got) != 1 || got[0].ResourceVersion != 5 {
		t.Errorf("list is %v: want one Pod at version 5", got)
	}
}

func TestPatchStatus(t *testing.T) {
	const open = `"status":{"conditions":[{"type":"Gate","status":"True"}]}`
	cases := map[string]struct {
		name, patch string
		fails       func(error) bool
		changed     bool
	}{
		"a condition and an annotation are written": {
			name: "a", changed: true,
			patch: `{"metadata":{"uid":"UID","resourceVersion":"1","annotations":{"k":"v"}},` + open + `}`,
		},
		"what is there already changes nothing": {
			name: "open", patch: `{` + open + `}`,
		},
		"another UID is invalid": {
			name: "a", patch: `{"metadata":{"uid":"other"},` + open + `}`, fails: apierrors.IsInvalid,
		},
		"an older version is a conflict": {
			name: "a", patch: `{"metadata":{"resourceVersion":"0"},` + open + `}`, fails: apierrors.IsConflict,
		},
		"a Pod that is not there is not found": {
			name: "b", patch: `{` + open + `}`, fails: apierrors.IsNotFound,
		},
		"what is no JSON is a bad request": {
			name: "a", patch: `{`, fails: apierrors.IsBadRequest,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := New(clocktesting.NewFakePassiveClock(time.Unix(1000, 0)))
			a := newPod("a")
			s.Create(a)
			a.UID = "UID"
			opened := newPod("open")
			opened.Status.Conditions = []corev1.PodCondition{{Type: "Gate", Status: corev1.ConditionTrue}}
			s.Create(opened)
			events := 0
			s.Watch(func(Event) { events++ })
			before := events
			changed, err := s.PatchStatus("shop", tc.name, []byte(tc.patch))
			if tc.fails != nil && !tc.fails(err) || tc.fails == nil && err != nil {
				t.Errorf("error is %v", err)
			}
			if changed != tc.changed || events-before != map[bool]int{true: 1}[tc.changed] {
				t.Errorf("changed is %t and %d were told: want %t", changed, events-before, tc.changed)
			}
		})
	}
}

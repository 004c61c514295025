// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/hub"
)

// listener is a hub's sink that remembers what it is told.
type listener struct{ heard []string }

func (l *listener) Connected(node string, h hub.Hello) {
	l.heard = append(l.heard, "connected "+node+" "+h.Version)
}
func (l *listener) Disconnected(node string) { l.heard = append(l.heard, "disconnected "+node) }
func (l *listener) Changed(node string, s hub.State) {
	l.heard = append(l.heard, "changed "+node+" "+s.Unsupported)
}

func (l *listener) Reported(node string, r *hubv1.Report) {
	l.heard = append(l.heard, "reported "+node+" "+r.GetUid())
}

func TestEverySinkHearsEverything(t *testing.T) {
	a, b := &listener{}, &listener{}
	all := sinks{a, b}
	all.Connected("n1", hub.Hello{Version: "v1"})
	all.Changed("n1", hub.State{Unsupported: "XDP"})
	all.Reported("n1", &hubv1.Report{Uid: "p"})
	all.Disconnected("n1")
	want := []string{"connected n1 v1", "changed n1 XDP", "reported n1 p", "disconnected n1"}
	for i, l := range []*listener{a, b} {
		if diff := cmp.Diff(want, l.heard); diff != "" {
			t.Errorf("%d heard (-want +got):\n%s", i, diff)
		}
	}
}

func TestAnObjectIsTrimmedToWhatIsRead(t *testing.T) {
	owners := []metav1.OwnerReference{{Kind: "NetworkPolicy", Name: "p", UID: "u", Controller: new(true)}}
	status := v1alpha1.PolicyStatusStatus{ObservedGeneration: new(int64(7))}
	full := &v1alpha1.PolicyStatus{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "p", UID: "o", ResourceVersion: "3", OwnerReferences: owners,
			Labels:        map[string]string{"some": "label"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "policygate-manager"}},
		},
		Status: status,
	}
	got, err := trim(full)
	if err != nil {
		t.Fatal(err)
	}
	want := &v1alpha1.PolicyStatus{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "o", ResourceVersion: "3", OwnerReferences: owners},
		Status:     status,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("trimmed (-want +got):\n%s", diff)
	}
}

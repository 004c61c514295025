// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// service writes a Service that selects one app, or nothing for "".
func (a *api) service(name, selected string, changes ...func(*corev1.Service)) *corev1.Service {
	ns, short, _ := strings.Cut(name, "/")
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ns, Name: short, UID: types.UID("svc " + name),
		},
		Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.7"}},
	}
	if selected != "" {
		s.Spec.Selector = map[string]string{"app": selected}
	}
	for _, c := range changes {
		c(s)
	}
	a.x.SetService(s)
	return s
}

func TestWhomAServiceAffects(t *testing.T) {
	for name, tc := range map[string]struct {
		event func(w *town)
		want  []types.UID
	}{
		"one that selects a pod which a subject's policy selects": {
			func(w *town) { w.service("db/s", "mysql") }, []types.UID{"db/backup"},
		},
		"one that selects a pod which a subject's policy means": {
			func(w *town) { w.service("web/s", "idle") }, []types.UID{"web/page"},
		},
		"one that selects a subject itself": {
			func(w *town) { w.service("web/s", "page") }, []types.UID{"web/page"},
		},
		"one that selects nobody": {
			func(w *town) { w.service("db/s", "nobody") }, []types.UID{},
		},
		"one that selects pods of that name in another namespace": {
			func(w *town) { w.service("web/s", "mysql") }, []types.UID{},
		},
		"one that selects a pod of no subject's policy": {
			func(w *town) { w.service("db/s", "bystander") }, []types.UID{},
		},
		"one without a selector, through its namespace's policies": {
			func(w *town) { w.service("db/s", "") }, []types.UID{"db/backup"},
		},
		"one that was there before anybody looked": {
			func(w *town) {
				old(w)
			}, []types.UID{},
		},
		"one that selects other pods than before": {
			func(w *town) { w.service("db/s", "nobody"); w.service("db/s", "mysql") }, []types.UID{"db/backup"},
		},
		"one that selects nobody any more": {
			func(w *town) { old(w); w.service("db/s", "nobody") }, []types.UID{"db/backup"},
		},
		"one whose addresses change": {
			func(w *town) {
				old(w)
				w.service("db/s", "mysql", func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"10.96.0.8"} })
			}, []types.UID{"db/backup"},
		},
		"one whose status changes": {
			func(w *town) { old(w); w.service("db/s", "mysql") }, []types.UID{},
		},
		"one that goes": {
			func(w *town) { w.x.DeleteService(old(w)) }, []types.UID{"db/backup"},
		},
		"one that goes and was never seen": {
			func(w *town) {
				w.x.DeleteService(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "s"}})
			}, []types.UID{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t)
			w.x.options.Services = true
			w.x.touchAll()
			w.settled() // computed with the option
			tc.event(w)
			got := w.x.Affected()
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("affected (-want +got):\n%s", diff)
			}
			for _, uid := range got {
				if a, _ := w.x.Assignment(uid); !a.Settle {
					t.Errorf("%s does not settle", uid)
				}
			}
		})
		t.Run(name+", for an engine that knows no Services", func(t *testing.T) {
			w := newTown(t)
			tc.event(w)
			if got := w.x.Affected(); len(got) > 0 || len(w.x.services) > 0 {
				t.Errorf("affected %v, %d services kept: want nobody, none", got, len(w.x.services))
			}
		})
	}
}

// old writes a Service that was there before anybody looked.
func old(w *town) (s *corev1.Service) {
	w.before(func() { s = w.service("db/s", "mysql") })
	return s
}

func TestABurstOfServicesTouchesASubjectOnce(t *testing.T) {
	w := newTown(t)
	w.x.options.Services = true
	w.x.touchAll()
	w.settled()
	touched := 0
	for range 100 {
		s := w.service("db/s", "mysql")
		w.x.DeleteService(s)
		touched += len(w.x.Affected())
	}
	if touched != 1 {
		t.Errorf("touched %d times, want once", touched)
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
)

func TestWhatStands(t *testing.T) {
	for name, tc := range map[string]struct {
		event func(w *town)
		want  bool
	}{
		"what nothing happened to":         {func(*town) {}, true},
		"a subject of which noise is told": {func(w *town) { w.again(w.backup, func(p *corev1.Pod) { p.Status.Message = "noise" }) }, true},
		"what a policy has nothing to do with": {
			func(w *town) { w.policy("web/new", "nobody", pods("nobody")) }, true,
		},
		"what a policy concerns":               {func(w *town) { w.policy("db/new", "backup", pods("nobody")) }, false},
		"a subject with other settings":        {func(w *town) { w.again(w.backup, annotated(v1alpha1.KeyTimeout, "5m")) }, false},
		"a subject that is suspected":          {func(w *town) { w.x.Suspect("db/backup") }, false},
		"a subject that is no longer held":     {func(w *town) { w.again(w.backup, opened) }, false},
		"a subject that is gone":               {func(w *town) { w.x.DeletePod("db/backup") }, false},
		"a subject at other addresses":         {func(w *town) { w.again(w.backup, func(p *corev1.Pod) { p.Status.PodIPs[0].IP = "10.0.1.21" }) }, false},
		"what was touched and computed again":  {func(w *town) { w.x.Suspect("db/backup"); w.settled() }, true},
		"what was touched and only handed out": {func(w *town) { w.x.Suspect("db/backup"); w.x.Affected() }, false},
		"a subject that was released and is again": {
			func(w *town) { w.again(w.again(w.backup, opened), annotated(v1alpha1.KeyProgrammed, "")) }, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t)
			tc.event(w)
			basis, got := w.x.Standing("db/backup")
			if got != tc.want {
				t.Fatalf("stands: %v, want %v", got, tc.want)
			}
			if !got {
				return
			}
			if now, _ := w.x.Assignment("db/backup"); basis != now.Basis {
				t.Errorf("stands on %+v, want %+v", basis, now.Basis)
			}
		})
	}
}

func TestNothingStandsThatWasNeverComputed(t *testing.T) {
	w := newTown(t)
	w.pod("db/b2", "n1", "10.0.1.21", gated)
	for _, uid := range []types.UID{"db/b2", "db/nobody", "db/mysql"} {
		if _, ok := w.x.Standing(uid); ok {
			t.Errorf("%s stands", uid)
		}
	}
}

func TestASuspectIsTouchedOnceAndAskedWithWitnessesUntilItIsReleased(t *testing.T) {
	w := newTown(t)
	w.pod("db/elder", "n1", "10.0.1.50", app("backup"))
	w.x.Suspect("db/nobody")
	p := w.pod("db/young", "n1", "10.0.1.51", app("backup"), gated)
	w.settle(t)
	witnesses := func() (n int) {
		a, _ := w.x.Assignment("db/young")
		for _, list := range a.PerNode {
			for _, e := range list {
				if e.Witness {
					n++
				}
			}
		}
		return n
	}
	if n := witnesses(); n != 0 {
		t.Errorf("%d witnesses before anything is suspected, want none", n)
	}
	w.x.Suspect("db/young")
	w.x.Suspect("db/young")
	if got, want := w.x.Affected(), []types.UID{"db/young"}; !cmp.Equal(got, want) {
		t.Errorf("affected %v, want %v", got, want)
	}
	if n := witnesses(); n == 0 {
		t.Error("no witness, though the database admits an older backup")
	}
	w.x.Suspect("db/young")
	if got := w.x.Affected(); len(got) > 0 {
		t.Errorf("affected %v by the same suspicion, want nobody", got)
	}
	shut := w.again(w.again(p, opened), annotated(v1alpha1.KeyProgrammed, ""))
	if n := witnesses(); n != 0 {
		t.Errorf("%d witnesses after the gate of %s was open, want none", n, shut.UID)
	}
}

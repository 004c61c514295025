// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/controllers/expect"
)

func TestInTurn(t *testing.T) {
	first := func(ns string, seq uint64) *held { return subject(ns, seq, false) }
	again := func(ns string, seq uint64) *held { return subject(ns, seq, true) }
	for name, tc := range map[string]struct {
		list []*held
		want []types.UID
	}{
		"nobody": {nil, []types.UID{}},
		"of one namespace the older comes first": {
			[]*held{first("a", 3), first("a", 1), first("a", 2)},
			[]types.UID{"a1", "a2", "a3"},
		},
		"who was never computed comes before who was": {
			[]*held{again("a", 1), again("a", 2), first("a", 9)},
			[]types.UID{"a9", "a1", "a2"},
		},
		"a burst of one namespace does not delay another's": {
			[]*held{first("a", 1), first("a", 2), first("a", 3), first("b", 9), again("a", 4), again("a", 5), again("b", 8)},
			[]types.UID{"a1", "b9", "a2", "a3", "a4", "b8", "a5"},
		},
		"those of unknown age come in the order of their uids": {
			[]*held{first("a", 0), first("b", 0)},
			[]types.UID{"a0", "b0"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			rand.Shuffle(len(tc.list), func(i, j int) { tc.list[i], tc.list[j] = tc.list[j], tc.list[i] })
			if diff := cmp.Diff(tc.want, inTurn(tc.list)); diff != "" {
				t.Errorf("order (-want +got):\n%s", diff)
			}
		})
	}
}

func subject(ns string, seq uint64, computed bool) *held {
	uid := types.UID(fmt.Sprintf("%s%d", ns, seq))
	return &held{pod: &pod{Pod: &expect.Pod{UID: uid, Namespace: ns, Seq: seq}}, computed: computed}
}

func TestWhoIsNoLongerHeldComesLast(t *testing.T) {
	w := newTown(t)
	w.x.DeletePod("db/backup")
	w.x.Suspect("web/page")
	w.pod("web/zzz", "n1", "10.0.1.40", gated)
	if got, want := w.x.Affected(), []types.UID{"web/zzz", "web/page", "db/backup"}; !cmp.Equal(got, want) {
		t.Errorf("affected %v, want %v", got, want)
	}
}

func TestASubjectThatIsHeldAgainComesOnce(t *testing.T) {
	w := newTown(t)
	p := w.again(w.backup, opened)
	w.again(p, gated, func(p *corev1.Pod) { p.Status.Conditions, p.Annotations = nil, nil })
	if got, want := w.x.Affected(), []types.UID{"db/backup"}; !cmp.Equal(got, want) {
		t.Errorf("affected %v, want %v", got, want)
	}
}

func TestAPredecessorThatIsForgottenTouchesItsSuccessor(t *testing.T) {
	w := newTown(t)
	former := w.pod("db/former", "n1", "10.0.1.77", app("backup"))
	w.x.DeletePod(former.UID)
	w.clock.Step(time.Minute)
	w.pod("db/job", "n1", "10.0.1.77", gated)
	w.settle(t)
	if got, _ := w.x.Assignment("db/job"); !got.Settle {
		t.Fatal("the job does not settle, though the address was another's a minute ago")
	}
	w.clock.Step(reuseWindow - time.Minute - time.Second)
	for len(w.x.Wake()) > 0 {
		<-w.x.Wake()
	}
	if got := w.x.Affected(); len(got) > 0 {
		t.Fatalf("affected %v within the window, want nobody", got)
	}
	if _, ok := w.x.Standing("db/job"); !ok {
		t.Error("the assignment does not stand within the window")
	}
	w.clock.Step(time.Second)
	<-w.x.Wake()
	if _, ok := w.x.Standing("db/job"); ok {
		t.Error("the assignment stands, though the predecessor is forgotten")
	}
	if got, want := w.x.Affected(), []types.UID{"db/job"}; !cmp.Equal(got, want) {
		t.Errorf("affected %v, want %v", got, want)
	}
	if got, _ := w.x.Assignment("db/job"); got.Settle {
		t.Error("the job settles still")
	}
}

func TestSubjectsIsASet(t *testing.T) {
	var s subjects[*held]
	var all []*held
	for i := range 3 * fewSubjects {
		h := subject("a", uint64(i), false)
		all = append(all, h)
		s.add(h)
		s.add(h)
	}
	count := map[*held]int{}
	s.each(func(h *held) { count[h]++ })
	for _, h := range all {
		if count[h] != 1 {
			t.Errorf("%s is in it %d times", h.pod.UID, count[h])
		}
		s.remove(h)
		s.remove(h)
	}
	if !s.empty() {
		t.Error("not empty after all were removed")
	}
}

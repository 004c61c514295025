// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/controllers/expect"
)

func key(name string) types.NamespacedName {
	ns, short, _ := strings.Cut(name, "/")
	return types.NamespacedName{Namespace: ns, Name: short}
}

// enforcing returns the nodes that must enforce db/allow, in words; "none" if
// nothing is computed.
func (a *api) enforcing() string {
	got, _ := a.x.PolicyAssignment(key("db/allow"))
	if got.PerNode == nil {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(got.PerNode)), " ")
}

// changes renders what ChangedPolicies returns: "db/allow" has changed in its
// meaning, "(db/allow)" in its number.
func (a *api) changes() string {
	var out []string
	for _, c := range a.x.ChangedPolicies() {
		if c.Meaning {
			out = append(out, c.Policy.String())
		} else {
			out = append(out, "("+c.Policy.String()+")")
		}
	}
	return strings.Join(out, " ")
}

// computed is the town with all policies computed and nothing to report. What
// is there is not young.
func computed(t *testing.T) *town {
	t.Helper()
	w := newTown(t)
	w.clock.Step(2 * youth)
	w.recompute()
	return w
}

func (a *api) recompute() {
	a.x.ChangedPolicies()
	for _, q := range a.x.Policies() {
		a.x.PolicyAssignment(q)
	}
}

func TestWhichPoliciesAnEventChanges(t *testing.T) {
	for name, tc := range map[string]struct {
		event func(w *town)
		want  string
	}{
		"an event without news changes none": {
			func(w *town) { w.again(w.mysql); w.again(w.backup) }, "",
		},
		"a policy without news is not changed": {
			func(w *town) {
				q := w.policy("web/in", "page", pods("idle"))
				w.recompute()
				q = q.DeepCopy()
				q.ResourceVersion = w.next()
				w.x.SetPolicy(q)
			}, "",
		},
		"a new policy is changed, and those of the pods that it selects": {
			func(w *town) { w.policy("db/new", "mysql", pods("x")) }, "db/allow db/new",
		},
		"a policy that goes is changed": {
			func(w *town) { w.x.DeletePolicy(w.policy("db/other", "nobody", pods("nobody"))) }, "db/other",
		},
		"a new pod that a policy selects changes its number": {
			func(w *town) { w.pod("db/mysql2", "n2", "10.0.2.21", app("mysql")) }, "(db/allow)",
		},
		"a new pod that a policy means changes its number": {
			func(w *town) { w.pod("db/b2", "n1", "10.0.1.21", app("backup")) }, "(db/allow)",
		},
		"a pod of no concern changes none": {
			func(w *town) { w.pod("web/new", "n1", "10.0.1.44") }, "",
		},
		"a selected pod that was asked about and goes changes the meaning": {
			func(w *town) { w.x.DeletePod("db/mysql") }, "db/allow",
		},
		"a peer that was asked about and goes changes the meaning": {
			func(w *town) { w.x.DeletePod("db/backup") }, "db/allow",
		},
		"a stranger that goes changes the meaning": {
			func(w *town) { w.x.DeletePod("web/idle") }, "db/allow web/in",
		},
		"a gate that opens changes the number of the policies that select its pod": {
			func(w *town) { w.again(w.mysqlGated("10.0.2.23"), opened) }, "(db/allow)",
		},
		"a pod whose labels come under a policy changes the meaning": {
			func(w *town) {
				late := w.pod("web/late", "n2", "10.0.2.70")
				w.clock.Step(2 * youth)
				w.recompute()
				w.again(late, app("page"))
			}, "web/in",
		},
		"a policy that cannot be read changes all of its namespace": {
			func(w *town) {
				w.policy("db/idle", "nobody", pods("nobody"))
				w.recompute()
				w.unreadable("db/bad")
			}, "db/allow db/bad db/idle",
		},
		"a node that goes changes the policies of its pods": {
			func(w *town) { w.x.DeleteNode("n1") }, "db/allow web/in",
		},
		"a node that has been not ready for too long changes the policies of its pods": {
			func(w *town) { w.notReady(); w.clock.Step(DefaultNotReadyLimit) }, "web/in",
		},
		"a node that is not ready for a moment changes none": {
			func(w *town) { w.notReady(); w.clock.Step(DefaultNotReadyLimit / 2) }, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := computed(t)
			tc.event(w)
			if got := w.changes(); got != tc.want {
				t.Errorf("changed: %q, want %q", got, tc.want)
			}
			if got := w.changes(); got != "" {
				t.Errorf("%q is reported a second time", got)
			}
		})
	}
}

// mysqlGated is another database, gated, that everybody knows by now.
func (w *town) mysqlGated(ip string) *corev1.Pod {
	p := w.pod("db/gated", "n2", ip, app("mysql"), gated)
	w.clock.Step(2 * youth)
	w.recompute()
	return p
}

func (a *api) unreadable(name string) {
	q := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{
		Namespace: key(name).Namespace, Name: key(name).Name, UID: types.UID("np " + name),
		ResourceVersion: a.next(), Generation: 1,
	}}
	q.Spec.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}
	a.x.SetPolicy(q)
}

// notReady has n1 not be ready from now on.
func (w *town) notReady() {
	w.node("n1", "10.0.1.0/24", func(n *corev1.Node) {
		n.Status.Conditions = []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionUnknown, LastTransitionTime: metav1.NewTime(w.clock.Now()),
		}}
	})
}

func TestAPodMeantByTooManyChangesTheNumberOfWhoSelectsItOnly(t *testing.T) {
	w := newTown(t)
	for i := range maxMeaning {
		w.policy(fmt.Sprintf("db/q%d", i), "nobody", pods("crowd"))
	}
	w.policy("db/own", "crowd", pods("nobody"))
	w.recompute()
	w.pod("db/c1", "n1", "10.0.1.50", app("crowd"))
	if got := len(w.x.ChangedPolicies()); got != maxMeaning+1 {
		t.Errorf("%d policies are changed, want all %d", got, maxMeaning+1)
	}
	w.policy("db/one-more", "nobody", pods("crowd"))
	w.recompute()
	w.pod("db/c2", "n1", "10.0.1.51", app("crowd"))
	if got := w.changes(); got != "(db/own)" {
		t.Errorf("changed: %q, want who selects the pod only", got)
	}
}

func TestWhereAllAreIsolatedAPolicyDependsOnFewOfItsNodesPods(t *testing.T) {
	w := newTown(t)
	deny := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "web", Name: "deny", UID: "np web/deny", Generation: 1},
		Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}},
	}
	w.x.SetPolicy(deny)
	w.x.DeletePod("db/bystander")
	for i := range 30 {
		w.pod(fmt.Sprintf("web/w%d", i), "n2", fmt.Sprintf("10.0.2.%d", 100+i))
	}
	w.clock.Step(2 * youth)
	w.recompute()
	for i := 10; i < 30; i++ {
		w.x.DeletePod(types.UID(fmt.Sprintf("web/w%d", i)))
	}
	if got := w.changes(); strings.Contains(got, "db/allow") {
		t.Errorf("%q are changed, want db/allow not to be: it asks about none of these pods", got)
	}
}

func TestWhenPodsCountForAPolicy(t *testing.T) {
	w := computed(t)
	w.node("n3", "10.0.3.0/24")
	w.pod("db/mysql3", "n3", "10.0.3.20", app("mysql"))
	if got := w.enforcing(); got != "n2" {
		t.Errorf("nodes %q while the pod is young, want n2", got)
	}
	a, _ := w.x.PolicyAssignment(key("db/allow"))
	if a.Pods.Selected != 2 {
		t.Errorf("%d pods are selected, want 2: the young one is counted", a.Pods.Selected)
	}
	if early, late := w.clock.Now().Add(youth), w.clock.Now().Add(youth+arrivalStep); a.Again.Before(early) || a.Again.After(late) {
		t.Errorf("again at %s, want from %s to %s", a.Again, early, late)
	}
	w.clock.SetTime(a.Again.Add(-time.Millisecond))
	if got := w.enforcing(); got != "n2" {
		t.Errorf("nodes %q right before the time, want n2", got)
	}
	w.clock.SetTime(a.Again)
	if got := w.enforcing(); got != "n2 n3" {
		t.Errorf("nodes %q at the time, want n2 n3", got)
	}
	if a, _ := w.x.PolicyAssignment(key("db/allow")); !a.Again.IsZero() {
		t.Errorf("again at %s, want never: nobody is young", a.Again)
	}

	w.pod("db/mysql4", "n1", "10.0.1.40", app("mysql"))
	w.policy("db/allow", "mysql", pods("backup"))
	if got := w.enforcing(); got != "n1 n2 n3" {
		t.Errorf("nodes %q of a generation that is younger than the pods, want n1 n2 n3", got)
	}
	w.clock.Step(time.Second)
	w.pod("db/b2", "n1", "10.0.1.41", app("backup"))
	a, _ = w.x.PolicyAssignment(key("db/allow"))
	if text := asked(a.PerNode["n2"]); strings.Contains(text, "10.0.1.41") || !strings.Contains(text, "10.0.1.20") {
		t.Errorf("n2 is asked\n%s\nwant the old peer and not the young one", text)
	}
}

func TestManyArrivalsAreKeptInFewPlaces(t *testing.T) {
	var a arrivals
	now := epoch
	for seq := range uint64(100_000) {
		a.add(seq+1, now)
		now = now.Add(time.Millisecond)
	}
	if got, most := len(a.young), int(youth/arrivalStep)+1; got > most {
		t.Errorf("%d are kept, want at most %d", got, most)
	}
	// Of 100,000 in 100 seconds, those of the first 85 are old.
	step := uint64(arrivalStep / time.Millisecond)
	if got, want := a.horizon(now), uint64(85_000); got > want || got < want-2*step {
		t.Errorf("horizon %d, want up to %d", got, want)
	}
	for _, seq := range []uint64{a.old + 1, 100_000} {
		if at := a.settles(seq); a.horizon(at) < seq {
			t.Errorf("%d is young at %s still", seq, at)
		}
	}
}

func TestSinceWhenAGenerationIsKnown(t *testing.T) {
	w := newTown(t)
	since := func(name string) time.Time {
		a, _ := w.x.PolicyAssignment(key(name))
		return a.Subject.Since
	}
	written := func(uid types.UID, generation int64) *networkingv1.NetworkPolicy {
		return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{
			Namespace: "db", Name: "q", UID: uid, Generation: generation,
		}}
	}
	w.before(func() { w.x.SetPolicy(written("old", 3)) })
	if got := since("db/q"); !got.IsZero() {
		t.Errorf("since %s for what was there before, want zero", got)
	}
	w.clock.Step(time.Minute)
	edited := w.clock.Now()
	w.x.SetPolicy(written("old", 4))
	w.clock.Step(time.Minute)
	w.x.SetPolicy(written("old", 4))
	if got := since("db/q"); !got.Equal(edited) {
		t.Errorf("since %s for a generation seen at %s", got, edited)
	}
	w.x.SetPolicy(written("new", 1))
	if got := since("db/q"); !got.Equal(w.clock.Now()) {
		t.Errorf("since %s for a policy made anew at %s", got, w.clock.Now())
	}
	if a, _ := w.x.PolicyAssignment(key("db/q")); a.Subject.UID != "new" || a.Subject.Generation != 1 {
		t.Errorf("subject %+v, want the new one", a.Subject)
	}
}

func TestWhatAnEditTakesAwayIsAskedForAsDenied(t *testing.T) {
	w := computed(t)
	narrowed := w.policy("db/allow", "mysql", pods("nobody"))
	a, _ := w.x.PolicyAssignment(key("db/allow"))
	const taken = "denied tcp 10.0.1.20 -> 10.0.2.20:3306"
	if got := asked(a.PerNode["n2"]); !strings.Contains(got, taken) {
		t.Errorf("n2 is asked\n%s\nwant %s", got, taken)
	}
	again := narrowed.DeepCopy()
	again.Generation++
	w.x.SetPolicy(again)
	a, _ = w.x.PolicyAssignment(key("db/allow"))
	if got := asked(a.PerNode["n2"]); !strings.Contains(got, taken) {
		t.Errorf("n2 is asked\n%s\nafter a second edit, want %s", got, taken)
	}
	w.policy("db/also", "mysql", pods("backup"))
	a, _ = w.x.PolicyAssignment(key("db/allow"))
	if got := asked(a.PerNode["n2"]); strings.Contains(got, taken) {
		t.Errorf("n2 is asked\n%s\nthough another policy allows it", got)
	}
}

func TestNodesThatNeedNotEnforceAPolicy(t *testing.T) {
	for name, tc := range map[string]struct {
		event func(w *town)
		want  string
	}{
		"a node that is ready must":                    {func(*town) {}, "n1 n2"},
		"a node that was not ready just now must":      {func(w *town) { w.notReady() }, "n1 n2"},
		"a node that has not been for long need not":   {func(w *town) { w.notReady(); w.clock.Step(DefaultNotReadyLimit) }, "n2"},
		"a node that is gone need not":                 {func(w *town) { w.x.DeleteNode("n1") }, "n2"},
		"a node whose pod is on its network need not":  {func(w *town) { w.x.DeletePod("db/mysql2"); w.extra(onHost) }, "n2"},
		"a node whose pod is finished need not":        {func(w *town) { w.again(w.extra(), finished) }, "n2"},
		"a node whose pod is being deleted need not":   {func(w *town) { w.again(w.extra(), terminating) }, "n2"},
		"nothing is computed beside an unreadable one": {func(w *town) { w.unreadable("db/bad") }, "none"},
		"nor for the unreadable one itself":            {func(w *town) { w.x.DeletePolicy(w.policy("db/allow", "x", pods("x"))); w.unreadable("db/allow") }, "none"},
		"an unreadable one elsewhere is of no concern": {func(w *town) { w.unreadable("web/bad") }, "n1 n2"},
	} {
		t.Run(name, func(t *testing.T) {
			w := computed(t)
			w.extra()
			w.clock.Step(2 * youth)
			tc.event(w)
			if got := w.enforcing(); got != tc.want {
				t.Errorf("nodes %q, want %q", got, tc.want)
			}
			if a, _ := w.x.PolicyAssignment(key("db/allow")); a.PerNode == nil &&
				!slices.ContainsFunc(a.Notes, func(n expect.Note) bool { return n.Kind == expect.PolicyNotUnderstood }) {
				t.Errorf("notes %v, want one that says what is not understood", a.Notes)
			}
		})
	}
}

// extra is a database on n1.
func (w *town) extra(changes ...podChange) *corev1.Pod {
	return w.pod("db/mysql2", "n1", "10.0.1.21", append(changes, app("mysql"))...)
}

func onHost(p *corev1.Pod) { p.Spec.HostNetwork = true }

func TestOverTimeEveryPodIsAskedAbout(t *testing.T) {
	w := newTown(t)
	for i := range 10 {
		w.pod(fmt.Sprintf("db/m%d", i), "n2", fmt.Sprintf("10.0.2.%d", 100+i), app("mysql"))
	}
	w.clock.Step(2 * youth)
	seen := map[string]bool{}
	for range 60 {
		a, _ := w.x.PolicyAssignment(key("db/allow"))
		again, _ := w.x.PolicyAssignment(key("db/allow"))
		if diff := cmp.Diff(asked(a.PerNode["n2"]), asked(again.PerNode["n2"])); diff != "" {
			t.Fatalf("computed twice at one time:\n%s", diff)
		}
		now := map[string]bool{}
		for _, e := range a.PerNode["n2"] {
			now[e.Flow.Dst.String()] = true
		}
		if len(now) != 2 {
			t.Errorf("%v are asked about, want two", now)
		}
		maps.Copy(seen, now)
		w.clock.Step(drawPeriod)
	}
	if len(seen) != 11 {
		t.Errorf("%d pods were asked about, want all 11: %v", len(seen), seen)
	}
}

func TestPolicyWakeReceivesWhenThereIsSomething(t *testing.T) {
	w := computed(t)
	received := func() bool {
		select {
		case <-w.x.PolicyWake():
			return true
		default:
			return false
		}
	}
	received()
	w.again(w.idle)
	if received() {
		t.Error("woken without news")
	}
	w.x.DeletePod("db/mysql")
	w.x.DeletePod("db/backup")
	if !received() || received() {
		t.Error("want one receive after two changes")
	}
	w.changes()
	w.notReady()
	received()
	w.clock.Step(DefaultNotReadyLimit)
	if !received() {
		t.Error("not woken when a node has been not ready for too long")
	}
}

func TestOfAPolicyThatIsNotThereNothingIsSaid(t *testing.T) {
	w := computed(t)
	if _, ok := w.x.PolicyAssignment(key("db/none")); ok {
		t.Error("it has an assignment")
	}
	if _, ok := w.x.PolicyPods(key("db/none")); ok {
		t.Error("it has pods")
	}
	if got, want := w.x.Policies(), []types.NamespacedName{key("db/allow"), key("web/in")}; !cmp.Equal(got, want) {
		t.Errorf("policies %v, want %v", got, want)
	}
}

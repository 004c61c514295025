// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/expect"
)

// town is two nodes, a database on n2 that admits backups, bystanders, a held
// backup on n1 and a held Pod of another namespace that nothing links to it.
type town struct {
	*api
	backup, mysql, idle *corev1.Pod
}

func newTown(t *testing.T) *town {
	t.Helper()
	a := newAPI()
	a.node("n1", "10.0.1.0/24")
	a.node("n2", "10.0.2.0/24")
	a.namespace("db", "team", "db")
	a.namespace("web", "team", "web")
	w := &town{api: a}
	w.idle = a.pod("web/idle", "n1", "10.0.1.10")
	a.pod("web/idle2", "n2", "10.0.2.10")
	w.mysql = a.pod("db/mysql", "n2", "10.0.2.20")
	a.pod("db/bystander", "n2", "10.0.2.22")
	a.policy("db/allow", "mysql", pods("backup"))
	a.policy("web/in", "page", pods("idle"))
	w.backup = a.pod("db/backup", "n1", "10.0.1.20", gated)
	a.pod("web/page", "n1", "10.0.1.30", gated)
	w.settle(t)
	return w
}

// settle computes what is affected, as the gate does.
func (a *api) settle(t *testing.T) {
	t.Helper()
	for _, uid := range a.x.Affected() {
		a.x.Assignment(uid)
	}
}

func TestWhomAnEventAffects(t *testing.T) {
	for name, tc := range map[string]struct {
		event func(w *town)
		want  []types.UID
	}{
		"an event without news affects nobody": {
			func(w *town) { w.again(w.mysql); w.again(w.backup); w.policyNoise() }, []types.UID{},
		},
		"a pod's status that no assignment is made of affects nobody": {
			func(w *town) {
				w.again(w.backup, func(p *corev1.Pod) {
					p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}}
				})
			}, []types.UID{},
		},
		"a young pod affects nobody, it waits by itself": {
			func(w *town) { w.pod("db/mysql2", "n2", "10.0.2.21", app("mysql")) }, []types.UID{},
		},
		"a gated pod affects itself": {
			func(w *town) { w.pod("db/b2", "n1", "10.0.1.21", gated) }, []types.UID{"db/b2"},
		},
		"a gated pod without an address is no subject yet": {
			func(w *town) { w.pod("db/b2", "n1", "", gated) }, []types.UID{},
		},
		"an opened gate takes its pod out": {
			func(w *town) { w.again(w.backup, opened) }, []types.UID{"db/backup"},
		},
		"a deleted subject is affected once more": {
			func(w *town) { w.x.DeletePod("db/backup") }, []types.UID{"db/backup"},
		},
		"a peer that goes affects who was to be asked of it": {
			func(w *town) { w.x.DeletePod("db/mysql") }, []types.UID{"db/backup"},
		},
		"a peer that terminates affects who was to be asked of it": {
			func(w *town) {
				w.again(w.mysql, func(p *corev1.Pod) { now := metav1.NewTime(epoch); p.DeletionTimestamp = &now })
			}, []types.UID{"db/backup"},
		},
		"a stranger that goes affects whose stranger it was": {
			func(w *town) { w.x.DeletePod("web/idle") }, []types.UID{"db/backup", "web/page"},
		},
		"a pod that takes an address in use affects who is asked of it": {
			func(w *town) { w.pod("web/twin", "n1", "10.0.1.20") }, []types.UID{"db/backup"},
		},
		"a relabelled pod affects the subjects of the policies that it joins": {
			func(w *town) {
				late := w.pod("db/late", "n2", "10.0.2.70")
				w.settled()
				w.again(late, app("mysql"))
			},
			[]types.UID{"db/backup"},
		},
		"a relabelled subject affects itself": {
			func(w *town) { w.again(w.backup, app("other")) }, []types.UID{"db/backup"},
		},
		"a policy that selects a subject affects it": {
			func(w *town) { w.policy("web/new", "page", pods("x")) }, []types.UID{"web/page"},
		},
		"a policy that names a subject affects it": {
			func(w *town) { w.policy("web/new", "nobody", podsOfTeam("db", "backup")) }, []types.UID{"db/backup"},
		},
		"a policy of a pod that a subject is asked of affects the subject": {
			func(w *town) { w.policy("db/new", "mysql", pods("nobody")) }, []types.UID{"db/backup"},
		},
		"a policy that has nothing to do with any subject affects nobody": {
			func(w *town) { w.policy("db/new", "nobody", pods("nobody")) }, []types.UID{},
		},
		"a policy that goes affects whom it bound": {
			func(w *town) { w.x.DeletePolicy(w.policy("db/allow", "mysql", pods("backup"))) }, []types.UID{"db/backup"},
		},
		"a policy whose concatenated name another one has affects that one's subjects": {
			func(w *town) { w.policy("d/ballow", "x", pods("x")) }, []types.UID{"db/backup"},
		},
		"a namespace's label that no rule names affects nobody": {
			func(w *town) { w.namespace("web", "team", "new") }, []types.UID{},
		},
		"a namespace's label that a rule names affects whom the rule concerns, and who looked at whom it means": {
			func(w *town) {
				w.policy("db/team", "backup", podsOfTeam("web", "idle"))
				w.settled()
				w.namespace("web", "team", "new")
			}, []types.UID{"db/backup", "web/page"},
		},
		"a namespace without news affects nobody": {
			func(w *town) { w.namespace("web", "team", "web") }, []types.UID{},
		},
		"a new namespace affects nobody": {
			func(w *town) { w.namespace("new") }, []types.UID{},
		},
		"a node's heartbeat affects nobody": {
			func(w *town) {
				w.node("n1", "10.0.1.0/24", func(n *corev1.Node) {
					n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(epoch)}}
				})
			}, []types.UID{},
		},
		"a new node affects who was asked of an address that nobody has": {
			func(w *town) { w.node("n3", "10.0.3.0/24") }, []types.UID{"web/page"},
		},
		"a node that goes affects whom it would be asked of": {
			func(w *town) { w.x.DeleteNode("n2") }, []types.UID{"db/backup", "web/page"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t)
			tc.event(w)
			if diff := cmp.Diff(tc.want, w.x.Affected()); diff != "" {
				t.Errorf("affected (-want +got):\n%s", diff)
			}
			if again := w.x.Affected(); len(again) != 0 {
				t.Errorf("%v are affected a second time", again)
			}
		})
	}
}

// policyNoise writes a policy with a new version and the same spec.
func (w *town) policyNoise() {
	q := w.policy("web/in", "page", pods("idle"))
	w.settled()
	q = q.DeepCopy()
	q.ResourceVersion = w.next()
	w.x.SetPolicy(q)
}

func (w *town) settled() {
	for _, uid := range w.x.Affected() {
		w.x.Assignment(uid)
	}
}

func TestSubjects(t *testing.T) {
	for name, tc := range map[string]struct {
		changes []podChange
		held    bool
		moved   bool
	}{
		"a pod with the gate and an address is held":  {[]podChange{gated}, true, false},
		"a pod without the gate is not":               {nil, false, false},
		"a pod with another gate is not":              {[]podChange{otherGate}, false, false},
		"a pod whose gate is open is not":             {[]podChange{opened}, false, false},
		"a finished pod is not":                       {[]podChange{gated, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }}, false, false},
		"a pod on the host's network is not":          {[]podChange{gated, func(p *corev1.Pod) { p.Spec.HostNetwork = true }}, false, false},
		"a pod that is being deleted is not":          {[]podChange{gated, terminating}, false, false},
		"a pod that no node has is not":               {[]podChange{gated, func(p *corev1.Pod) { p.Spec.NodeName = "" }}, false, false},
		"a gate opened for another address is shut":   {[]podChange{opened, func(p *corev1.Pod) { p.Status.PodIPs[0].IP = "10.0.1.99" }}, true, true},
		"a gate opened for another boot is shut":      {[]podChange{func(p *corev1.Pod) { p.Spec.NodeName = "n2" }, opened, func(p *corev1.Pod) { p.Spec.NodeName = "n1" }}, true, true},
		"a gate opened for another pod is shut":       {[]podChange{opened, func(p *corev1.Pod) { p.UID = "other" }}, true, true},
		"an annotation without the condition is shut": {[]podChange{opened, func(p *corev1.Pod) { p.Status.Conditions = nil }}, true, false},
		"an empty annotation opens nothing":           {[]podChange{opened, annotated(v1alpha1.KeyProgrammed, "")}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI()
			a.node("n1", "10.0.1.0/24")
			a.node("n2", "10.0.2.0/24")
			p := a.pod("db/p", "n1", "10.0.1.20", tc.changes...)
			got, held := a.x.Assignment(p.UID)
			if held != tc.held || got.Subject.AddressChanged != tc.moved {
				t.Errorf("held %v, address changed %v: want %v, %v", held, got.Subject.AddressChanged, tc.held, tc.moved)
			}
			if listed := slices.Contains(a.x.Subjects(), p.UID); listed != tc.held {
				t.Errorf("among the subjects %v, want %v", listed, tc.held)
			}
		})
	}
}

func otherGate(p *corev1.Pod) {
	p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/lb"}}
}

func terminating(p *corev1.Pod) {
	now := metav1.NewTime(epoch)
	p.DeletionTimestamp = &now
}

func TestAReleasedPodIsASubjectAgainAfterItsNodesReboot(t *testing.T) {
	a := newAPI()
	a.pod("db/p", "n1", "10.0.1.20", opened)
	if got := a.x.Subjects(); len(got) != 0 {
		t.Fatalf("%v held before the node is known, want none", got)
	}
	a.node("n1", "10.0.1.0/24")
	if got := a.x.Subjects(); len(got) != 0 {
		t.Fatalf("%v held in the boot that the gate was opened in, want none", got)
	}
	a.node("n1", "10.0.1.0/24", func(n *corev1.Node) { n.Status.NodeInfo.BootID = "second" })
	got, held := a.x.Assignment("db/p")
	if !held || !got.Subject.AddressChanged || got.Subject.BootID != "second" {
		t.Errorf("held %v, subject %+v: want held anew in the second boot", held, got.Subject)
	}
}

func TestAssignmentSaysWhatItIsMadeOf(t *testing.T) {
	w := newTown(t)
	since := w.clock.Now()
	w.clock.Step(time.Second)
	started := metav1.NewTime(w.clock.Now())
	p := w.again(w.backup, func(p *corev1.Pod) {
		p.Annotations = map[string]string{v1alpha1.KeyTimeout: "90s"}
		p.Status.InitContainerStatuses = []corev1.ContainerStatus{{
			Name: v1alpha1.HoldContainerName, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: started}},
		}}
	})
	version := parseVersion(p.ResourceVersion)
	w.again(p, func(p *corev1.Pod) { p.Status.Message = "noise" })
	q := w.policy("web/new", "nobody", pods("nobody"))
	ns := w.namespace("web", "team", "other")
	got, ok := w.x.Assignment("db/backup")
	if !ok {
		t.Fatal("not held")
	}
	want := Basis{NetworkPolicies: parseVersion(q.ResourceVersion), Namespaces: parseVersion(ns.ResourceVersion), Pod: version}
	if got.Basis != want {
		t.Errorf("basis %+v, want %+v", got.Basis, want)
	}
	s := got.Subject
	if s.Settings.Timeout != 90*time.Second || s.HoldStartedAt == nil || !s.HoldStartedAt.Equal(started.Time) ||
		!s.Since.Equal(since) || s.Node != "n1" || s.BootID != "boot-n1" || s.Generation != 1 {
		t.Errorf("subject %+v", s)
	}
	if !cmp.Equal(got.Span, []string{"n1", "n2"}) {
		t.Errorf("span %v, want n1 and n2", got.Span)
	}
	if text := asked(got.PerNode["n2"]); !strings.Contains(text, "allowed tcp 10.0.1.20 -> 10.0.2.20:3306") {
		t.Errorf("n2 is asked:\n%s", text)
	}
}

func TestScopeLocalLeavesOtherNodesOut(t *testing.T) {
	w := newTown(t)
	w.again(w.backup, annotated(v1alpha1.KeyScope, v1alpha1.ScopeLocal))
	if got, _ := w.x.Assignment("db/backup"); !cmp.Equal(got.Span, []string{"n1"}) {
		t.Errorf("span %v, want n1", got.Span)
	}
}

func TestANodeThatIsNotReadyForTooLongLeavesTheSpan(t *testing.T) {
	w := newTown(t)
	notReady := func(n *corev1.Node) {
		n.Status.Conditions = []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionUnknown, LastTransitionTime: metav1.NewTime(w.clock.Now()),
		}}
	}
	w.node("n2", "10.0.2.0/24", notReady)
	w.settle(t)
	if got, _ := w.x.Assignment("db/backup"); len(got.Span) != 2 {
		t.Fatalf("span %v before the limit, want both nodes", got.Span)
	}
	for len(w.x.Wake()) > 0 {
		<-w.x.Wake()
	}
	w.clock.Step(DefaultNotReadyLimit)
	<-w.x.Wake()
	if got := w.x.Affected(); !slices.Contains(got, "db/backup") {
		t.Errorf("affected %v, want the subject that waits for the node", got)
	}
	if got, _ := w.x.Assignment("db/backup"); !cmp.Equal(got.Span, []string{"n1"}) {
		t.Errorf("span %v after the limit, want n1", got.Span)
	}
	w.node("n2", "10.0.2.0/24")
	if got, _ := w.x.Assignment("db/backup"); len(got.Span) != 2 {
		t.Errorf("span %v after the node came back, want both", got.Span)
	}
}

func TestANodeThatAnswersStaysInTheSpanWhateverItsNodeSays(t *testing.T) {
	w := newTown(t)
	span := func() []string {
		w.settled()
		a, _ := w.x.Assignment("db/backup")
		return a.Span
	}
	both, own := []string{"n1", "n2"}, []string{"n1"}
	want := func(when string, want []string) {
		t.Helper()
		if got := span(); !cmp.Equal(got, want) {
			t.Errorf("%s: span %v, want %v", when, got, want)
		}
	}
	w.x.Reach("n2", true)
	w.node("n2", "10.0.2.0/24", func(n *corev1.Node) {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}}
	})
	w.clock.Step(DefaultNotReadyLimit)
	want("not ready for long, and answers", both)
	w.x.Reach("n2", false)
	if got := w.x.Affected(); !slices.Contains(got, "db/backup") {
		t.Errorf("affected %v by its agent's end, want the subject that waits for the node", got)
	}
	want("it does not answer any more", own)
	w.x.Reach("n2", true)
	want("it answers again", both)
	w.x.Reach("n2", true)
	if got := w.x.Affected(); len(got) > 0 {
		t.Errorf("affected %v by what was known", got)
	}
	w.x.Reach("n9", true) // not known yet
	w.x.Reach("n9", false)
}

// The clocks of others: the API server's, which dates Nodes and Pods, may be
// behind this process' own or ahead of it by any amount.
func TestHowLongANodeHasNotBeenReadyIsNotReadOffAnotherClock(t *testing.T) {
	for name, skew := range map[string]time.Duration{
		"the API server's clock is right": 0, "it is an hour ahead": time.Hour, "it is an hour behind": -time.Hour,
	} {
		unready := func(w *town, since time.Duration) {
			w.node("n2", "10.0.2.0/24", func(n *corev1.Node) {
				n.Status.Conditions = []corev1.NodeCondition{{
					Type: corev1.NodeReady, Status: corev1.ConditionUnknown,
					LastTransitionTime: metav1.NewTime(w.clock.Now().Add(skew - since)),
				}}
			})
		}
		span := func(w *town) int {
			w.settled()
			a, _ := w.x.Assignment("db/backup")
			return len(a.Span)
		}
		t.Run(name, func(t *testing.T) {
			w := newTown(t)
			unready(w, 0)
			if got := span(w); got != 2 {
				t.Errorf("%d nodes at once, want the one that is not ready among them", got)
			}
			w.clock.Step(DefaultNotReadyLimit - time.Second)
			unready(w, 0) // it says another time, and is as unready as before
			if got := span(w); got != 2 {
				t.Errorf("%d nodes before the limit, want 2", got)
			}
			w.clock.Step(time.Second)
			if got := span(w); got != 1 {
				t.Errorf("%d nodes after the limit, want 1", got)
			}
		})
		t.Run(name+", and a replica starts", func(t *testing.T) {
			for since, want := range map[time.Duration]int{10 * time.Second: 2, DefaultNotReadyLimit: 1} {
				w := newTown(t)
				w.before(func() {
					unready(w, since)
					w.pod("db/newest", "n1", "10.0.1.90", func(p *corev1.Pod) {
						p.CreationTimestamp = metav1.NewTime(w.clock.Now().Add(skew))
					})
				})
				if got := span(w); got != want {
					t.Errorf("%d nodes after %s, want %d", got, since, want)
				}
			}
		})
	}
}

func TestWhatWasThereAtTheStartIsNotReadOffAnotherClock(t *testing.T) {
	for name, skew := range map[string]time.Duration{
		"the API server's clock is right": 0, "it is an hour ahead": time.Hour, "it is an hour behind": -time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI()
			created := func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(a.clock.Now().Add(skew)) }
			a.before(func() {
				a.pod("db/backup", "n1", "10.0.1.20", gated, created)
				a.pod("db/mysql", "n2", "10.0.2.20", created)
			})
			a.pod("db/late", "n2", "10.0.2.21", app("mysql"), created)
			a.node("n1", "10.0.1.0/24")
			a.node("n2", "10.0.2.0/24")
			a.namespace("db")
			a.policy("db/allow", "mysql", pods("backup"))
			a.settle(t)
			got, _ := a.x.Assignment("db/backup")
			if n2 := asked(got.PerNode["n2"]); !strings.Contains(n2, "10.0.1.20 -> 10.0.2.20:3306") || strings.Contains(n2, "10.0.1.20 -> 10.0.2.21:3306") {
				t.Errorf("n2 is asked for what was there at the start:\n%s\nwant the server that was there too, and not the later one", n2)
			}
		})
	}
}

// What a list after a gap of the watch brings, it brings in the order of names:
// of whom it comes first says nothing.
func TestPodsThatCameInAGapOfTheWatchWaitForEachOther(t *testing.T) {
	for name, order := range map[string][]string{
		"the client is listed first": {"db/backup", "db/mysql"},
		"the server is listed first": {"db/mysql", "db/backup"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI()
			a.node("n1", "10.0.1.0/24")
			a.node("n2", "10.0.2.0/24")
			a.namespace("db")
			a.policy("db/allow", "mysql", pods("backup"))
			a.pod("db/former", "n2", "10.0.2.19", app("mysql"))
			elsewhere := newAPI() // makes the objects
			listed := map[string]*corev1.Pod{
				"db/backup": elsewhere.pod("db/backup", "n1", "10.0.1.20", gated),
				"db/mysql":  elsewhere.pod("db/mysql", "n2", "10.0.2.20"),
			}
			for _, name := range order {
				a.x.SetPod(listed[name])
			}
			a.settle(t)
			got, _ := a.x.Assignment("db/backup")
			n2 := asked(got.PerNode["n2"])
			for _, server := range []string{"10.0.2.19", "10.0.2.20"} {
				if !strings.Contains(n2, "10.0.1.20 -> "+server+":3306") {
					t.Errorf("n2 is asked:\n%s\nwant that the client is let in to %s", n2, server)
				}
			}
			a.pod("db/later", "n2", "10.0.2.21", app("mysql"))
			if got := a.x.Affected(); len(got) > 0 {
				t.Errorf("a younger server affects %v", got)
			}
		})
	}
}

func TestOnlyAutoLetsNodesLeaveOutAFamily(t *testing.T) {
	for families, want := range map[expect.Families]bool{
		"": true, expect.FamiliesAuto: true,
		expect.FamiliesBoth: false, expect.FamiliesV4: false, expect.FamiliesV6: false,
	} {
		t.Run(string(families), func(t *testing.T) {
			w := newTown(t)
			w.x.options.Expect.Families = families
			if got, ok := w.x.Assignment(w.backup.UID); !ok || got.ExcuseFamilies != want {
				t.Errorf("held %v, excuse families %v: want held, %v", ok, got.ExcuseFamilies, want)
			}
		})
	}
}

func TestAnAddressThatWasAnothersSettles(t *testing.T) {
	for name, tc := range map[string]struct {
		end   func(w *town, former *corev1.Pod)
		after time.Duration
		want  bool
	}{
		"deleted a moment ago":            {func(w *town, p *corev1.Pod) { w.x.DeletePod(p.UID) }, time.Second, true},
		"finished a moment ago":           {func(w *town, p *corev1.Pod) { w.again(p, finished) }, time.Second, true},
		"still terminating":               {func(w *town, p *corev1.Pod) { w.again(p, terminating) }, time.Hour, true},
		"moved away a moment ago":         {func(w *town, p *corev1.Pod) { w.again(p, func(p *corev1.Pod) { p.Status.PodIPs[0].IP = "10.0.1.78" }) }, time.Second, true},
		"deleted ten minutes ago":         {func(w *town, p *corev1.Pod) { w.x.DeletePod(p.UID) }, reuseWindow, false},
		"finished long before it is gone": {func(w *town, p *corev1.Pod) { p = w.again(p, finished); w.clock.Step(time.Hour); w.x.DeletePod(p.UID) }, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t)
			former := w.pod("db/former", "n1", "10.0.1.77", app("backup"))
			tc.end(w, former)
			w.clock.Step(tc.after)
			w.pod("db/job", "n1", "10.0.1.77", gated)
			got, ok := w.x.Assignment("db/job")
			if !ok || got.Settle != tc.want {
				t.Errorf("held %v, settle %v: want held, %v", ok, got.Settle, tc.want)
			}
			denied := strings.Contains(asked(got.PerNode["n2"]), "denied tcp 10.0.1.77 -> 10.0.2.20:3306")
			if denied != tc.want {
				t.Errorf("what the former pod had is denied: %v, want %v; n2 is asked:\n%s", denied, tc.want, asked(got.PerNode["n2"]))
			}
		})
	}
}

func finished(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }

func TestPodsOfUnknownAgeWaitForEachOther(t *testing.T) {
	a := newAPI()
	a.node("n1", "10.0.1.0/24")
	a.node("n2", "10.0.2.0/24")
	a.namespace("db")
	a.policy("db/allow", "mysql", pods("backup"))
	a.before(func() { a.pod("db/backup", "n1", "10.0.1.20", gated) })
	a.settle(t)
	a.before(func() { a.pod("db/mysql", "n2", "10.0.2.20", gated) })
	if got := a.x.Affected(); !cmp.Equal(got, []types.UID{"db/mysql", "db/backup"}) {
		t.Fatalf("affected %v, want both", got)
	}
	backup, _ := a.x.Assignment("db/backup")
	mysql, _ := a.x.Assignment("db/mysql")
	if !strings.Contains(asked(backup.PerNode["n2"]), "10.0.1.20 -> 10.0.2.20:3306") ||
		!strings.Contains(asked(mysql.PerNode["n2"]), "10.0.1.20 -> 10.0.2.20:3306") {
		t.Errorf("n2 is asked for the backup:\n%s\nfor the server:\n%s", asked(backup.PerNode["n2"]), asked(mysql.PerNode["n2"]))
	}
}

func TestAPodOfTheSameNameTakesTheFormersPlace(t *testing.T) {
	w := newTown(t)
	w.pod("db/mysql", "n2", "10.0.2.99", func(p *corev1.Pod) { p.UID = "second" })
	got, _ := w.x.Assignment("db/backup")
	if strings.Contains(asked(got.PerNode["n2"]), "10.0.2.20") {
		t.Errorf("the former pod is asked still:\n%s", asked(got.PerNode["n2"]))
	}
}

func TestWhatTheBarrierAsks(t *testing.T) {
	w := newTown(t)
	q := w.policy("db/q", "mysql", pods("x"))
	ns := w.namespace("late")
	gone := w.policy("db/gone", "mysql", pods("x"))
	w.x.DeletePolicy(gone)
	replaced := w.policy("db/r", "mysql", pods("x")).DeepCopy()
	replaced.UID, replaced.ResourceVersion = "np second", w.next()
	w.x.SetPolicy(replaced)
	for name, tc := range map[string]struct {
		kind    Kind
		uid     types.UID
		version string
		want    bool
	}{
		"the version that is held":                 {KindNetworkPolicy, q.UID, q.ResourceVersion, true},
		"an older version":                         {KindNetworkPolicy, q.UID, "101", true},
		"a newer version":                          {KindNetworkPolicy, q.UID, "999999", false},
		"an object that was never seen":            {KindNetworkPolicy, "np never", "101", false},
		"a version that is no number":              {KindNetworkPolicy, q.UID, "x", false},
		"a deleted object at any version":          {KindNetworkPolicy, gone.UID, "999999", true},
		"an object that another of its name ended": {KindNetworkPolicy, "np db/r", "999999", true},
		"the object of that name":                  {KindNetworkPolicy, "np second", replaced.ResourceVersion, true},
		"a namespace":                              {KindNamespace, ns.UID, ns.ResourceVersion, true},
		"an object of another kind":                {KindNamespace, q.UID, q.ResourceVersion, false},
		"a kind that is not kept":                  {"Secret", q.UID, q.ResourceVersion, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := w.x.Has(tc.kind, tc.uid, tc.version); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestAPolicyThatIsNotUnderstoodHoldsItsNamespaceUntilItIsMended(t *testing.T) {
	w := newTown(t)
	q := w.policy("db/bad", "mysql", pods("x")).DeepCopy()
	w.settle(t)
	q.Spec.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}
	q.ResourceVersion, q.Generation = w.next(), q.Generation+1
	w.x.SetPolicy(q)
	if got := w.x.Affected(); !cmp.Equal(got, []types.UID{"db/backup"}) {
		t.Errorf("affected %v, want the held pod of the namespace", got)
	}
	if got, ok := w.x.Assignment("db/backup"); !ok || got.Span != nil || len(got.Notes) == 0 {
		t.Errorf("held %v, span %v, notes %v: want held without a span, and why", ok, got.Span, got.Notes)
	}
	w.x.DeletePolicy(q)
	if got := w.x.Affected(); !cmp.Equal(got, []types.UID{"db/backup"}) {
		t.Errorf("affected %v by its end, want the held pod of the namespace", got)
	}
	if got, _ := w.x.Assignment("db/backup"); got.Span == nil {
		t.Error("no span after the policy is gone")
	}
}

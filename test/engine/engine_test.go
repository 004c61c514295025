// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/test/engine/rules"
	"github.com/policygate/policygate/test/engine/rules/capture"
)

// fakeKernel remembers the newest program.
type fakeKernel struct {
	mu       sync.Mutex
	programs []rules.Program
	removed  []rules.Family
	// errors are returned by the next calls of Apply, first first.
	errors []error
	// sets are those of a program of which nothing else was applied, zero if
	// the newest was applied as a whole.
	sets rules.Program
	// cost is how long an application takes.
	cost time.Duration
}

func (k *fakeKernel) Apply(_ context.Context, p rules.Program, between func() error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	time.Sleep(k.cost)
	if len(k.errors) > 0 {
		err := k.errors[0]
		k.errors = k.errors[1:]
		return err
	}
	k.sets = p
	if err := between(); err != nil {
		return err
	}
	k.sets = rules.Program{}
	k.programs = append(k.programs, p)
	return nil
}

func (k *fakeKernel) Remove(_ context.Context, f rules.Family) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.removed = append(k.removed, f)
	return nil
}

// bench is an engine at work inside a synctest bubble, where time passes only
// when nobody has anything to do.
type bench struct {
	*testing.T
	client *fake.Clientset
	kernel *fakeKernel
	mu     sync.Mutex
	// want is what Run is to return at the end.
	want error
	// control and controlErr are what the engine reads next.
	control    Control
	controlErr error
	states     []State
}

// inBubble runs an engine of node1 with a server Pod there, a policy that
// admits app=client to it, and waits for the first sync.
func inBubble(t *testing.T, test func(*bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := &bench{T: t, kernel: &fakeKernel{}, client: fake.NewClientset(
			&corev1.Node{
				ObjectMeta: metav1.ObjectMeta{Name: "node1"},
				Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
					{Type: corev1.NodeHostName, Address: "node1"},
					{Type: corev1.NodeInternalIP, Address: "192.0.2.1"},
				}},
			},
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
			podObject("server", "192.0.2.1", "10.0.1.1"),
			&networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "admit"},
				Spec: networkingv1.NetworkPolicySpec{
					PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
					PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
					Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{
						PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}},
					}}}},
				},
			},
		)}
		engine := New(Options{
			Client: b.client, Node: "node1", Kernel: b.kernel,
			Rules:   rules.Options{Families: []rules.Family{rules.IPv4, rules.IPv6}},
			Control: b.readControl, SyncPeriod: 5 * time.Minute, Clock: clock.RealClock{},
			Report: func(s State) {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.states = append(b.states, s)
			},
		})
		done := make(chan error, 1)
		go func() { done <- engine.Run(ctx) }()
		b.pass(time.Second)
		if got, want := b.syncs(), 1; got < want {
			t.Fatalf("%d syncs at the start, want at least %d", got, want)
		}
		test(b)
		cancel()
		if err := <-done; !errors.Is(err, b.want) {
			t.Errorf("Run: %v, want %v", err, b.want)
		}
	})
}

// podObject is a Pod of namespace shop whose app is the first word of its
// name.
func podObject(name, hostIP, ip string) *corev1.Pod {
	app, _, _ := strings.Cut(name, "-")
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name), Labels: map[string]string{"app": app}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, HostIP: hostIP, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		},
	}
}

func (b *bench) readControl() (Control, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.control, b.controlErr
}

func (b *bench) set(c Control) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.control = c
}

// pass lets time pass, and what is due in it happen.
func (b *bench) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (b *bench) create(name, hostIP, ip string) {
	b.Helper()
	if _, err := b.client.CoreV1().Pods("shop").Create(b.Context(), podObject(name, hostIP, ip), metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) syncs() int {
	b.kernel.mu.Lock()
	defer b.kernel.mu.Unlock()
	return len(b.kernel.programs)
}

func (b *bench) state() State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.states[len(b.states)-1]
}

// table is the newest IPv4 table.
func (b *bench) table() rules.Table {
	b.kernel.mu.Lock()
	defer b.kernel.mu.Unlock()
	return b.kernel.programs[len(b.kernel.programs)-1].Tables[0]
}

// peers are the members of the policy's set of peers, nil if there is none.
func (b *bench) peers() []string {
	var members []string
	for _, s := range b.table().Sets {
		if !strings.HasPrefix(s.Name, "KUBE-SRC-") {
			continue
		}
		for _, m := range s.Members {
			members = append(members, m.Entry)
		}
	}
	slices.Sort(members)
	return members
}

// podRules maps each local Pod to "open" or to the policies that it runs
// through.
func (b *bench) podRules() map[string]string {
	b.Helper()
	restore, err := b.table().FilterRestore("")
	if err != nil {
		b.Fatal(err)
	}
	chains, err := capture.Filter(restore)
	if err != nil {
		b.Fatal(err)
	}
	result := map[string]string{}
	for name, rulesOf := range chains {
		pod, ok := strings.CutPrefix(name, "pod shop/")
		if !ok {
			continue
		}
		result[pod] = "empty"
		for _, r := range rulesOf {
			if strings.Contains(r, `"default ingress"`) {
				result[pod] = "open"
			}
			if _, policy, ok := strings.Cut(r, "-j <policy shop/"); ok {
				result[pod] = strings.TrimSuffix(policy, ">")
			}
		}
	}
	return result
}

func (b *bench) wantPeers(when string, want ...string) {
	b.Helper()
	if diff := cmp.Diff(want, b.peers()); diff != "" {
		b.Errorf("peers %s (-want +got):\n%s", when, diff)
	}
}

func TestEventsAreSynced(t *testing.T) {
	inBubble(t, func(b *bench) {
		if diff := cmp.Diff(map[string]string{"server": "admit"}, b.podRules()); diff != "" {
			b.Errorf("local pods (-want +got):\n%s", diff)
		}
		before := b.syncs()
		b.create("client-1", "192.0.2.2", "10.0.2.1")
		b.pass(time.Millisecond)
		b.wantPeers("after a Pod came", "10.0.2.1")
		if got, want := b.syncs(), before+1; got != want {
			b.Errorf("%d syncs, want %d", got, want)
		}

		p := podObject("client-1", "192.0.2.2", "10.0.2.1")
		p.Annotations = map[string]string{"nobody": "cares"}
		if _, err := b.client.CoreV1().Pods("shop").Update(b.Context(), p, metav1.UpdateOptions{}); err != nil {
			b.Fatal(err)
		}
		b.pass(time.Second)
		if got, want := b.syncs(), before+1; got != want {
			b.Errorf("%d syncs after an update of annotations, want %d", got, want)
		}

		p.Status.Phase = corev1.PodSucceeded
		if _, err := b.client.CoreV1().Pods("shop").Update(b.Context(), p, metav1.UpdateOptions{}); err != nil {
			b.Fatal(err)
		}
		b.pass(time.Second)
		b.wantPeers("after the Pod finished")

		if err := b.client.NetworkingV1().NetworkPolicies("shop").Delete(b.Context(), "admit", metav1.DeleteOptions{}); err != nil {
			b.Fatal(err)
		}
		b.pass(time.Second)
		if diff := cmp.Diff(map[string]string{"server": "open"}, b.podRules()); diff != "" {
			b.Errorf("local pods after the policy went (-want +got):\n%s", diff)
		}
		before = b.syncs()
		b.pass(5 * time.Minute)
		if got, want := b.syncs(), before+1; got != want {
			b.Errorf("%d syncs after a period without events, want %d", got, want)
		}
	})
}

func TestBurstDuringSyncCostsOneMore(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.kernel.cost = time.Second
		before := b.syncs()
		for i := range 20 {
			b.create(fmt.Sprintf("client-%d", i), "192.0.2.2", fmt.Sprintf("10.0.2.%d", i+1))
			time.Sleep(10 * time.Millisecond)
		}
		b.pass(5 * time.Second)
		if got, want := b.syncs(), before+2; got != want {
			b.Errorf("%d syncs, want %d", got, want)
		}
		if got, want := len(b.peers()), 20; got != want {
			b.Errorf("%d peers, want %d", got, want)
		}
	})
}

func TestLagAppliesAnOlderSnapshot(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.set(Control{Lag: metav1.Duration{Duration: 4 * time.Second}})
		b.pass(10 * time.Second)
		b.create("client-1", "192.0.2.2", "10.0.2.1")
		b.pass(time.Second)
		b.create("client-2", "192.0.2.2", "10.0.2.2")
		b.pass(2 * time.Second)
		b.wantPeers("during the lag")
		b.pass(1500 * time.Millisecond)
		b.wantPeers("after the lag of the first", "10.0.2.1")
		b.pass(4 * time.Second)
		b.wantPeers("after the lag of the second", "10.0.2.1", "10.0.2.2")

		b.create("client-3", "192.0.2.2", "10.0.2.3")
		b.pass(time.Second)
		b.set(Control{})
		b.pass(100 * time.Millisecond)
		b.wantPeers("after the lag was taken back", "10.0.2.1", "10.0.2.2", "10.0.2.3")
	})
}

func TestPodLagHidesYoungAddresses(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.set(Control{PodLag: metav1.Duration{Duration: 3 * time.Second}})
		b.pass(5 * time.Second)
		b.create("client-1", "192.0.2.2", "10.0.2.1")
		b.pass(2 * time.Second)
		b.create("client-2", "192.0.2.2", "10.0.2.2")
		b.wantPeers("while both are young")
		b.pass(1100 * time.Millisecond)
		b.wantPeers("when the first is old enough", "10.0.2.1")
		b.pass(2 * time.Second)
		b.wantPeers("when both are", "10.0.2.1", "10.0.2.2")
	})
}

func TestHalfProgrammedPodIsCompletedBySecondSync(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.set(Control{HalfProgrammed: true, Lag: metav1.Duration{Duration: 2 * time.Second}})
		b.pass(5 * time.Second)
		b.create("server-2", "192.0.2.1", "10.0.1.2")
		b.pass(2500 * time.Millisecond)
		if diff := cmp.Diff(map[string]string{"server": "admit", "server-2": "open"}, b.podRules()); diff != "" {
			b.Errorf("local pods after the first sync (-want +got):\n%s", diff)
		}
		if members := allMembers(b.table()); slices.Contains(members, "10.0.1.2") {
			b.Errorf("a half-programmed Pod is in a set: %q", members)
		}
		b.pass(2 * time.Second)
		if diff := cmp.Diff(map[string]string{"server": "admit", "server-2": "admit"}, b.podRules()); diff != "" {
			b.Errorf("local pods after the second sync (-want +got):\n%s", diff)
		}
	})
}

func allMembers(table rules.Table) []string {
	members := map[string]bool{}
	for _, s := range table.Sets {
		for _, m := range s.Members {
			members[m.Entry] = true
		}
	}
	return slices.Sorted(maps.Keys(members))
}

func TestStaleSyncLandsOnceOverNewerState(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.set(Control{StaleSync: metav1.Duration{Duration: 3 * time.Second}})
		b.pass(100 * time.Millisecond)
		if !b.state().StaleKept {
			b.Fatal("no snapshot kept")
		}
		b.create("client-1", "192.0.2.2", "10.0.2.1")
		b.pass(time.Second)
		b.wantPeers("from a newer snapshot", "10.0.2.1")
		// With a lag the repair takes as long.
		b.set(Control{StaleSync: metav1.Duration{Duration: 3 * time.Second}, Lag: metav1.Duration{Duration: time.Second}})
		b.pass(2500 * time.Millisecond)
		b.wantPeers("after the older snapshot landed")
		if got := b.state(); got.Stale != 1 || got.StaleKept {
			b.Errorf("state is %+v, want one stale sync and no snapshot kept", got)
		}
		b.pass(time.Second)
		b.wantPeers("after the repair", "10.0.2.1")
		b.pass(time.Minute)
		if got, want := b.state().Stale, 1; got != want {
			b.Errorf("%d stale syncs, want %d", got, want)
		}
	})
}

func TestStaleSyncWaitsForNewerOne(t *testing.T) {
	inBubble(t, func(b *bench) {
		before := b.syncs()
		b.set(Control{StaleSync: metav1.Duration{Duration: time.Nanosecond}})
		b.pass(time.Second)
		// The newer one, the kept one and the repair.
		if got, want := b.syncs(), before+3; got != want {
			b.Errorf("%d syncs, want %d", got, want)
		}
	})
}

func TestFreezeGivesUpSyncAndThawMakesFreshOne(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.set(Control{Lag: metav1.Duration{Duration: time.Second}})
		b.pass(3 * time.Second)
		b.create("client-1", "192.0.2.2", "10.0.2.1")
		b.pass(500 * time.Millisecond)
		before := b.syncs()
		b.set(Control{Freeze: true})
		b.pass(time.Second)
		if !b.state().Frozen {
			b.Error("not at rest a second after the freeze")
		}
		b.create("client-2", "192.0.2.2", "10.0.2.2")
		b.pass(time.Hour)
		if got := b.syncs(); got != before {
			b.Errorf("%d syncs, want %d: nothing while frozen", got, before)
		}
		b.set(Control{})
		b.pass(100 * time.Millisecond)
		b.wantPeers("after the thaw", "10.0.2.1", "10.0.2.2")
		if b.state().Frozen {
			b.Error("still frozen after the thaw")
		}
	})
}

func TestCorruptionLastsAsLongAsItsSwitch(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.create("client-1", "192.0.2.2", "10.0.2.1")
		b.set(Control{DropAddresses: []string{"10.0.2.1"}, FlushPodChains: true})
		b.pass(100 * time.Millisecond)
		b.wantPeers("with its address dropped")
		if diff := cmp.Diff(map[string]string{"server": "empty"}, b.podRules()); diff != "" {
			b.Errorf("local pods (-want +got):\n%s", diff)
		}
		b.set(Control{})
		b.pass(100 * time.Millisecond)
		b.wantPeers("afterwards", "10.0.2.1")
	})
}

func TestIPv6OffRemovesOnce(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.set(Control{IPv6Off: true})
		b.pass(100 * time.Millisecond)
		b.create("client-1", "192.0.2.2", "10.0.2.1")
		b.pass(time.Second)
		if diff := cmp.Diff([]rules.Family{rules.IPv6}, b.kernel.removed); diff != "" {
			b.Errorf("removed (-want +got):\n%s", diff)
		}
		if got := b.kernel.programs[len(b.kernel.programs)-1].Tables; len(got) != 1 || got[0].Family != rules.IPv4 {
			b.Errorf("%d tables, want IPv4 only", len(got))
		}
		b.set(Control{})
		b.pass(time.Second)
		if got := b.kernel.programs[len(b.kernel.programs)-1].Tables; len(got) != 2 {
			b.Errorf("%d tables, want both families again", len(got))
		}
	})
}

func TestFailedSyncIsReportedAndRepeated(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.kernel.errors = []error{errors.New("set is busy")}
		b.create("client-1", "192.0.2.2", "10.0.2.1")
		b.pass(500 * time.Millisecond)
		b.wantPeers("after the failure")
		if got, want := b.state().Error, "set is busy"; got != want {
			b.Errorf("error %q, want %q", got, want)
		}
		b.pass(time.Second)
		b.wantPeers("after the second attempt", "10.0.2.1")
		if got := b.state().Error; got != "" {
			b.Errorf("error %q after success", got)
		}
	})
}

func TestCrashLeavesNewSetsUnderOldRules(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.set(Control{Freeze: true})
		b.pass(time.Second)
		b.create("client-1", "192.0.2.2", "10.0.2.1")
		b.pass(time.Second)
		b.want = ErrCrashed
		b.set(Control{Crash: CrashBetween})
		b.pass(time.Second)
		if !b.state().Crashed {
			t.Errorf("state is %+v, want crashed", b.state())
		}
		b.wantPeers("in the last whole sync")
		if got, want := allMembers(b.kernel.sets.Tables[0]), "10.0.2.1"; !slices.Contains(got, want) {
			t.Errorf("sets hold %v, want %s among them", got, want)
		}
		syncs := b.syncs()
		b.pass(time.Hour)
		if got := b.syncs(); got != syncs {
			t.Errorf("%d syncs after the crash", got-syncs)
		}
	})
}

func TestSwitchThatCrashedOneEngineLetsTheNextRun(t *testing.T) {
	e := New(Options{Control: func() (Control, error) { return Control{Crash: CrashBetween}, nil }})
	e.readControl()
	if err := e.between(); err != nil {
		t.Errorf("an engine that starts with the switch: %v", err)
	}
	e.options.Control = func() (Control, error) { return Control{}, nil }
	e.readControl()
	e.options.Control = func() (Control, error) { return Control{Crash: CrashBetween, FlushPodChains: true}, nil }
	e.readControl()
	if err := e.between(); !errors.Is(err, ErrCrashed) {
		t.Errorf("one whose switch is turned on: %v, want a crash", err)
	}
	e.options.Control = func() (Control, error) { return Control{}, nil }
	e.readControl()
	if err := e.between(); err != nil {
		t.Errorf("one whose switch is turned off in time: %v", err)
	}
}

func TestUnreadableControlKeepsTheLastOne(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.set(Control{Freeze: true})
		b.pass(time.Second)
		b.mu.Lock()
		b.controlErr = errors.New("half a file")
		reports := len(b.states)
		b.mu.Unlock()
		b.pass(time.Minute)
		if got := b.state(); !got.Frozen || got.Error != "half a file" {
			b.Errorf("state is %+v, want frozen and the error", got)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if got, want := len(b.states)-reports, 1; got != want {
			b.Errorf("one error was reported %d times, want %d", got, want)
		}
	})
}

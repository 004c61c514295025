// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/api/v1alpha1"
)

func TestEachKindHasANameOfItsOwnAndABeginning(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Kinds() {
		if k.Name == "" || seen[k.Name] || k.Begin == nil || k.Least < 0 {
			t.Errorf("kind %+v", k)
		}
		seen[k.Name] = true
	}
}

func TestWhatIsSevered(t *testing.T) {
	for name, tc := range map[string]struct {
		severs func(a, b string) bool
		want   []string // pairs of n1, n2, n3
	}{
		"two nodes are severed from each other alone":         {pair("n1", "n2"), []string{"n1n2", "n2n1"}},
		"a node is severed from all others but not in itself": {around("n2"), []string{"n1n2", "n2n1", "n2n3", "n3n2"}},
		"a node that is off is severed in itself, too":        {without("n3"), []string{"n1n3", "n2n3", "n3n1", "n3n2", "n3n3"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			nodes := []string{"n1", "n2", "n3"}
			for _, a := range nodes {
				for _, b := range nodes {
					if tc.severs(a, b) {
						got = append(got, a+b)
					}
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestMomentBetweenSetsAndRules(t *testing.T) {
	var (
		none    [][]string
		save    = [][]string{{"iptables-save", "-t", "filter"}}
		list    = [][]string{{"ipset", "list", "-name"}}
		sets    = [][]string{{"/usr/sbin/ipset", "restore", "-exist"}}
		rules   = [][]string{{"iptables-restore", "--wait"}}
		version = [][]string{{"nft", "--version"}}
		nft     = [][]string{{"/usr/sbin/nft", "-f", "-"}}
	)
	for name, tc := range map[string]struct {
		looks [][][]string
		want  int // the look at which the moment is; -1: at none
	}{
		"an idle engine has none":                      {[][][]string{none, none}, -1},
		"it is when the sets are written":              {[][][]string{none, save, sets, sets, none, rules}, 4},
		"it is not missed if the rules are next":       {[][][]string{sets, rules}, 1},
		"reading sets is not writing them":             {[][][]string{list, none, save, none}, -1},
		"with nft it is while the transaction is made": {[][][]string{version, none, nft}, 2},
		"the sets of two families are two writings":    {[][][]string{sets, none}, 1},
		"rules without sets before are a later moment": {[][][]string{rules, none, sets, none}, 3},
		"a child beside the one that writes is no end": {[][][]string{sets, slices.Concat(sets, save), none}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			var m moment
			got := slices.IndexFunc(tc.looks, m.between)
			if got != tc.want {
				t.Errorf("the moment is at look %d, want %d", got, tc.want)
			}
		})
	}
}

func TestChildrenAreThoseThatRun(t *testing.T) {
	sleeps := func() bool {
		all, err := children(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(all, func(argv []string) bool { return slices.Equal(argv, []string{"sleep", "60"}) })
	}
	if sleeps() {
		t.Fatal("there is a child before it is started")
	}
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for !sleeps() {
		runtime.Gosched() // the kernel sets the command line last
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// Killed and not collected: a zombie.
	if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid)); err != nil {
		t.Errorf("the child has not stayed: %v", err)
	}
	for sleeps() {
		runtime.Gosched() // the signal is on its way
	}
	_ = cmd.Wait() // killed
	if _, err := children(cmd.Process.Pid); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("children of what is gone: %v", err)
	}
}

func TestGatedPods(t *testing.T) {
	pod := func(name string, change func(*corev1.Pod)) corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}
		p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.org/other"}, {ConditionType: v1alpha1.ConditionProgrammed}}
		p.Status.PodIP = "10.0.0.1"
		change(&p)
		return p
	}
	got := gated([]corev1.Pod{
		pod("held or open", func(*corev1.Pod) {}),
		pod("without a gate", func(p *corev1.Pod) { p.Spec.ReadinessGates = p.Spec.ReadinessGates[:1] }),
		pod("without an address", func(p *corev1.Pod) { p.Status.PodIP = "" }),
		pod("on its way out", func(p *corev1.Pod) { p.DeletionTimestamp = new(metav1.Now()) }),
		pod("done", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
		pod("failed", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }),
		pod("running", func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning }),
	})
	var names []string
	for _, p := range got {
		names = append(names, p.Name)
	}
	if want := []string{"held or open", "running"}; !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ungated

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/v1alpha1"
)

type teller struct {
	mu   sync.Mutex // guards told
	told []string
}

func (t *teller) TellUngated(p Pod) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.told = append(t.told, fmt.Sprintf("%s/%s %s %t", p.Namespace, p.Name, p.UID, p.Asks))
}

func TestMissedPodsAreToldOnceTheYoungestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, heard := newIndex(), &teller{}
		x.SetNamespace(space("shop", true))
		set := func(namespace, name, uid string, age time.Duration, change func(*corev1.Pod)) {
			x.SetPod(pod(namespace, name, func(p *corev1.Pod) {
				p.UID, p.CreationTimestamp = types.UID(uid), metav1.NewTime(time.Now().Add(-age))
				change(p)
			}))
		}
		plain := func(*corev1.Pod) {}
		gated := func(p *corev1.Pod) {
			p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: v1alpha1.ConditionProgrammed}}
		}
		set("shop", "older-than-the-label", "0", 2*time.Hour, plain)
		set("shop", "gated", "g", 90*time.Minute, gated)
		set("shop", "old", "1", time.Hour, plain)
		set("shop", "young", "2", time.Minute, plain)
		set("bank", "asks", "3", 2*time.Minute, annotated("true"))
		set("bank", "does-not", "4", time.Hour, plain)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- NewNotifier(x, heard, clock.RealClock{}).Start(ctx) }()
		// hears returns what was told since it was last asked.
		hears := func(after time.Duration) []string {
			time.Sleep(after)
			synctest.Wait()
			heard.mu.Lock()
			defer heard.mu.Unlock()
			told := heard.told
			heard.told = nil
			return told
		}
		want := func(what string, got []string, want ...string) {
			t.Helper()
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", what, diff)
			}
		}
		want("at first", hears(pass+time.Second), "shop/young 2 false", "bank/asks 3 true", "shop/old 1 false")
		set("shop", "young", "2", time.Minute, plain)
		want("later nothing is news", hears(10*pass))
		x.SetNamespace(space("bank", true))
		want("a namespace is labelled", hears(pass))
		set("bank", "gated", "h", time.Minute, gated)
		x.DeletePod(pod("bank", "gated", plain))
		want("it has a Pod with a gate for a while", hears(pass))
		set("bank", "later", "6", time.Second, plain)
		want("a Pod without one comes after that", hears(pass), "bank/later 6 false")
		x.DeletePod(pod("shop", "young", plain))
		set("shop", "young", "5", 0, plain)
		want("another Pod of the same name", hears(pass), "shop/young 5 false")
		// Two of shop, older and young, were told before.
		for i := range 2 * perNamespace {
			set("shop", fmt.Sprintf("p%d", i), fmt.Sprintf("u%d", i), time.Minute, plain)
		}
		left := perNamespace - 2
		for left > 0 {
			n := min(left, perPass)
			if got := len(hears(pass)); got != n {
				t.Errorf("a pass over many tells %d, want %d", got, n)
			}
			left -= n
		}
		want("a namespace knows enough", hears(10*pass))
		for i := range 2 * perNamespace {
			x.DeletePod(pod("shop", fmt.Sprintf("p%d", i), plain))
		}
		set("shop", "again", "7", 0, plain)
		want("those that were told are gone", hears(pass), "shop/again 7 false")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

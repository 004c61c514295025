// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ungated

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

type teller struct{ told []string }

func (t *teller) TellUngated(p Pod) {
	t.told = append(t.told, fmt.Sprintf("%s/%s %s %t", p.Namespace, p.Name, p.UID, p.Asks))
}

func TestEachPodIsToldOnceTheYoungestFirst(t *testing.T) {
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
		set("shop", "old", "1", time.Hour, plain)
		set("shop", "young", "2", time.Minute, plain)
		set("bank", "asks", "3", 2*time.Minute, annotated("true"))
		set("bank", "does-not", "4", time.Second, plain)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- NewNotifier(x, heard, clock.RealClock{}).Start(ctx) }()
		// hears returns what was told since it was last asked.
		hears := func(after time.Duration) []string {
			time.Sleep(after)
			synctest.Wait()
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
		want("a namespace is labelled", hears(pass), "bank/does-not 4 false")
		x.DeletePod(pod("shop", "young", plain))
		set("shop", "young", "5", 0, plain)
		want("another Pod of the same name", hears(pass), "shop/young 5 false")
		for i := range 2*perPass + 1 {
			set("shop", fmt.Sprintf("p%d", i), fmt.Sprintf("u%d", i), time.Hour, plain)
		}
		for i, n := range []int{perPass, perPass, 1, 0} {
			if got := len(hears(pass)); got != n {
				t.Errorf("pass %d over many tells %d, want %d", i, got, n)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/policygate/policygate/api/v1alpha1"
)

func TestAnAnswerIsMeasuredByItsResult(t *testing.T) {
	cases := map[string]struct {
		namespaces  *knownNamespaces
		annotations map[string]string
		hostNetwork bool
		want        string
	}{
		"a Pod that gets the gate": {namespaces: &knownNamespaces{knownFrom: 1}, want: resultGated},
		"a Pod that opts out": {
			namespaces: &knownNamespaces{knownFrom: 1}, annotations: map[string]string{v1alpha1.KeyInject: "false"}, want: resultPassed,
		},
		"a Pod with its node's address": {namespaces: &knownNamespaces{knownFrom: 1}, hostNetwork: true, want: resultPassed},
		"a malformed annotation": {
			namespaces: &knownNamespaces{knownFrom: 1}, annotations: map[string]string{v1alpha1.KeyTimeout: "1"}, want: resultDenied,
		},
		"a namespace that cannot be looked up": {namespaces: &knownNamespaces{err: errors.New("not started")}, want: resultError},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			registry := prometheus.NewRegistry()
			d := newDefaulter(tc.namespaces)
			d.Metrics, d.Clock = NewMetrics(registry), clocktesting.NewFakeClock(metav1.Now().Time)
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Annotations: tc.annotations}}
			pod.Spec.HostNetwork = tc.hostNetwork
			if err := d.Default(t.Context(), pod); (err != nil) != (tc.want == resultDenied || tc.want == resultError) {
				t.Errorf("error %v, want it for denied and error only", err)
			}
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range families[0].GetMetric() {
				want := uint64(0)
				if m.GetLabel()[0].GetValue() == tc.want {
					want = 1
				}
				if got := m.GetHistogram().GetSampleCount(); got != want {
					t.Errorf("%d answers are %s, want %d", got, m.GetLabel()[0].GetValue(), want)
				}
			}
			if n := len(families[0].GetMetric()); n != 4 {
				t.Errorf("%d results are there from the start, want 4", n)
			}
			if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
				t.Errorf("lint: %v, %v", problems, err)
			}
		})
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package barrier

import "github.com/prometheus/client_golang/prometheus"

// metrics are what a Barrier counts.
type metrics struct {
	lists *prometheus.CounterVec
}

// newMetrics returns metrics that are registered with r, if it is not nil.
func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{lists: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "policygate_barrier_lists_total",
		Help: "Consistent LISTs of metadata that this replica had answered for Pods that wait, by kind and by whether they failed.",
	}, []string{"kind", "failed"})}
	for _, kind := range []Kind{NetworkPolicies, Namespaces} {
		for _, failed := range []string{"false", "true"} {
			m.lists.WithLabelValues(string(kind), failed)
		}
	}
	if r != nil {
		r.MustRegister(m.lists)
	}
	return m
}

func (m *metrics) listed(kind Kind, err error) {
	failed := "false"
	if err != nil {
		failed = "true"
	}
	m.lists.WithLabelValues(string(kind), failed).Inc()
}

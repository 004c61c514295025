// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	traces *prometheus.CounterVec
	took   prometheus.Histogram
	waits  *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	factory := promauto.With(registerer)
	return &metrics{
		traces: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_agent_ovn_traces_total",
			Help: "Packets that ovs-vswitchd was asked to trace through OVN's flows, by result (output, dropped, unclear, or error if it did not answer).",
		}, []string{"result"}),
		took: factory.NewHistogram(prometheus.HistogramOpts{
			Name: "policygate_agent_ovn_trace_seconds",
			Help: "How long ovs-vswitchd took to answer a trace. Traces together take at most 5 % of the time.",
			// 0.1 ms to 3 s: some hundred flows to a vswitchd that is starved.
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}),
		waits: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_agent_ovn_revalidator_waits_total",
			Help: "Cycles of ovs-vswitchd's flow cache that were waited for before what traces say counts, by result (ok or error).",
		}, []string{"result"}),
	}
}

// ended counts a trace by its end.
func (m *metrics) ended(e end) {
	result := "unclear"
	switch e {
	case output:
		result = "output"
	case dropped:
		result = "dropped"
	case unclear:
	}
	m.traces.WithLabelValues(result).Inc()
}

func (m *metrics) waited(err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.waits.WithLabelValues(result).Inc()
}

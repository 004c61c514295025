// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are what a Ledger counts. Labels are reasons alone, of which there
// are three.
type Metrics struct {
	openings *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	shut     prometheus.Gauge
	stalled  prometheus.Gauge
	stale    prometheus.Gauge
	deviates prometheus.Gauge
	learnt   prometheus.Counter
}

// NewMetrics returns metrics that are registered with r.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		openings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_gates_opened_total",
			Help: "Gates that this replica saw open after it had waited for them, by the condition's reason.",
		}, []string{"reason"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "policygate_gate_open_seconds",
			Help:    "Time from a Pod's addresses being seen to its gate being seen open, for gates that this replica released.",
			Buckets: prometheus.ExponentialBuckets(0.05, 2, 14),
		}, []string{"reason"}),
		shut: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "policygate_gates_shut",
			Help: "Gated Pods whose gate is shut at present.",
		}),
		stalled: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "policygate_nodes_stalled",
			Help: "Nodes that have confirmed nothing for two minutes while Pods waited for them; they bind only their own Pods.",
		}),
		stale: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "policygate_subjects_stale",
			Help: "Gated Pods that wait for what must be confirmed of them to be computed again.",
		}),
		deviates: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "policygate_deviations",
			Help: "Rules on nodes that the policy engine there was seen not to realize, and that hold no Pods any more.",
		}),
		learnt: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "policygate_deviations_learned_total",
			Help: "How often a rule on a node was found not to be realized.",
		}),
	}
	r.MustRegister(m.openings, m.seconds, m.shut, m.stalled, m.stale, m.deviates, m.learnt)
	return m
}

func (m *Metrics) opened(reason string, after time.Duration, released bool) {
	m.openings.WithLabelValues(reason).Inc()
	if released {
		m.seconds.WithLabelValues(reason).Observe(after.Seconds())
	}
}

func (m *Metrics) waiting(shut, stalled, stale, deviations int) {
	m.shut.Set(float64(shut))
	m.stalled.Set(float64(stalled))
	m.stale.Set(float64(stale))
	m.deviates.Set(float64(deviations))
}

func (m *Metrics) learned() { m.learnt.Inc() }

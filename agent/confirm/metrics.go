// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/policygate/policygate/api/flow"
)

type metrics struct {
	looks       *prometheus.CounterVec
	duration    prometheus.Histogram
	verdicts    *prometheus.CounterVec
	assignments *prometheus.GaugeVec
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	factory := promauto.With(registerer)
	return &metrics{
		looks: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_agent_looks_total",
			Help: "Snapshots of the node's dataplane that were taken, by result (ok or error).",
		}, []string{"result"}),
		duration: factory.NewHistogram(prometheus.HistogramOpts{
			Name: "policygate_agent_look_duration_seconds",
			Help: "How long a snapshot of the node's dataplane took, without the verdicts on it.",
			// 1 ms to 8 s: an idle node to the largest rulesets.
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		verdicts: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_agent_verdicts_total",
			Help: "Verdicts that were computed on snapshots, by answer. Observed, not what any policy desires.",
		}, []string{"answer"}),
		assignments: factory.NewGaugeVec(prometheus.GaugeOpts{
			Name: "policygate_agent_assignments",
			Help: "Different assignments that this node looks after, by whether it confirms them at present.",
		}, []string{"confirmed"}),
	}
}

func (m *metrics) looked(took time.Duration, err error) {
	if err != nil {
		m.looks.WithLabelValues("error").Inc()
		return
	}
	m.looks.WithLabelValues("ok").Inc()
	m.duration.Observe(took.Seconds())
}

func (m *metrics) judged(a flow.Answer) {
	m.verdicts.WithLabelValues(a.String()).Inc()
}

func (m *metrics) held(confirmed, unconfirmed int) {
	m.assignments.WithLabelValues("true").Set(float64(confirmed))
	m.assignments.WithLabelValues("false").Set(float64(unconfirmed))
}

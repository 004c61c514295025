// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	looks    *prometheus.CounterVec
	duration prometheus.Histogram
	verdicts *prometheus.CounterVec
	asked    *prometheus.CounterVec
	notices  *prometheus.CounterVec
	drift    *prometheus.CounterVec
	// programming has the roles.
	programming *prometheus.HistogramVec
}

// The roles of a subject on this node.
const (
	roleOwn    = "own"
	rolePeer   = "peer"
	rolePolicy = "policy"
)

// The kinds of drift.
const (
	driftVerdict     = "verdict"
	driftUnsupported = "unsupported"
)

// newMetrics exposes the metrics. held returns how many evaluations are, or are
// not, confirmed.
func newMetrics(registerer prometheus.Registerer, held func(confirmed bool) float64) *metrics {
	factory := promauto.With(registerer)
	m := &metrics{
		looks: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_agent_looks_total",
			Help: "Snapshots of the node's dataplane that were taken, by result (ok or error).",
		}, []string{"result"}),
		duration: factory.NewHistogram(prometheus.HistogramOpts{
			Name: "policygate_agent_look_duration_seconds",
			Help: "How long a look at the node's dataplane took, with all verdicts that were asked of it.",
			// 0.1 ms to 3 s: nothing changed to the largest rulesets.
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}),
		verdicts: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_agent_verdicts_total",
			Help: "Verdicts that were given on looks, by answer. Observed, not what any policy desires.",
		}, []string{"answer"}),
		asked: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_agent_flows_asked_total",
			Help: "Flows that were asked about on looks: traced through the rules, or rechecked because nothing that the verdict rests on had changed.",
		}, []string{"how"}),
		notices: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_agent_notices_total",
			Help: "Notices that the node's rules may have changed, by source. None are taken while nothing is pending.",
		}, []string{"source"}),
		drift: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_agent_drift_total",
			Help: "Audits that found that what had long been confirmed no longer holds (verdict), or that the dataplane can no longer be seen (unsupported).",
		}, []string{"kind"}),
	}
	m.programming = factory.NewHistogramVec(prometheus.HistogramOpts{
		Name: "policygate_agent_programming_seconds",
		Help: "Time from when the node was first asked about a Pod at its addresses that runs here (own) or elsewhere (peer), or " +
			"about a generation of a policy, until its rules were first seen to do all that is required: the policy engine's " +
			"sync as seen from outside. It includes the two looks that it takes, at least 50 ms, also where the rules were there " +
			"before. What was never confirmed is not in it.",
		// Those of all such latencies, so that they can be compared: 50 ms
		// doubling to about 400 s.
		Buckets: prometheus.ExponentialBuckets(0.05, 2, 14),
	}, []string{"role"})
	for _, role := range []string{roleOwn, rolePeer, rolePolicy} {
		m.programming.WithLabelValues(role)
	}
	for _, confirmed := range []bool{true, false} {
		factory.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "policygate_agent_assignments",
			Help:        "Different assignments that this node looks after, by whether it confirms them at present.",
			ConstLabels: prometheus.Labels{"confirmed": strconv.FormatBool(confirmed)},
		}, func() float64 { return held(confirmed) })
	}
	for _, kind := range []string{driftVerdict, driftUnsupported} {
		m.drift.WithLabelValues(kind)
	}
	return m
}

func (m *metrics) looked(err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.looks.WithLabelValues(result).Inc()
}

func (m *metrics) took(d time.Duration) { m.duration.Observe(d.Seconds()) }

func (m *metrics) judged(answers []Answer) {
	for _, a := range answers {
		m.verdicts.WithLabelValues(a.Verdict.Answer.String()).Inc()
		how := "rechecked"
		if a.Traced {
			how = "traced"
		}
		m.asked.WithLabelValues(how).Inc()
	}
}

func (m *metrics) noticed(source string) { m.notices.WithLabelValues(source).Inc() }

func (m *metrics) programmed(role string, took time.Duration) {
	m.programming.WithLabelValues(role).Observe(took.Seconds())
}

func (m *metrics) drifted(kind string) { m.drift.WithLabelValues(kind).Inc() }

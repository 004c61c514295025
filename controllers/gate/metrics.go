// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/policygate/policygate/api/v1alpha1"
)

// The values of the label role.
const (
	roleOwn  = "own"
	rolePeer = "peer"
)

// reasonOther stands for reasons that are none of ours: whoever may write Pods'
// status can make up any.
const reasonOther = "Other"

// openReasons are those of an open gate.
func openReasons() []string {
	return []string{
		v1alpha1.ReasonConfirmed, v1alpha1.ReasonPartiallyConfirmed, v1alpha1.ReasonEngineDeviates, v1alpha1.ReasonUninstalled,
	}
}

// Metrics are what a Ledger counts.
type Metrics struct {
	openings    *prometheus.CounterVec
	seconds     *prometheus.HistogramVec
	programming *prometheus.HistogramVec
	slowest     prometheus.Histogram
	held        prometheus.Histogram
	timeouts    prometheus.Counter
	notAsked    prometheus.Counter
	batch       prometheus.Histogram
	queued      prometheus.Histogram
	shut        prometheus.Gauge
	pending     prometheus.Gauge
	stalled     prometheus.Gauge
	stale       prometheus.Gauge
	deviates    prometheus.Gauge
	learnt      prometheus.Counter
}

// latencyBuckets reach from 50 ms to about 400 s, in which the quantiles of
// perf-tests' pod_creation_reachability_latency_seconds and of kube-burner's
// netpolLatency lie.
func latencyBuckets() []float64 { return prometheus.ExponentialBuckets(0.05, 2, 14) }

// NewMetrics returns metrics that are registered with r.
func NewMetrics(r prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	m := &Metrics{
		openings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_gates_opened_total",
			Help: "Gates that this replica saw open after it had waited for them, by the condition's reason.",
		}, []string{"reason"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "policygate_gate_open_seconds",
			Help:    "Time from a Pod's addresses being seen to its gate being seen open, for gates that this replica released.",
			Buckets: latencyBuckets(),
		}, []string{"reason"}),
		programming: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "policygate_programming_seconds",
			Help: "Time from this replica seeing a gated Pod's addresses to a node's first confirmation of them, for the Pod's own node and each of its peers' nodes. " +
				"It includes the watch, the agent's two looks and the way back; nodes that are asked nothing and Pods without a gate are not in it.",
			Buckets: latencyBuckets(),
		}, []string{"role"}),
		slowest: histogram("policygate_slowest_node_seconds",
			"Time from this replica seeing a gated Pod's addresses to the first confirmation of the last node that it was awaited from, once for each gate that this replica released. "+
				"Gates that opened without some awaited node, at their timeout or as it was stalled, are not in it.", latencyBuckets()),
		held: histogram("policygate_hold_seconds",
			"Time from the start of a Pod's hold, which the kubelet tells in whole seconds, to its gate being seen open. "+
				"Pods without a hold are not in it, nor those whose hold had run into its timeout by then.", latencyBuckets()),
		timeouts: counter("policygate_gate_timeouts_total",
			"Gated Pods that were not confirmed within their timeout, whether their gates opened as PartiallyConfirmed then, opened later, or never did. Each replica counts."),
		notAsked: counter("policygate_flows_not_asked_total",
			"Flows beyond the limit for one Pod that no node was asked about before its gate was released."),
		batch: histogram("policygate_coverage_batch_size",
			"Gated Pods that the coverage index named at once, as their expectations may have changed or as they wait no more. Pods whose gates are open are touched by nothing.",
			prometheus.ExponentialBuckets(1, 4, 8)),
		queued: histogram("policygate_coverage_queue_seconds",
			"Time from a gated Pod being touched by an event to its expectations being computed, or found to stand. What the API server and the watch take before is not in it.",
			prometheus.ExponentialBuckets(0.0001, 4, 10)),
		shut:    gauge("policygate_gates_shut", "Gated Pods whose gate is shut at present."),
		pending: gauge("policygate_expectations_pending", "Expectations about Pods whose gate is shut, on awaited nodes that have not confirmed all of theirs. Which of them hold by themselves is not told."),
		stalled: gauge("policygate_nodes_stalled",
			"Nodes that have confirmed nothing for as long as --node-stalled-after says while Pods waited for them; they bind only their own Pods."),
		stale: gauge("policygate_subjects_stale",
			"Gated Pods that wait for what must be confirmed of them to be computed again."),
		deviates: gauge("policygate_deviations",
			"Rules on nodes that the policy engine there was seen not to realize, and that hold no Pods any more."),
		learnt: counter("policygate_deviations_learned_total",
			"How often a rule on a node was found not to be realized."),
	}
	for _, role := range []string{roleOwn, rolePeer} {
		m.programming.WithLabelValues(role)
	}
	for _, reason := range openReasons() {
		m.openings.WithLabelValues(reason)
	}
	r.MustRegister(m.openings, m.seconds, m.programming, m.slowest, m.held, m.timeouts, m.notAsked, m.batch, m.queued,
		m.shut, m.pending, m.stalled, m.stale, m.deviates, m.learnt)
	return m
}

// opened counts a gate that was seen open so long after the Pod's addresses.
// released is true if this replica had sent the release.
func (m *Metrics) opened(reason string, after time.Duration, released bool) {
	if !slices.Contains(openReasons(), reason) {
		reason = reasonOther
	}
	m.openings.WithLabelValues(reason).Inc()
	if released {
		m.seconds.WithLabelValues(reason).Observe(after.Seconds())
	}
}

// confirmed counts a node's first confirmation, so long after the addresses.
func (m *Metrics) confirmed(own bool, after time.Duration) {
	role := rolePeer
	if own {
		role = roleOwn
	}
	m.programming.WithLabelValues(role).Observe(after.Seconds())
}

// waiting sets what waits at present.
func (m *Metrics) waiting(shut, pending, stalled, stale, deviations int) {
	m.shut.Set(float64(shut))
	m.pending.Set(float64(pending))
	m.stalled.Set(float64(stalled))
	m.stale.Set(float64(stale))
	m.deviates.Set(float64(deviations))
}

func (m *Metrics) learned() { m.learnt.Inc() }

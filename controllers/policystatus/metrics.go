// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/api/v1alpha1"
)

// Metrics are what a Ledger and its Statuses count, on the elected replica. The
// labels are conditions, their reasons and kinds of writes alone.
type Metrics struct {
	policies *prometheus.GaugeVec
	degraded *prometheus.GaugeVec
	seconds  prometheus.Histogram
	writes   *prometheus.CounterVec
}

// NewMetrics returns metrics that are registered with r.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		policies: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "policygate_policies",
			Help: "NetworkPolicies by whether every node that hosts their Pods was seen to enforce them. Said by the elected replica alone, of policies whose status it has found out.",
		}, []string{"programmed"}),
		degraded: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "policygate_policies_degraded",
			Help: "NetworkPolicies of which something is wrong that waiting does not mend, by the reason of their condition Degraded. Said by the elected replica alone.",
		}, []string{"reason"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "policygate_policy_programming_seconds",
			Help:    "Time from a generation of a NetworkPolicy being seen, or the first Pod of it having an address, to all nodes that host its Pods having been seen to enforce it. Each generation counts once, if the elected replica saw it come.",
			Buckets: prometheus.ExponentialBuckets(0.05, 2, 14),
		}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_policystatus_writes_total",
			Help: "Writes of PolicyStatus objects that the API server took: create, transition (a condition, a generation or the nodes that enforce the policy), numbers (anything else), delete (of an object without a policy).",
		}, []string{"kind"}),
	}
	for _, status := range []metav1.ConditionStatus{metav1.ConditionTrue, metav1.ConditionFalse, metav1.ConditionUnknown} {
		m.policies.WithLabelValues(label(status))
	}
	for _, reason := range []string{
		v1alpha1.PolicyReasonDrifted, v1alpha1.PolicyReasonNotUnderstood,
		v1alpha1.PolicyReasonEngineDeviates, v1alpha1.PolicyReasonUnseen,
	} {
		m.degraded.WithLabelValues(reason)
	}
	for _, kind := range []kind{creation, transition, numbers, deletion} {
		m.writes.WithLabelValues(string(kind))
	}
	r.MustRegister(m.policies, m.degraded, m.seconds, m.writes)
	return m
}

// label is a condition's status as a label.
func label(status metav1.ConditionStatus) string {
	switch status {
	case metav1.ConditionTrue:
		return "true"
	case metav1.ConditionFalse:
		return "false"
	case metav1.ConditionUnknown:
	}
	return "unknown"
}

// counted is how a policy is counted; the zero one is not.
type counted struct {
	programmed metav1.ConditionStatus
	// degraded is a reason, empty if it is not.
	degraded string
}

// count counts a policy as after, no more as before.
func (m *Metrics) count(before, after counted) {
	if before == after {
		return
	}
	add := func(c counted, by float64) {
		if c.programmed != "" {
			m.policies.WithLabelValues(label(c.programmed)).Add(by)
		}
		if c.degraded != "" {
			m.degraded.WithLabelValues(c.degraded).Add(by)
		}
	}
	add(before, -1)
	add(after, 1)
}

func (m *Metrics) took(d time.Duration) { m.seconds.Observe(d.Seconds()) }

func (m *Metrics) wrote(k kind) { m.writes.WithLabelValues(string(k)).Inc() }

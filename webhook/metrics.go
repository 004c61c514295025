// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The values of the label result.
const (
	// resultGated: the Pod has the readiness gate.
	resultGated = "gated"
	// resultPassed: the Pod opts out, or is of a kind that is never gated.
	resultPassed = "passed"
	// resultDenied: an annotation is malformed.
	resultDenied = "denied"
	// resultError: nothing could be said, which denies the Pod, too.
	resultError = "error"
)

// Metrics are what a PodDefaulter counts.
type Metrics struct {
	seconds *prometheus.HistogramVec
}

// NewMetrics returns metrics that are registered with r.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "policygate_webhook_seconds",
		Help: "Time that this replica took to answer for a Pod that is created, by result: gated, passed, denied or error. " +
			"A Pod that the API server asks about twice, or in a dry run, counts each time. " +
			"Pods that it could not ask about are not in it, nor is what TLS and encoding take.",
		// From half a millisecond to the 2 s that the API server waits.
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 13),
	}, []string{"result"})}
	for _, result := range []string{resultGated, resultPassed, resultDenied, resultError} {
		m.seconds.WithLabelValues(result)
	}
	r.MustRegister(m.seconds)
	return m
}

func (m *Metrics) answered(result string, after time.Duration) {
	m.seconds.WithLabelValues(result).Observe(after.Seconds())
}

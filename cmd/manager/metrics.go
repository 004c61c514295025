// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/policygate/policygate/controllers/ungated"
)

// The kinds of objects that are watched, as the label kind has them.
const (
	kindPod           = "Pod"
	kindNamespace     = "Namespace"
	kindNetworkPolicy = "NetworkPolicy"
	kindNode          = "Node"
	kindService       = "Service"
)

// newEventCounter returns a counter of the events that a feed passes on, which
// is registered with r.
func newEventCounter(r prometheus.Registerer) *prometheus.CounterVec {
	counter := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "policygate_coverage_events_total",
		Help: "Events of watched objects that the coverage index was told of, by kind, those of the first list included. " +
			"Most change nothing that an expectation is made of.",
	}, []string{"kind"})
	for _, kind := range []string{kindPod, kindNamespace, kindNetworkPolicy, kindNode, kindService} {
		counter.WithLabelValues(kind)
	}
	r.MustRegister(counter)
	return counter
}

// exposeUngated registers the number of Pods that x holds with r.
func exposeUngated(r prometheus.Registerer, x *ungated.Index) {
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "policygate_ungated_pods",
		Help: "Live Pods that should have a readiness gate, by their namespace's label or their own annotation, and have none: " +
			"created before the label, or while the webhook could not be reached. Pods of kinds that are never gated are not in it.",
	}, func() float64 { return float64(x.Len()) }))
}

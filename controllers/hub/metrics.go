// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// end says why a session ended.
type end string

const (
	// endClosed: the agent, its connection or this replica has gone.
	endClosed end = "closed"
	// endReplaced: a newer session of the node has begun.
	endReplaced end = "replaced"
	// endSlow: the agent did not read.
	endSlow end = "slow"
	// endExpired: the agent's token runs out.
	endExpired end = "expired"
	// endRefused: the agent did not keep to the contract.
	endRefused end = "refused"
	// endFailed: a message could not be sent or received.
	endFailed end = "failed"
)

type metrics struct {
	sessions prometheus.Gauge
	ended    *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	factory := promauto.With(registerer)
	m := &metrics{
		sessions: factory.NewGauge(prometheus.GaugeOpts{
			Name: "policygate_hub_sessions",
			Help: "Nodes whose agent has a session with this replica of the manager. Each agent has one with every replica.",
		}),
		ended: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_hub_sessions_ended_total",
			Help: "Sessions of agents with this replica that ended, by reason: closed (by the agent, by this replica's end " +
				"or because the connection was lost), failed (a message could not be sent or received), replaced (by a newer session of the node), slow (the agent read nothing for half " +
				"a minute), expired (its token runs out: it connects again with a newer one), refused (it did not keep to the " +
				"contract). Agents whose token or first message is refused have no session and are not counted.",
		}, []string{"reason"}),
	}
	for _, reason := range []end{endClosed, endReplaced, endSlow, endExpired, endRefused, endFailed} {
		m.ended.WithLabelValues(string(reason))
	}
	return m
}

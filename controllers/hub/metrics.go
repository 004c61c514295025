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
	// endRevoked: the API server does not accept the token any more.
	endRevoked end = "revoked"
	// endRefused: the agent did not keep to the contract.
	endRefused end = "refused"
	// endFailed: a message could not be sent or received.
	endFailed end = "failed"
)

type metrics struct {
	sessions prometheus.Gauge
	ended    *prometheus.CounterVec
	refused  *prometheus.CounterVec
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
				"a minute), expired (its token runs out: it connects again with a newer one), revoked (the API " +
				"server accepts its token no more, as after its Pod was deleted), refused (it did not keep to the " +
				"contract). Agents whose token or first message is refused have no session and are not counted.",
		}, []string{"reason"}),
		refused: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_hub_refused_total",
			Help: "Connections and sessions that this replica of the manager did not let in, by reason: crowd (too many " +
				"connections have proved nothing yet, of its address or of all), handshake (no TLS 1.3), late (no proof within " +
				"40 seconds), flood (more than 64 KiB before a proof), token (none, or one that says of itself that it is not " +
				"an agent's), identity (the API server says so), unreviewed (the API server did not answer in time), hello (a " +
				"first message that is no valid hello), again (a second session on a connection, or too many of one node). Some " +
				"of each reason are logged with the address.",
		}, []string{"reason"}),
	}
	for _, reason := range []end{endClosed, endReplaced, endSlow, endExpired, endRevoked, endRefused, endFailed} {
		m.ended.WithLabelValues(string(reason))
	}
	return m
}

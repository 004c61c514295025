// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiclient

import (
	"context"
	"errors"
	"net"
	"time"
)

const (
	// firstPatience is how long the first connection is waited for, and each
	// after it twice as long as the one before. Linux sends a SYN again after
	// 1, 3 and 7 s, so that each has a second try at least.
	firstPatience = 2 * time.Second
	// lastPatience makes it 30 s for all together, client-go's own limit.
	lastPatience = 16 * time.Second
	// keepAlive is client-go's own.
	keepAlive = 30 * time.Second
)

// Dialer connects as net.Dialer does, but gives a connection up that is not
// answered, and begins another, with a port of its own, for 30 s in all.
//
// A connection to a Service's address is rewritten to an endpoint's by the
// rules that the node has when it begins, and conntrack applies what it decided
// then to all packets that follow. One that begins before the service proxy has
// written its rules, as after a node has booted, goes nowhere as long as it is
// tried, however soon the rules follow.
type Dialer struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// NewDialer returns a Dialer.
func NewDialer() Dialer {
	return Dialer{dial: (&net.Dialer{KeepAlive: keepAlive}).DialContext}
}

// DialContext returns a connection. Its error is net.Dialer's: that of the last
// that was not answered, or the first of another kind.
func (d Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	for patience := firstPatience; ; patience *= 2 {
		conn, err := d.attempt(ctx, patience, network, address)
		if !unanswered(err) || ctx.Err() != nil || patience >= lastPatience {
			return conn, err
		}
	}
}

// attempt makes one connection within its time.
func (d Dialer) attempt(ctx context.Context, patience time.Duration, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return d.dial(ctx, network, address)
}

// unanswered reports whether time is all that was short.
func unanswered(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

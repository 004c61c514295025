// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"net/netip"
	"time"
)

const (
	// stallAfter is how long a node may confirm nothing while Pods wait for it
	// until it binds only its own Pods.
	stallAfter = 2 * time.Minute
	// inspectInterval is how often nodes are looked at for that.
	inspectInterval = 5 * time.Second
)

// node is what the ledger keeps of a node; zero: nothing is known.
type node struct {
	// bootID is the node's present boot, empty if it is not known.
	bootID string
	// connected is true while its agent has a session, and unseen is true if
	// that agent cannot see the node's dataplane.
	connected, unseen bool
	// stalled is true while the node is in quarantine.
	stalled bool
	// since is when it last confirmed a Pod or, if that is later, when Pods
	// began to wait for it; zero while none does.
	since time.Time
}

// node returns the named node, which it makes if need be.
func (l *Ledger) node(name string) *node {
	n, ok := l.nodes[name]
	if !ok {
		n = &node{}
		l.nodes[name] = n
	}
	return n
}

// confirmed notes that the node has confirmed a Pod: that ends its quarantine.
func (n *node) confirmed(now time.Time) {
	n.since = now
	n.stalled = false
}

// inspect notes whether Pods wait for the node and reports whether that put it
// into quarantine.
func (n *node) inspect(awaited bool, now time.Time) bool {
	switch {
	case !awaited:
		n.since = time.Time{}
	case n.since.IsZero():
		n.since = now
	case !n.stalled && now.Sub(n.since) >= stallAfter:
		n.stalled = true
		return true
	}
	return false
}

// quarantine looks at every node: one that is awaited and confirms nothing
// binds only its own Pods.
func (l *Ledger) quarantine(now time.Time) {
	awaited := map[string]bool{}
	for _, e := range l.shut {
		for name, a := range e.answers {
			if !a.confirmed {
				awaited[name] = true
			}
		}
	}
	for name, n := range l.nodes {
		if n.inspect(awaited[name], now) {
			l.log.Info("node is stalled: it binds only its own pods until it confirms one", "node", name)
			l.touchAll()
		}
	}
	for name := range awaited {
		// Nodes that nothing was ever heard of stall as well.
		if _, known := l.nodes[name]; !known {
			l.node(name).inspect(true, now)
		}
	}
	stalled := 0
	for _, n := range l.nodes {
		if n.stalled {
			stalled++
		}
	}
	l.metrics.waiting(len(l.shut), stalled)
}

// nodeBooted takes a node's boot id. Gates that were opened in an earlier boot
// are shut.
func (l *Ledger) nodeBooted(name, bootID string) {
	n := l.node(name)
	if n.bootID == bootID {
		return
	}
	n.bootID = bootID
	for _, e := range l.entries {
		if e.pod.node == name {
			l.review(e, e.pod.held)
		}
	}
}

// forgetAnswers drops what a node answered.
func (l *Ledger) forgetAnswers(name string) {
	for _, e := range l.shut {
		if a := e.answers[name]; a != nil {
			*a = answer{}
			e.touched = true
		}
	}
}

func (l *Ledger) touchAll() {
	for _, e := range l.shut {
		e.touched = true
	}
}

func text(ips []netip.Addr) []string {
	out := make([]string, len(ips))
	for i, ip := range ips {
		out[i] = ip.String()
	}
	return out
}

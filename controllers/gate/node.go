// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/hub"
	"github.com/policygate/policygate/controllers/queue"
)

// DefaultStalledAfter and MinStalledAfter are the default and the least of
// Options.StalledAfter: nothing is said of a node sooner than by a witness.
const (
	DefaultStalledAfter = 2 * time.Minute
	MinStalledAfter     = witnessAfter
)

const (
	// witnessAfter is how long Pods of one namespace must have waited for a
	// stalled node before they, too, say that it is. A Pod that comes during
	// an engine's sync waits for the next, and the longest that was measured
	// took 13.3 s: less than twice that says nothing about a node.
	witnessAfter = 30 * time.Second
	// inspectInterval is how often nodes are looked at for that.
	inspectInterval = 5 * time.Second
)

// node is what the ledger keeps of a node.
type node struct {
	// bootID is the node's present boot, empty if it is not known.
	bootID string
	// connected is true while its agent has a session. unsupported is why that
	// agent cannot see the node's dataplane, empty if it can.
	connected   bool
	unsupported string
	// residents are the gated Pods that run there, and inquiries what it was
	// asked, by Pod.
	residents map[types.UID]*entry
	inquiries map[types.UID]*inquiry

	// waits has the namespaces whose Pods wait for the node, and confirmed is
	// when it last confirmed a Pod.
	waits     map[string]*wait
	confirmed time.Time
	// stalledFor has the namespaces for whose Pods the node is in quarantine;
	// stalled is true if it is for all.
	stalledFor map[string]bool
	stalled    bool
	// excuses is true if the node may be excused from confirming, for whatever
	// reason.
	excuses bool
}

// wait is that Pods of one namespace wait for a node.
type wait struct {
	since time.Time
	pods  int
}

// node returns the named node, which it makes if need be.
func (l *Ledger) node(name string) *node {
	n, ok := l.nodes[name]
	if !ok {
		n = &node{
			residents: map[types.UID]*entry{},
			inquiries: map[types.UID]*inquiry{},
			waits:     map[string]*wait{},
		}
		l.nodes[name] = n
	}
	return n
}

// await notes that one more Pod of the namespace waits for the node.
func (n *node) await(namespace string, now time.Time) {
	w := n.waits[namespace]
	if w == nil {
		w = &wait{since: now}
		n.waits[namespace] = w
	}
	w.pods++
}

// over notes that one Pod less of the namespace waits for the node.
func (n *node) over(namespace string) {
	w := n.waits[namespace]
	if w.pods--; w.pods == 0 {
		delete(n.waits, namespace)
	}
}

// quarantined reports whether the node is in quarantine for the namespace.
func (n *node) quarantined(namespace string) bool { return n.stalled || n.stalledFor[namespace] }

// inspect puts the node into quarantine, if it has come to that, and reports
// whether it has for anybody for whom it was not.
//
// A node stalls once Pods have waited for it for so long and it has confirmed
// none. It stalls for the namespaces whose own Pods have waited for
// it for witnessAfter, and for all if these are two: one namespace's Pods
// alone say nothing to others, as it may be they that can never be confirmed.
func (n *node) inspect(now time.Time, stalledAfter time.Duration) bool {
	stalls := n.stalls()
	waited := func(w *wait) time.Duration {
		if w.since.Before(n.confirmed) {
			return now.Sub(n.confirmed)
		}
		return now.Sub(w.since)
	}
	for _, w := range n.waits {
		stalls = stalls || waited(w) >= stalledAfter
	}
	if !stalls {
		return false
	}
	changed := false
	for namespace, w := range n.waits {
		if waited(w) < witnessAfter || n.stalledFor[namespace] {
			continue
		}
		if n.stalledFor == nil {
			n.stalledFor = map[string]bool{}
		}
		n.stalledFor[namespace] = true
		changed = true
	}
	if len(n.stalledFor) > 1 && !n.stalled {
		n.stalled, changed = true, true
	}
	return changed
}

// confirmedBy notes that the node has confirmed a Pod: that ends its
// quarantine.
func (l *Ledger) confirmedBy(name string, n *node, now time.Time) {
	n.confirmed = now
	if n.stalls() {
		n.stalled, n.stalledFor = false, nil
		l.reckon(n)
		l.warnings.Over(l.reference(name), ReasonStalled)
	}
}

// unseen reports whether its agent cannot see the node's dataplane.
func (n *node) unseen() bool { return n.connected && n.unsupported != "" }

// stalls reports whether it is in quarantine for anybody.
func (n *node) stalls() bool { return n.stalled || len(n.stalledFor) > 0 }

// look takes what the node's agent sees of it.
func (l *Ledger) look(name string, n *node, state hub.State) {
	if n.unsupported != "" && state.Unsupported == "" {
		l.warnings.Over(l.reference(name), ReasonUnsupported)
	}
	n.unsupported = state.Unsupported
	l.reckon(n)
	l.warn(name, n)
}

// warn tells of a node what a person should see. It may be called again and
// again.
func (l *Ledger) warn(name string, n *node) {
	unseen := "the agent cannot see into this node's dataplane, so nothing is confirmed here: "
	stalled := "nothing was confirmed here for %s although Pods waited for it: " +
		"until it confirms one, Pods of other nodes may start without it"
	if name == hubv1.Northbound {
		unseen = "the agent of " + hubv1.NorthboundTitle + " cannot read it, so nothing is confirmed of it: "
		stalled = hubv1.NorthboundTitle + " has confirmed nothing for %s although Pods waited for it: " +
			"until it confirms one, Pods may start without it"
	}
	if n.unseen() {
		l.warnings.Warn(Warning{Object: l.reference(name), Reason: ReasonUnsupported, Note: unseen + n.unsupported})
	}
	if n.stalls() {
		l.warnings.Warn(Warning{Object: l.reference(name), Reason: ReasonStalled, Note: fmt.Sprintf(stalled, l.stalledAfter)})
	}
}

// reference returns what warnings of a node are about.
func (l *Ledger) reference(name string) corev1.ObjectReference {
	if name == hubv1.Northbound {
		return l.northbound
	}
	return nodeReference(name)
}

// reckon counts the node among those that may be excused.
func (l *Ledger) reckon(n *node) {
	excuses := n.unseen() || n.stalls()
	switch {
	case excuses && !n.excuses:
		l.excusing++
	case !excuses && n.excuses:
		l.excusing--
	}
	n.excuses = excuses
}

// quarantine looks at every node: one that is awaited and confirms nothing
// binds only its own Pods. A replica that has just started knows of nobody's
// wait, so it takes it as long as any other to find out.
func (l *Ledger) quarantine(now time.Time) {
	stalled := 0
	for name, n := range l.nodes {
		if n.unused() {
			delete(l.nodes, name)
			continue
		}
		if n.inspect(now, l.stalledAfter) {
			l.reckon(n)
			l.log.Info("node is stalled: it binds only its own pods until it confirms one", "node", name,
				"namespaces", len(n.stalledFor), "all", n.stalled)
			for _, q := range n.inquiries {
				l.touch(q.entry, queue.Usual)
			}
		}
		if n.stalls() {
			stalled++
		}
		l.warn(name, n)
	}
	l.metrics.waiting(len(l.shut), l.pending, stalled, l.stale.Len(), l.deviations.Len())
}

// nodeBooted takes a node's boot id. Gates that were opened in an earlier boot
// are shut, and what was learned of its engine counts no more.
func (l *Ledger) nodeBooted(name, bootID string) {
	n := l.node(name)
	if n.bootID == bootID {
		return
	}
	n.bootID = bootID
	l.forgetDeviations(name, n)
	for _, e := range n.residents {
		l.review(e, e.pod.held)
	}
}

// nodeDeleted forgets what is known of a node; the node itself goes once
// nothing refers to it.
func (l *Ledger) nodeDeleted(name string) {
	n, ok := l.nodes[name]
	if !ok {
		return
	}
	l.forgetDeviations(name, n)
	n.bootID, n.stalled, n.stalledFor = "", false, nil
	l.reckon(n)
	l.warnings.Over(l.reference(name), ReasonStalled)
}

// unused reports whether nothing is known of the node and nothing refers to it.
func (n *node) unused() bool {
	return n.bootID == "" && !n.connected && !n.excuses && len(n.residents) == 0 && len(n.inquiries) == 0
}

func text(ips []netip.Addr) []string {
	out := make([]string, len(ips))
	for i, ip := range ips {
		out[i] = ip.String()
	}
	return out
}

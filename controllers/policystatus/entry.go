// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/controllers/demand"
	"github.com/policygate/policygate/controllers/queue"
)

// entry is one policy.
type entry struct {
	// Timer is the sooner of computeAt and decideAt, which are zero for never.
	queue.Timer
	computeAt, decideAt time.Time
	// soon is true if the computation at computeAt is waited for.
	soon bool

	key types.NamespacedName
	// uid is that of the policy which was computed last; empty before.
	uid types.UID
	// computed and decided are when that was done last, zero: not yet.
	computed, decided time.Time

	// The following are what was computed. seen, understood and occupied are
	// state's; vacant is true if no node had to enforce the policy.
	generation     int64
	seen, occupied time.Time
	vacant         bool
	understood     bool
	pods           coverage.PolicyPods
	deviations     []string
	excuseFamilies bool
	basis          *hubv1.Basis
	inquiries      []*inquiry // sorted by node
	// config is what nodes must have acknowledged of the northbound database
	// before they confirm the generation; 0: nothing is known that they could.
	// lapsed is true if that was taken back.
	config uint64
	lapsed bool

	// status is what was decided last, or what the object says that was found;
	// without conditions: nothing.
	status  v1alpha1.PolicyStatusStatus
	counted counted

	// stale is true if it has to be computed. The others say in which queues
	// the entry is.
	stale                           bool
	inStale, inLeisurely, inTouched bool
}

// entry returns the policy's entry, which it makes if need be.
func (l *Ledger) entry(key types.NamespacedName) *entry {
	e := l.entries[key]
	if e == nil {
		e = &entry{key: key}
		l.entries[key] = e
		delete(l.orphans, key)
	}
	return e
}

// compute brings what must be confirmed for the entry's policy up to date and
// hands it out.
func (l *Ledger) compute(e *entry) {
	e.stale, e.soon = false, false
	a, ok := l.coverage.PolicyAssignment(e.key)
	now := l.clock.Now()
	if !ok {
		l.remove(e, now)
		return
	}
	if a.Subject.UID != e.uid {
		l.replace(e, a.Subject.UID)
	}
	fresh := a.Subject.Generation != e.generation
	first := e.computed.IsZero()
	if fresh {
		e.generation = a.Subject.Generation
		e.seen, e.occupied, e.vacant = time.Time{}, time.Time{}, false
		e.config, e.lapsed = 0, false
		if !a.Subject.Since.Before(l.led) {
			e.seen = a.Subject.Since
		}
	}
	switch {
	case len(a.PerNode) == 0:
		e.vacant = true
	case e.vacant:
		e.vacant, e.occupied = false, now
	}
	e.computed = now
	e.pods, e.deviations, e.understood = a.Pods, notesOf(a.Notes), a.PerNode != nil
	e.basis = &hubv1.Basis{NetworkPolicies: a.Basis.NetworkPolicies, Namespaces: a.Basis.Namespaces, Pod: a.Basis.Pod}
	demands, err := l.demandsOf(a)
	if err != nil {
		l.log.Error(err, "what must be confirmed cannot be asked", "policy", e.key)
		e.understood = false
	}
	l.handOut(e, a, demands, handing{now: now, fresh: fresh, founding: first && e.seen.IsZero()})
	e.computeAt = now.Add(rotation - spread(e.uid))
	if !a.Again.IsZero() {
		again := a.Again
		if soon := now.Add(computeSoon); again.Before(soon) {
			again = soon
		}
		e.computeAt = sooner(e.computeAt, again)
	}
	l.schedule(e)
	l.touch(e)
}

// demandsOf returns what is sent to each node.
func (l *Ledger) demandsOf(a coverage.PolicyAssignment) (map[string]demand.Demand, error) {
	demands := make(map[string]demand.Demand, len(a.PerNode))
	for name, expectations := range a.PerNode {
		d, err := l.demands.Of(expectations, nil)
		if err != nil {
			return nil, err
		}
		demands[name] = d
	}
	return demands, nil
}

// spread returns how much sooner than others a policy has its turn.
func spread(uid types.UID) time.Duration {
	h := fnv.New32a()
	_, _ = h.Write([]byte(uid)) // a hash takes everything
	return rotationSpread * time.Duration(h.Sum32()%256) / 256
}

// replace begins the entry anew for a policy of another uid.
func (l *Ledger) replace(e *entry, uid types.UID) {
	l.withdraw(e)
	e.uid, e.generation = uid, 0
	e.computed, e.decided = time.Time{}, time.Time{}
	e.status = v1alpha1.PolicyStatusStatus{}
	if o := l.objects[e.key]; o != nil && owned(o, uid) {
		e.status = *o.Status.DeepCopy()
	}
}

// remove forgets a policy that is gone.
func (l *Ledger) remove(e *entry, now time.Time) {
	l.withdraw(e)
	delete(l.entries, e.key)
	l.timers.Set(e, time.Time{})
	l.metrics.count(e.counted, counted{})
	l.statuses.Forget(e.key)
	l.events.Forget(e.key)
	if l.objects[e.key] != nil {
		l.orphans[e.key] = now.Add(orphanTime)
	}
}

// settle decides about an entry, and has written what is not said yet.
func (l *Ledger) settle(e *entry, now time.Time) {
	e.decided = now
	d := decide(l.state(e), now)
	e.decideAt = d.next
	l.schedule(e)
	if d.status != nil {
		l.events.Decided(Policy{Name: e.key, UID: e.uid}, &e.status, d.status)
		e.status = *d.status
		c := countedAs(&e.status)
		l.metrics.count(e.counted, c)
		e.counted = c
		if d.took > 0 {
			l.metrics.took(d.took)
		}
	}
	l.write(e)
}

// countedAs returns how a policy of that status is counted.
func countedAs(status *v1alpha1.PolicyStatusStatus) counted {
	var c counted
	if programmed := meta.FindStatusCondition(status.Conditions, v1alpha1.PolicyProgrammed); programmed != nil {
		c.programmed = programmed.Status
	}
	if degraded := meta.FindStatusCondition(status.Conditions, v1alpha1.PolicyDegraded); degraded != nil && degraded.Status == metav1.ConditionTrue {
		c.degraded = degraded.Reason
	}
	return c
}

// write has the entry's object say its status, if it does not.
func (l *Ledger) write(e *entry) {
	w := Write{Policy: Policy{Name: e.key, UID: e.uid}, Object: l.objects[e.key], Done: l.ObjectChanged}
	switch {
	case len(e.status.Conditions) == 0:
	case w.Object == nil:
		w.Kind = creation
	case !owned(w.Object, e.uid):
		// Of an earlier policy of that name, or somebody else's.
		w.Kind, w.Done = deletion, l.ObjectDeleted
	default:
		w.Kind = difference(&w.Object.Status, &e.status)
	}
	if w.Kind == "" {
		l.statuses.Drop(e.key)
		return
	}
	w.Status = e.status.DeepCopy()
	l.statuses.Write(w)
}

// state returns what is known of the entry's policy.
func (l *Ledger) state(e *entry) state {
	s := state{
		generation: e.generation,
		seen:       e.seen,
		understood: e.understood,
		pods:       e.pods,
		deviations: e.deviations,
		nodes:      make([]node, len(e.inquiries)),
		occupied:   e.occupied,
		former:     e.status,
	}
	for i, q := range e.inquiries {
		s.nodes[i] = q.node
		s.nodes[i].name, s.nodes[i].connected, s.nodes[i].unseen = q.agent.name, q.agent.connected, q.agent.unseen
	}
	return s
}

// objectChanged takes an object, unless it is older than what is known.
func (l *Ledger) objectChanged(o *v1alpha1.PolicyStatus) {
	key := types.NamespacedName{Namespace: o.Namespace, Name: o.Name}
	if known := l.objects[key]; known != nil && known.UID == o.UID && newer(known, o) {
		return
	}
	l.objects[key] = o
	l.objectTouched(key)
}

// objectDeleted forgets an object.
func (l *Ledger) objectDeleted(o *v1alpha1.PolicyStatus) {
	key := types.NamespacedName{Namespace: o.Namespace, Name: o.Name}
	if known := l.objects[key]; known == nil || known.UID != o.UID {
		return
	}
	delete(l.objects, key)
	delete(l.orphans, key)
	l.objectTouched(key)
}

// objectTouched has what the object of a policy says compared again.
func (l *Ledger) objectTouched(key types.NamespacedName) {
	if !l.leads {
		return
	}
	if e := l.entries[key]; e != nil {
		l.touch(e)
		return
	}
	if _, known := l.orphans[key]; !known && l.objects[key] != nil {
		l.orphans[key] = l.clock.Now().Add(orphanTime)
	}
}

// removeOrphans removes objects that the garbage collector has left, since
// somebody else made them or took the policy's reference away.
func (l *Ledger) removeOrphans(now time.Time) {
	for _, key := range slices.SortedFunc(maps.Keys(l.orphans), compareKeys) {
		if now.Before(l.orphans[key]) {
			continue
		}
		o := l.objects[key]
		if o == nil {
			delete(l.orphans, key)
			continue
		}
		l.statuses.Write(Write{Policy: Policy{Name: key}, Kind: deletion, Object: o, Done: l.ObjectDeleted})
		l.orphans[key] = now.Add(orphanTime) // should that fail
	}
}

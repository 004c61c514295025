// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"context"
	"fmt"
	"net/netip"
	"sync"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// Name is what a Dataplane is called where dataplanes are told.
const Name = "ovn-northbound"

// Question is a flow that is asked about.
type Question struct {
	Flow flow.Flow
	// External: an end of the flow is outside of the cluster. It makes no
	// difference here.
	External bool
}

// Answer is what the database has of a flow.
type Answer struct {
	// Verdict is what would become of the flow's first packet.
	Verdict flow.Verdict
	// Routed is always true: a flow of which neither end has a logical port is
	// one that is not there yet, and none that is nobody's business.
	Routed bool
	// Traced is always true: each answer is found anew.
	Traced bool
}

// Dataplane is OVN's northbound database. It is made by New and safe for
// concurrent use.
type Dataplane struct {
	view func() (View, error)

	mu       sync.Mutex // guards the following fields
	follower *follower
	rewrites uint64

	watchersMu sync.Mutex // guards watchers
	watchers   map[int]func(string)
	watcher    int
}

// New returns the dataplane of a database. view returns the newest state of it,
// or why there is none; it is called for each look.
func New(view func() (View, error)) *Dataplane {
	return &Dataplane{view: view, follower: newFollower(), watchers: map[int]func(string){}}
}

// newest brings the model to what is newest. d.mu is held.
func (d *Dataplane) newest() (*model, error) {
	v, err := d.view()
	if err != nil {
		return nil, fmt.Errorf("read the northbound database: %w", err)
	}
	if d.follower.follow(v) {
		d.rewrites++
	}
	return d.follower.model, nil
}

// Look returns a view of the database, or why there is none.
func (d *Dataplane) Look(context.Context) (*Look, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.newest(); err != nil {
		return nil, err
	}
	return &Look{dataplane: d, rewrites: d.rewrites}, nil
}

// Audit returns why looks cannot see the database. It is always "": while there is
// no connection looks fail, and say why.
func (*Dataplane) Audit(context.Context) string { return "" }

// Survey returns what there is to tell of the database as a whole, or an error if
// it cannot be read.
func (d *Dataplane) Survey(context.Context) (*hubv1.State, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.newest(); err != nil {
		return nil, err
	}
	return &hubv1.State{Dataplanes: []string{Name}}, nil
}

// Changed tells those who watch that there may be another view. It is called by
// whoever keeps the views, and does not block.
func (d *Dataplane) Changed() {
	d.watchersMu.Lock()
	defer d.watchersMu.Unlock()
	for _, noticed := range d.watchers {
		noticed("northbound")
	}
}

// Watch calls noticed whenever there may be another view, until ctx ends. noticed
// must not block and must not call back.
func (d *Dataplane) Watch(ctx context.Context, noticed func(source string)) {
	d.watchersMu.Lock()
	d.watcher++
	number := d.watcher
	d.watchers[number] = noticed
	d.watchersMu.Unlock()
	<-ctx.Done()
	d.watchersMu.Lock()
	defer d.watchersMu.Unlock()
	delete(d.watchers, number)
}

// Linked returns for each Service what its links lack, in the given order; see
// Link. The error is why the database cannot be read.
func (d *Dataplane) Linked(services []Service) ([]Link, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m, err := d.newest()
	if err != nil {
		return nil, err
	}
	return m.linked(services), nil
}

// Explain returns what the database has of a flow, with the ACLs that say so. The
// error is why it cannot be read.
func (d *Dataplane) Explain(_ context.Context, f flow.Flow) (Explanation, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m, err := d.newest()
	if err != nil {
		return Explanation{}, err
	}
	return m.explain(f), nil
}

// Look is the database at one moment, or at a newer one. It is made by
// Dataplane.Look and safe for concurrent use.
type Look struct {
	dataplane *Dataplane

	mu       sync.Mutex // guards rewrites
	rewrites uint64
}

// Together answers all questions, in their order, of the newest moment. It returns
// an error if the database cannot be read.
func (l *Look) Together(ctx context.Context, questions []Question) ([]Answer, error) {
	d := l.dataplane
	d.mu.Lock()
	defer d.mu.Unlock()
	m, err := d.newest()
	if err != nil {
		return nil, err
	}
	answers := make([]Answer, len(questions))
	for i, q := range questions {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		answers[i] = Answer{Verdict: m.verdict(q.Flow), Routed: true, Traced: true}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rewrites = d.rewrites
	return answers, nil
}

// Rewrites counts the views, since the Dataplane was made, in which rows that may
// judge a flow had changed, as of the last Together. It never falls.
func (l *Look) Rewrites() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rewrites
}

// Service is a Service of Kubernetes, as policies may have to know it.
type Service struct {
	// VIPs are its ClusterIPs, and Backends the addresses of Pods behind it.
	VIPs, Backends []netip.Addr
}

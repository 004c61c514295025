// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"crypto/x509"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/confirm"
	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// Replica is one replica of the manager.
type Replica struct {
	// Name identifies it; a replica that comes back under another name is
	// another one.
	Name string
	// Address is host:port of its hub.
	Address string
	// Ready: it may be dialled. A session with one that ceases to be ready
	// goes on until it breaks.
	Ready bool
}

// Subjects is told what replicas assign. Its methods must not block.
type Subjects interface {
	// Assign returns an error if nothing can be reported on a. d is the
	// description that it names, or nil if that is not known.
	Assign(from confirm.Source, a *hubv1.Assign, d *confirm.Description) error
	Withdraw(from confirm.Source, uid string)
	// Ended says that a session is over: what was assigned in it stands until
	// Forget, and is not renewed.
	Ended(from confirm.Source)
	// Forget ends what the replica assigned in sessions before the given one.
	Forget(replica string, before uint64)
}

// Releases is told what replicas release. It must not block.
type Releases interface {
	Release(r *hubv1.Release)
}

// Traces answers what the node would do with a flow.
type Traces interface {
	// Trace returns the ways in which the first packet of f passes the node.
	// f is valid. It gives up when ctx ends, and is called concurrently.
	Trace(ctx context.Context, f flow.Flow) ([]tracev1.Hop, error)
}

// Options are what a Client is made of.
type Options struct {
	// ServerName is what the replicas' certificates must be for.
	ServerName string
	// TokenFile holds the token that proves the node; it is read for each
	// session.
	TokenFile string
	// Hello returns what to introduce the agent with, for each session. Its
	// state is at least as new as what was told by then.
	Hello func(context.Context) *hubv1.Hello
	// Traces answers the traces that replicas ask for. nil: each is answered
	// with an error.
	Traces Traces
	Clock  clock.Clock
	Log    logr.Logger
	// Registerer exposes the metrics. nil: they are counted for nobody.
	Registerer prometheus.Registerer
}

// Client keeps the sessions. It is made by New and safe for concurrent use.
type Client struct {
	options  Options
	sessions atomic.Uint64 // opened so far, so that each has a number
	open     *prometheus.GaugeVec
	// tracing has an element for each trace in work.
	tracing chan struct{}
	// changed tells Run that the replicas are others.
	changed chan struct{}
	// random returns a number below 1.
	random func() float64

	mu       sync.Mutex // guards the following fields
	replicas map[string]Replica
	links    map[string]*link
	roots    *x509.CertPool
	// spreads are what replicas have asked for last. That of one that is gone
	// stays until another has spoken.
	spreads map[string]time.Duration
	// state is what was told last of the node, or nil.
	state *hubv1.State
}

// New returns a Client that knows no replicas and trusts nobody: nothing is
// dialled before both SetReplicas and SetRoots were called.
func New(o Options) *Client {
	c := &Client{
		options:  o,
		tracing:  make(chan struct{}, maxTraces),
		changed:  make(chan struct{}, 1),
		random:   rand.Float64,
		spreads:  make(map[string]time.Duration),
		replicas: make(map[string]Replica),
		links:    make(map[string]*link),
		open: promauto.With(o.Registerer).NewGaugeVec(prometheus.GaugeOpts{
			Name: "policygate_agent_replicas",
			Help: "Replicas of the manager that the agent knows, by the state of its session with them (synced or not).",
		}, []string{"synced"}),
	}
	c.count()
	return c
}

// SetReplicas replaces the replicas that are known. What one assigned that is
// no longer among them is forgotten.
func (c *Client) SetReplicas(replicas []Replica) {
	c.mu.Lock()
	clear(c.replicas)
	for _, r := range replicas {
		c.replicas[r.Name] = r
	}
	c.mu.Unlock()
	c.wakeUp()
}

// SetRoots replaces the certificates that sessions opened from now on trust.
func (c *Client) SetRoots(roots *x509.CertPool) {
	c.mu.Lock()
	c.roots = roots
	links := c.all()
	c.mu.Unlock()
	for _, l := range links {
		l.wakeUp()
	}
}

// trusted returns the newest certificates, or nil if there are none yet.
func (c *Client) trusted() *x509.CertPool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.roots
}

// Ready returns nil if a session with any replica is past its full sync, else an
// error that says so.
func (c *Client) Ready() error {
	if !c.Synced() {
		return errors.New("no session with a replica of the manager is synced")
	}
	return nil
}

// Synced reports whether a session with any replica is past its full sync.
func (c *Client) Synced() bool {
	c.mu.Lock()
	links := c.all()
	c.mu.Unlock()
	for _, l := range links {
		if l.synced.Load() {
			return true
		}
	}
	return false
}

// heard keeps what a replica has asked for.
func (c *Client) heard(replica string, spread time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.spreads {
		if _, known := c.replicas[name]; !known {
			delete(c.spreads, name)
		}
	}
	c.spreads[replica] = spread
}

// spread returns the longest that a replica has asked for, or 0. One that has
// just begun does not know yet how many agents there are.
func (c *Client) spread() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	var longest time.Duration
	for _, spread := range c.spreads {
		longest = max(longest, spread)
	}
	return longest
}

// Send implements confirm.Reports.
func (c *Client) Send(to confirm.Source, report *hubv1.Report) {
	c.mu.Lock()
	l := c.links[to.Replica]
	c.mu.Unlock()
	if l != nil {
		l.outbox.put(to.Session, report)
	}
}

// Tell implements confirm.States.
func (c *Client) Tell(s *hubv1.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = s
	for _, l := range c.links {
		l.outbox.tell(s)
	}
}

// newest returns what was told last of the node, or nil.
func (c *Client) newest() *hubv1.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// all returns the links. The caller holds c.mu.
func (c *Client) all() []*link {
	links := make([]*link, 0, len(c.links))
	for _, l := range c.links {
		links = append(links, l)
	}
	return links
}

func (c *Client) wakeUp() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Run keeps the sessions until ctx ends; then it closes them and returns nil.
func (c *Client) Run(ctx context.Context, subjects Subjects, releases Releases) error {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		c.follow(ctx, &running, subjects, releases)
		c.count()
		select {
		case <-ctx.Done():
			return nil
		case <-c.changed:
		}
	}
}

// follow starts and ends links so that there is one for each replica.
func (c *Client) follow(ctx context.Context, running *sync.WaitGroup, subjects Subjects, releases Releases) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, l := range c.links {
		if _, known := c.replicas[name]; !known {
			l.end()
			delete(c.links, name)
			// In its own time: the link may be passing on an assignment.
			running.Go(func() {
				<-l.ended
				c.options.Log.Info("Replica is gone", "replica", name)
				if !c.knows(name) {
					subjects.Forget(name, math.MaxUint64)
				}
			})
		}
	}
	for name, r := range c.replicas {
		l := c.links[name]
		if l == nil {
			linkCtx, end := context.WithCancel(ctx)
			l = newLink(c, r, end)
			c.links[name] = l
			running.Go(func() {
				defer close(l.ended)
				l.run(linkCtx, subjects, releases)
			})
			continue
		}
		l.set(r)
	}
}

// knows reports whether the replica is known (again).
func (c *Client) knows(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, known := c.replicas[name]
	return known
}

// count sets the metric.
func (c *Client) count() {
	c.mu.Lock()
	defer c.mu.Unlock()
	synced := 0
	for _, l := range c.links {
		if l.synced.Load() {
			synced++
		}
	}
	c.open.WithLabelValues("true").Set(float64(synced))
	c.open.WithLabelValues("false").Set(float64(len(c.links) - synced))
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

const (
	// maxReceive bounds a message of an agent. A report names at most three
	// unmet expectations with 200 bytes each; a trace result of four hops with
	// 128 steps of six texts with 512 bytes each is the largest.
	maxReceive = 2 << 20
	// maxHeader bounds the headers of a call: a token takes 1 to 2 KiB.
	maxHeader = 16 << 10
	// maxStreams is what one connection can hold open: it serves one session.
	maxStreams = 1
	// window is how much an agent may send ahead of what is read. gRPC would
	// let it grow to 16 MiB for who sends fast.
	window = 64 << 10
	// keepaliveTime and keepaliveTimeout end the session of a node that went
	// away without a word: its confirmations count for at most their sum.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 10 * time.Second
	// minPing is how often an agent may ping.
	minPing = 5 * time.Second
	// connectRate is how many agents a second may connect again after a
	// replica has gone. Each costs about 1 ms of CPU, most of it for TLS, and
	// a TokenReview, of which the manager's client sends at most 100 a second,
	// among other things. A thousand agents take 20 s so.
	connectRate = 50
	// maxSpread bounds it: from 3,000 agents on the reviews in flight are what
	// slows them down.
	maxSpread = time.Minute
	// readBuffer is kept for each session. Reports take some hundred bytes, and
	// what comes with them in one TLS record waits in that record's own buffer.
	// What gRPC writes with is shared by all sessions that are silent.
	readBuffer = 2 << 10
	// turnTimeout is how long a connection may wait for its turn, and
	// handshakeTimeout bounds the time from then until TLS and HTTP/2.
	turnTimeout      = 10 * time.Second
	handshakeTimeout = 10 * time.Second
	// openInterval and openBurst bound the sessions of one node. An agent that
	// is cut off again and again waits seconds before it comes anew.
	openInterval = 2 * time.Second
	openBurst    = 10
)

// Hello is what an agent says of itself when it connects.
type Hello struct {
	// Version is the agent's build, for people.
	Version string
	// BootID is the node's boot id.
	BootID string
	// State is what it saw of its node then.
	State State
}

// Sink is told what happens on sessions, in order for each node. It is called
// with a lock of the hub held: it must return quickly and must not call the
// hub.
type Sink interface {
	// Connected says that a session for the node has begun. What the node
	// reported before counts no more: it reports every assignment again.
	Connected(node string, hello Hello)
	// Disconnected says that the node has no session any more.
	Disconnected(node string)
	// Changed says that what the node's agent sees of it as a whole differs
	// from what it said in Hello, or in the last Changed.
	Changed(node string, state State)
	// Reported passes on a well-formed report on the node's current
	// assignment of report.uid. Its generation is the one given to Assign.
	Reported(node string, report *hubv1.Report)
}

// Options are what a Hub needs; all fields but Log and Registerer are required.
type Options struct {
	Reviewer Reviewer
	Sink     Sink
	Clock    clock.WithTickerAndDelayedExecution
	Log      logr.Logger
	// Address is where to listen, such as ":9444".
	Address string
	// GetCertificate returns the certificate to present to a client.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Registerer exposes the metrics. nil: they are counted for nobody.
	Registerer prometheus.Registerer
}

// Hub serves sessions. Its methods may be called from any goroutine.
type Hub struct {
	hubv1.UnimplementedHubServer

	reviewer Reviewer
	sink     Sink
	clock    clock.WithTickerAndDelayedExecution
	log      logr.Logger
	address  string
	tls      *tls.Config
	metrics  *metrics
	refusals *refusals
	// handshakes has a place for each TLS handshake of a second, and reviews
	// one for each review in flight.
	handshakes, reviews *line

	// generations counts the assignments sent, in the wire's sense. It starts
	// at the time so that it grows over a restart of the replica, too.
	generations atomic.Uint64
	listening   atomic.Pointer[net.TCPAddr]
	// random returns a number below 1.
	random func() float64

	// mu guards nodes and is held for no longer than to look one up: whoever
	// has a node does without.
	mu    sync.Mutex
	nodes map[string]*node
}

// node is what the hub keeps of one node.
type node struct {
	name string
	// mu guards the following fields and the session's queue. It is held
	// while the sink is called, so that the sink hears of things in order.
	mu          sync.Mutex
	assignments map[string]*assignment
	session     *session
	// since is when the session began. version and state are what the node's
	// agent has said last, in this session or an earlier one.
	since   time.Time
	version string
	state   State
	// opening bounds how often sessions begin, each with a full sync.
	opening *rate.Limiter
}

// assignment is what a node is told of one uid. It is never written to.
type assignment struct {
	// message is the caller's, and so is its generation.
	message     *hubv1.Assign
	description Description
	// generation is the wire's.
	generation uint64
}

// expectations and whys return how many the assignment has.
func (a *assignment) expectations() int {
	if a == nil {
		return 0
	}
	return a.description.value().expectations
}

func (a *assignment) whys() int {
	return a.description.value().whys
}

// wire returns the message for an agent that knows the description by id.
// Others may be sent parts of it: nobody writes to them.
func (a *assignment) wire(id uint64) *hubv1.Assign {
	return &hubv1.Assign{
		Subject:        a.message.GetSubject(),
		Generation:     a.generation,
		Basis:          a.message.GetBasis(),
		OwnNode:        a.message.GetOwnNode(),
		Settle:         a.message.GetSettle(),
		ExcuseFamilies: a.message.GetExcuseFamilies(),
		Description:    id,
		Excused:        a.message.GetExcused(),
		Policy:         a.message.GetPolicy(),

		NorthboundConfig: a.message.GetNorthboundConfig(),
	}
}

// New returns a Hub that serves when Start is called. Assignments may be made
// before.
func New(o Options) *Hub {
	h := &Hub{
		reviewer: o.Reviewer,
		sink:     o.Sink,
		clock:    o.Clock,
		log:      o.Log,
		address:  o.Address,
		tls: &tls.Config{
			MinVersion:     tls.VersionTLS13,
			GetCertificate: o.GetCertificate,
			NextProtos:     []string{"h2"},
		},
		metrics:    newMetrics(o.Registerer),
		handshakes: newLine(handshakesPerSecond),
		reviews:    newLine(maxReviews),
		random:     rand.Float64,
		nodes:      map[string]*node{},
	}
	h.refusals = newRefusals(h.metrics.refused, o.Clock, o.Log)
	h.generations.Store(uint64(max(o.Clock.Now().UnixMicro(), 0)))
	return h
}

// Assign makes a the node's assignment of its subject's uid, in place of an
// earlier one. The generation of a is the caller's and must grow for a uid; it
// comes back in reports, the one on the wire is the hub's own. The hub keeps
// a, which must not be changed afterwards. A release of the uid that was not
// sent yet is dropped: it was decided without a. What a says of a description
// is ignored: it is d, under an id of each session's own.
func (h *Hub) Assign(nodeName string, a *hubv1.Assign, d Description) {
	n := h.node(nodeName)
	n.mu.Lock()
	defer n.mu.Unlock()
	h.assign(n, a, d)
}

// assign makes a, under the next generation of the wire, the assignment of a
// node whose lock is held.
func (h *Hub) assign(n *node, a *hubv1.Assign, d Description) {
	uid := a.GetSubject().GetUid()
	next := &assignment{message: a, description: d, generation: h.generations.Add(1)}
	n.assignments[uid] = next
	if n.session != nil {
		n.session.queue.assign(uid, next)
	}
}

// Withdraw ends the node's assignment of uid, and with it an unsent release.
// It does nothing if there is none.
func (h *Hub) Withdraw(nodeName, uid string) {
	n := h.node(nodeName)
	n.mu.Lock()
	defer n.mu.Unlock()
	a, ok := n.assignments[uid]
	if !ok {
		return
	}
	delete(n.assignments, uid)
	if n.session != nil {
		n.session.queue.withdraw(uid, a.message.GetSubject().GetNamespace(), a.message.GetPolicy())
	}
}

// Release sends r to the node if it has a session, and forgets it otherwise. r
// is of a Pod: policies are never released. It reports whether there was a
// session, which does not say that r arrived.
func (h *Hub) Release(nodeName string, r *hubv1.Release) bool {
	n := h.node(nodeName)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.session == nil {
		return false
	}
	n.session.queue.release(r.GetSubject().GetUid(), r)
	return true
}

// Listening returns nil once the hub accepts connections, and an error
// otherwise: it is a readiness check.
func (h *Hub) Listening() error {
	if h.listening.Load() == nil {
		return errors.New("the hub does not listen yet")
	}
	return nil
}

// Addr returns where the hub listens, or nil if it does not yet.
func (h *Hub) Addr() *net.TCPAddr { return h.listening.Load() }

// NeedLeaderElection reports false: agents have a session with every replica.
func (h *Hub) NeedLeaderElection() bool { return false }

// Start listens and serves until ctx ends. It returns nil then, or the error
// that kept it from listening.
func (h *Hub) Start(ctx context.Context) error {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", h.address)
	if err != nil {
		return fmt.Errorf("hub: listen on %q: %w", h.address, err)
	}
	server := grpc.NewServer(
		grpc.Creds(h.newDoor(ctx)),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(maxReceive),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.ConnectionTimeout(turnTimeout+handshakeTimeout),
		grpc.ReadBufferSize(readBuffer),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
	)
	hubv1.RegisterHubServer(server, h)
	if addr, ok := listener.Addr().(*net.TCPAddr); ok {
		h.listening.Store(addr)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case <-ctx.Done():
		h.listening.Store(nil)
		// Sessions never end by themselves, so there is nothing to wait for;
		// agents have sessions with the other replicas.
		server.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("hub: stop serving on %q: %w", h.address, err)
		}
		return nil
	case err := <-served:
		h.listening.Store(nil)
		return fmt.Errorf("hub: serve on %q: %w", h.address, err)
	}
}

// node returns the named node, which it makes if need be. A node costs little
// and names come from tokens and Pods alone, so none is ever dropped.
func (h *Hub) node(name string) *node {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, ok := h.nodes[name]
	if !ok {
		n = &node{
			name: name, assignments: map[string]*assignment{},
			opening: rate.NewLimiter(rate.Every(openInterval), openBurst),
		}
		h.nodes[name] = n
	}
	return n
}

// spread returns the time within which agents connect again, in milliseconds.
// It goes by the nodes that the hub has heard of, not by the sessions that it
// has now: in the middle of a storm these are few.
func (h *Hub) spread() uint32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return spreadMillis(len(h.nodes))
}

// spreadMillis returns how long a number of agents may take to connect.
func spreadMillis(agents int) uint32 {
	spread := min(time.Duration(agents)*time.Second/connectRate, maxSpread)
	return uint32(spread.Milliseconds()) //nolint:gosec // at most maxSpread
}

// open makes s its node's session, queues the full sync for it and ends the
// session that it replaces.
func (h *Hub) open(s *session, hello Hello) {
	n := s.node
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.session != nil {
		close(n.session.replaced)
		n.session.questions.end()
		h.sink.Disconnected(n.name)
	} else {
		h.metrics.sessions.Inc()
	}
	n.session, n.since, n.version, n.state = s, h.clock.Now(), hello.Version, hello.State
	for _, uid := range slices.Sorted(maps.Keys(n.assignments)) {
		// Under a new generation, so that the agent reports on it again and
		// no report of an earlier session can be taken for this one's.
		h.assign(n, n.assignments[uid].message, n.assignments[uid].description)
	}
	s.queue.synced()
	h.sink.Connected(n.name, hello)
}

// end forgets s, unless another session has replaced it.
func (h *Hub) end(s *session) {
	n := s.node
	n.mu.Lock()
	defer n.mu.Unlock()
	s.questions.end()
	if n.session == s {
		n.session = nil
		h.metrics.sessions.Dec()
		h.sink.Disconnected(n.name)
	}
}

// report passes r on if it answers the current assignment, and drops it if
// not: it crossed a newer one on the way. It returns an error if r is
// malformed.
func (h *Hub) report(s *session, r *hubv1.Report) error {
	n := s.node
	n.mu.Lock()
	defer n.mu.Unlock()
	current := n.assignments[r.GetUid()]
	if current == nil || n.session != s || current.generation != r.GetGeneration() {
		return validateReport(r, nil)
	}
	err := validateReport(r, current)
	if err == nil {
		err = validateNorthbound(n.name, r, current)
	}
	if err != nil {
		return err
	}
	h.sink.Reported(n.name, &hubv1.Report{
		Uid:            r.GetUid(),
		Generation:     current.message.GetGeneration(),
		Confirmed:      r.GetConfirmed(),
		Unmet:          r.GetUnmet(),
		UnmetRequired:  r.GetUnmetRequired(),
		UnmetAdvisory:  r.GetUnmetAdvisory(),
		Ipv4Unenforced: r.GetIpv4Unenforced(),
		Ipv6Unenforced: r.GetIpv6Unenforced(),
		Unrealized:     r.GetUnrealized(),
		Realized:       r.GetRealized(),
		Steady:         r.GetSteady(),

		NorthboundConfig: r.GetNorthboundConfig(),
	})
	return nil
}

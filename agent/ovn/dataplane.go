// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/flow"
)

const (
	// bridge is OVN's integration bridge, as Kube-OVN names it.
	bridge = "br-int"
	// traceTimeout bounds a single trace: those measured took 1 ms.
	traceTimeout = 2 * time.Second
	// attempts bounds how often a batch is asked again because the ports that
	// it is about changed under it.
	attempts = 3
)

// ErrUnsettled means that ports changed during every attempt.
var ErrUnsettled = errors.New("logical ports kept changing while they were asked about")

// Session is a connection to one process of ovs-vswitchd. Its methods are safe
// for concurrent use.
type Session interface {
	// ID is another for each process.
	ID() string
	// Trace returns what `ofproto/trace` prints.
	Trace(ctx context.Context, bridge, flow string) (string, error)
	// WaitRevalidators returns when `revalidator/wait` does, or
	// ErrSeveralDatapaths. It keeps no Trace waiting.
	WaitRevalidators(ctx context.Context) error
	// Close ends it.
	Close()
}

// Database is the local Open vSwitch database.
type Database interface {
	// State returns what it holds now, or why that is not known.
	State() (State, error)
}

// Options are the edges of a Dataplane. All are needed but Log.
type Options struct {
	// Connect connects to the ovs-vswitchd that runs now.
	Connect    func(ctx context.Context) (Session, error)
	Database   Database
	Routes     Routes
	Clock      clock.WithTicker
	Log        logr.Logger
	Registerer prometheus.Registerer
}

// Dataplane is OVN on one node. It is safe for concurrent use.
type Dataplane struct {
	options Options
	budget  *budget
	cycles  *cycles
	metrics *metrics
	stop    context.CancelFunc

	arranged atomic.Pointer[arranged]

	watching sync.Mutex // guards watchers
	watchers map[*func(string)]bool

	mu       sync.Mutex // guards the following fields and serializes batches
	session  Session
	learned  *learned
	memory   memory
	rewrites uint64
	// identity names the process and the connection to the database that what
	// is remembered is of; seen is what Rewrites counts changes of.
	identity string
	seen     string
}

// arranged is a state of the database with its ports.
type arranged struct {
	state State
	ports *ports
}

// New returns a Dataplane. Close frees what it opens.
func New(options Options) *Dataplane {
	ctx, stop := context.WithCancel(context.Background())
	d := &Dataplane{
		options: options, stop: stop,
		budget: newBudget(options.Clock), metrics: newMetrics(options.Registerer),
		learned: newLearned(options.Clock, options.Routes), memory: newMemory(),
		watchers: map[*func(string)]bool{},
	}
	d.cycles = &cycles{clock: options.Clock, ctx: ctx, metrics: d.metrics, told: func() { d.notice(noticeRevalidator) }}
	return d
}

// Close ends the connection to vswitchd. Looks fail from then on.
func (d *Dataplane) Close() {
	d.stop()
	d.mu.Lock()
	d.hangUp()
	d.mu.Unlock()
	d.cycles.idle.Wait()
}

// Sources of notices.
const (
	noticeRevalidator = "revalidator"
	noticeDatabase    = "ovsdb"
)

// Watch calls noticed each time that a look may find something new, until ctx
// ends. noticed may be called concurrently, and must not block.
func (d *Dataplane) Watch(ctx context.Context, noticed func(source string)) {
	d.watching.Lock()
	d.watchers[&noticed] = true
	d.watching.Unlock()
	<-ctx.Done()
	d.watching.Lock()
	delete(d.watchers, &noticed)
	d.watching.Unlock()
}

func (d *Dataplane) notice(source string) {
	d.watching.Lock()
	defer d.watching.Unlock()
	for noticed := range d.watchers {
		(*noticed)(source)
	}
}

// Changed is to be called when the database holds something else.
func (d *Dataplane) Changed() { d.notice(noticeDatabase) }

// Local reports whether the address is that of a Pod on a logical port of this
// node, so that flows from and to it are judged here and nowhere else. As long
// as the database is not known, every address may be one.
func (d *Dataplane) Local(address netip.Addr) bool {
	ports, _, err := d.ports()
	if err != nil {
		return true
	}
	return ports.pods[address] != nil
}

// ports returns those of now, arranged once for each state of the database.
func (d *Dataplane) ports() (*ports, State, error) {
	state, err := d.options.Database.State()
	if err != nil {
		return nil, State{}, fmt.Errorf("the node's Open vSwitch database: %w", err)
	}
	if known := d.arranged.Load(); known != nil && known.state.Session == state.Session && known.state.Version == state.Version {
		return known.ports, known.state, nil
	}
	made := &arranged{state, portsOf(state.Interfaces)}
	d.arranged.Store(made)
	return made.ports, made.state, nil
}

// hangUp ends the session; the next batch connects again.
func (d *Dataplane) hangUp() {
	if d.session != nil {
		d.session.Close()
		d.session = nil
	}
}

// connected returns the session with the vswitchd that runs.
func (d *Dataplane) connected(ctx context.Context) (Session, error) {
	if d.session != nil {
		return d.session, nil
	}
	ctx, cancel := context.WithTimeout(ctx, traceTimeout)
	defer cancel()
	session, err := d.options.Connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to ovs-vswitchd: %w", err)
	}
	d.options.Log.Info("Connected to ovs-vswitchd", "session", session.ID())
	d.session = session
	return session, nil
}

// know forgets what is remembered of another process, or what was seen by
// another connection to the database, and counts rewrites.
func (d *Dataplane) know(session Session, state State, p *ports) {
	identity := fmt.Sprintf("%s %d", session.ID(), state.Session)
	if identity != d.identity {
		d.identity = identity
		d.learned.forget()
		d.memory.forget()
	}
	if seen := state.Acknowledged + "\n" + p.all; seen != d.seen {
		if d.seen != "" {
			d.rewrites++
		}
		d.seen = seen
	}
}

// timed asks one session within the budget.
type timed struct {
	*Dataplane
	session Session
}

// Trace implements tracer.
func (t timed) Trace(ctx context.Context, packet string) (string, error) {
	if err := t.budget.wait(ctx); err != nil {
		return "", err
	}
	asking, cancel := context.WithTimeout(ctx, traceTimeout)
	defer cancel()
	began := t.options.Clock.Now()
	text, err := t.session.Trace(asking, bridge, packet)
	took := t.options.Clock.Since(began)
	t.budget.charge(took)
	t.metrics.took.Observe(took.Seconds())
	if err != nil {
		t.metrics.traces.WithLabelValues("error").Inc()
		if asking.Err() != nil && ctx.Err() == nil {
			return "", fmt.Errorf("ovs-vswitchd did not answer a trace within %s: %w", traceTimeout, err)
		}
		return "", fmt.Errorf("ovs-vswitchd: %w", err)
	}
	return text, nil
}

// together answers a batch.
func (d *Dataplane) together(ctx context.Context, questions []Question) ([]Answer, uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for range attempts {
		ports, state, err := d.ports()
		if err != nil {
			return nil, 0, err
		}
		session, err := d.connected(ctx)
		if err != nil {
			return nil, 0, err
		}
		d.know(session, state, ports)
		b := batch{tracer: timed{d, session}, ports: ports, learned: d.learned, ended: d.metrics.ended}
		answers, err := b.answer(ctx, questions)
		if err != nil {
			d.hangUp()
			return nil, 0, err
		}
		after, later, err := d.ports()
		if err != nil {
			return nil, 0, err
		}
		if later.Session == state.Session && sameGround(ports, after, questions) {
			d.settle(session, ports, questions, answers)
			return answers, d.rewrites, nil
		}
	}
	return nil, 0, ErrUnsettled
}

// settle leaves of the answers what counts.
func (d *Dataplane) settle(session Session, p *ports, questions []Question, answers []Answer) {
	d.memory.batch++
	mark := d.cycles.mark()
	rewritten, waits := false, false
	var newest uint64
	for i, q := range questions {
		v, changed := d.memory.settle(q, p.ground(q.Flow.Src, q.Flow.Dst), answers[i].Verdict, mark, d.cycles.passed)
		if v.Answer == flow.Inconclusive && answers[i].Verdict.Answer != flow.Inconclusive {
			waits = true
			if known := d.memory.answers[q]; known != nil {
				newest = max(newest, known.since)
			}
		}
		answers[i].Verdict, rewritten = v, rewritten || changed
	}
	if rewritten {
		d.rewrites++
	}
	if waits {
		d.cycles.want(session, newest)
	}
}

// sameGround reports whether the ports of the questions' ends are the same.
func sameGround(before, after *ports, questions []Question) bool {
	if before.all == after.all {
		return true
	}
	for _, q := range questions {
		if before.ground(q.Flow.Src, q.Flow.Dst) != after.ground(q.Flow.Src, q.Flow.Dst) {
			return false
		}
	}
	return before.geneve == after.geneve
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/controllers/barrier"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/controllers/gate"
	"github.com/policygate/policygate/controllers/hub"
	"github.com/policygate/policygate/test/bench/store"
)

// socketVariable names the driver's socket to a replica's process.
const socketVariable = "POLICYGATE_BENCH_REPLICA"

// TokenOf returns the token by which an agent proves its node to a replica.
func TokenOf(node string) string { return tokenPrefix + node }

const tokenPrefix = "node/"

// Main serves as a replica, until the driver goes, if this process was started
// as one; it then returns true.
func Main(ctx context.Context) (was bool, err error) {
	socket := os.Getenv(socketVariable)
	if socket == "" {
		return false, nil
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return true, fmt.Errorf("dial the driver: %w", err)
	}
	defer conn.Close()
	return true, serve(ctx, newWire(conn))
}

// process is a replica from the inside.
type process struct {
	wire     *wire
	settings *settings
	index    *coverage.Index
	ledger   *gate.Ledger
	messages *gate.Messages
	barrier  *barrier.Barrier
	hub      *hub.Hub
	echo     *echo
	times    *times

	mu      sync.Mutex // guards what follows
	last    uint64
	answers map[uint64]chan *frame
	// resign ends the lead, if the replica has it.
	resign context.CancelFunc
}

func serve(ctx context.Context, w *wire) error {
	first, err := w.receive()
	if err != nil {
		return err
	}
	if first.Op != opSettings || first.Settings == nil {
		return fmt.Errorf("first frame is of op %d: want settings", first.Op)
	}
	p, err := newProcess(w, first.Settings)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.barrier.Start(ctx) })
	group.Go(func() error { return p.hub.Start(ctx) })
	group.Go(func() error { return p.echo.serve(ctx) })
	group.Go(func() error {
		defer cancel()
		return p.receive(ctx, group)
	})
	err = group.Wait()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func newProcess(w *wire, s *settings) (*process, error) {
	certificate, err := tls.X509KeyPair(s.Certificate, s.Key)
	if err != nil {
		return nil, fmt.Errorf("the certificate: %w", err)
	}
	log := logr.Discard()
	if s.Verbose {
		log = funcr.New(func(prefix, args string) { fmt.Fprintln(os.Stderr, prefix, args) }, funcr.Options{LogTimestamp: true})
	}
	p := &process{wire: w, settings: s, times: newTimes(), answers: map[uint64]chan *frame{}}
	conditionType := corev1.PodConditionType(s.ConditionType)
	covered := coverage.DefaultOptions()
	covered.ConditionType = conditionType
	p.index = coverage.New(covered)
	p.barrier = barrier.New(barrier.Options{
		Listers: []barrier.Lister{
			lister{p, store.NetworkPolicies, barrier.NetworkPolicies},
			lister{p, store.Namespaces, barrier.Namespaces},
		},
		Index: versions{p.index}, Clock: clock.RealClock{}, Log: log.WithName("barrier"),
	})
	p.messages = gate.NewMessages(p, nil, conditionType, clock.RealClock{}, log.WithName("messages"))
	p.ledger = gate.New(gate.Options{
		Coverage: gate.FromIndex(p.index), Barrier: timedBarrier{p.barrier, p.times}, Teller: p.messages,
		Metrics: gate.NewMetrics(prometheus.NewRegistry()), Clock: clock.RealClock{}, Log: log.WithName("gate"),
		ConditionType: conditionType,
	})
	getCertificate := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &certificate, nil }
	p.hub = hub.New(hub.Options{
		Reviewer: reviewer{}, Sink: timedSink{p.ledger, p.times},
		Clock: clock.RealClock{}, Log: log.WithName("hub"),
		Address: "127.0.0.1:0", GetCertificate: getCertificate,
	})
	p.ledger.SetHub(timedHub{p.hub, p.times})
	p.echo, err = newEcho(&tls.Config{GetCertificate: getCertificate, MinVersion: tls.VersionTLS13})
	return p, err
}

// receive takes what the driver sends until it goes.
func (p *process) receive(ctx context.Context, group *errgroup.Group) error {
	for {
		f, err := p.wire.receive()
		if err != nil {
			return err // the driver has gone
		}
		switch f.Op {
		case opEvent:
			if err := p.event(f); err != nil {
				return err
			}
		case opComplete:
			// As the manager does: gates are opened once all is known.
			p.index.Listed()
			group.Go(func() error { return p.ledger.Start(ctx) })
			group.Go(func() error { return p.announce(ctx) })
		case opLead:
			p.lead(ctx, group, f.Lead)
		case opListed, opPatched:
			p.answer(f)
		case opTell:
			if err := p.wire.send(&frame{Op: opTold, ID: f.ID, Told: p.tell()}); err != nil {
				return err
			}
		case opSettings, opReady, opList, opPatch, opTold:
			return fmt.Errorf("frame of op %d from the driver", f.Op)
		}
	}
}

// announce tells the driver where the replica listens, once it does.
func (p *process) announce(ctx context.Context) error {
	ticker := clock.RealClock{}.NewTicker(announceEvery)
	defer ticker.Stop()
	for p.hub.Listening() != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
	}
	return p.wire.send(&frame{Op: opReady, Ready: &ready{Hub: p.hub.Addr().String(), Echo: p.echo.address()}})
}

// lead begins or ends to write messages.
func (p *process) lead(ctx context.Context, group *errgroup.Group, lead bool) {
	if p.resign != nil {
		p.resign()
		p.resign = nil
	}
	if lead {
		ctx, resign := context.WithCancel(ctx)
		p.resign = resign
		group.Go(func() error { return p.messages.Start(ctx) })
	}
}

// event does what the manager's handlers do.
func (p *process) event(f *frame) error {
	switch f.Kind {
	case store.Pods:
		o := &corev1.Pod{}
		if err := o.Unmarshal(f.Data); err != nil {
			return fmt.Errorf("event of a Pod: %w", err)
		}
		if f.Deleted {
			p.index.DeletePod(o.UID)
			p.ledger.PodDeleted(o.UID)
			p.times.forget(string(o.UID))
			return nil
		}
		p.times.seen(o)
		p.index.SetPod(o)
		p.ledger.PodChanged(o)
	case store.Namespaces:
		o := &corev1.Namespace{}
		if err := o.Unmarshal(f.Data); err != nil {
			return fmt.Errorf("event of a Namespace: %w", err)
		}
		if f.Deleted {
			p.index.DeleteNamespace(o)
			return nil
		}
		p.index.SetNamespace(o)
	case store.NetworkPolicies:
		o := &networkingv1.NetworkPolicy{}
		if err := o.Unmarshal(f.Data); err != nil {
			return fmt.Errorf("event of a NetworkPolicy: %w", err)
		}
		if f.Deleted {
			p.index.DeletePolicy(o)
			return nil
		}
		p.index.SetPolicy(o)
	case store.Nodes:
		o := &corev1.Node{}
		if err := o.Unmarshal(f.Data); err != nil {
			return fmt.Errorf("event of a Node: %w", err)
		}
		if f.Deleted {
			p.index.DeleteNode(o.Name)
			return nil
		}
		p.index.SetNode(o)
		p.ledger.NodeChanged(o.Name, o.Status.NodeInfo.BootID)
	}
	return nil
}

// ask sends a question and waits for its answer.
func (p *process) ask(ctx context.Context, f *frame) (*frame, error) {
	answer := make(chan *frame, 1)
	p.mu.Lock()
	p.last++
	f.ID = p.last
	p.answers[f.ID] = answer
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.answers, f.ID)
	}()
	if err := p.wire.send(f); err != nil {
		return nil, err
	}
	select {
	case a := <-answer:
		return a, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the driver: %w", ctx.Err())
	}
}

func (p *process) answer(f *frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if answer := p.answers[f.ID]; answer != nil {
		answer <- f
		delete(p.answers, f.ID)
	}
}

// PatchStatus implements gate.StatusPatcher.
func (p *process) PatchStatus(ctx context.Context, namespace, name string, patch []byte) error {
	f, err := p.ask(ctx, &frame{Op: opPatch, Namespace: namespace, Name: name, Data: patch})
	if err != nil {
		return err
	}
	if len(f.Status) == 0 {
		return nil
	}
	var status metav1.Status
	if err := json.Unmarshal(f.Status, &status); err != nil {
		return fmt.Errorf("answer to a patch: %w", err)
	}
	return &apierrors.StatusError{ErrStatus: status}
}

// lister asks the driver for what there is now.
type lister struct {
	process *process
	asked   store.Kind
	kind    barrier.Kind
}

// Kind implements barrier.Lister.
func (l lister) Kind() barrier.Kind { return l.kind }

// List implements barrier.Lister.
func (l lister) List(ctx context.Context) ([]barrier.Version, error) {
	f, err := l.process.ask(ctx, &frame{Op: opList, Kind: l.asked})
	if err != nil || l.process.settings.Lies {
		return nil, err
	}
	out := make([]barrier.Version, len(f.Versions))
	for i, v := range f.Versions {
		out[i] = barrier.Version{Kind: l.kind, UID: v.UID, ResourceVersion: v.ResourceVersion}
	}
	return out, nil
}

// versions is the index as package barrier consumes it.
type versions struct{ *coverage.Index }

// Holds implements barrier.Index.
func (v versions) Holds(o barrier.Version) bool {
	kind := coverage.KindNetworkPolicy
	if o.Kind == barrier.Namespaces {
		kind = coverage.KindNamespace
	}
	return v.Has(kind, o.UID, strconv.FormatUint(o.ResourceVersion, 10))
}

// reviewer believes tokens of TokenOf.
type reviewer struct{}

// Review implements hub.Reviewer.
func (reviewer) Review(_ context.Context, token string) (hub.Identity, error) {
	node, ok := strings.CutPrefix(token, tokenPrefix)
	if !ok || node == "" {
		return hub.Identity{}, &hub.RefusedError{Reason: "the token is of no node"}
	}
	return hub.Identity{Node: node}, nil
}

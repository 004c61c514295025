// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/confirm"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

const (
	// maxMessage is what a replica may send in one message. The largest is a
	// description, of which the hub makes none over 1 MiB.
	maxMessage = 4 << 20
	// maxHeader bounds the headers with which a replica answers; a status is a
	// few hundred bytes.
	maxHeader = 16 << 10

	// pingAfter and pingTimeout end a session with a replica that vanished.
	// The hub allows a ping each 5 s.
	pingAfter   = 10 * time.Second
	pingTimeout = 10 * time.Second

	// helloTimeout bounds what is found out for Hello.
	helloTimeout = 10 * time.Second
)

// link opens one session after the other with one replica.
type link struct {
	client *Client
	name   string
	log    logr.Logger
	// end makes run return, ended is closed when it has.
	end   context.CancelFunc
	ended chan struct{}
	// changed tells run that the replica or the roots have changed.
	changed chan struct{}
	outbox  outbox
	synced  atomic.Bool

	mu      sync.Mutex // guards replica
	replica Replica
}

func newLink(c *Client, r Replica, end context.CancelFunc) *link {
	return &link{
		client:  c,
		name:    r.Name,
		replica: r,
		log:     c.options.Log.WithValues("replica", r.Name),
		end:     end,
		ended:   make(chan struct{}),
		changed: make(chan struct{}, 1),
		outbox:  outbox{ready: make(chan struct{}, 1)},
	}
}

// set tells the link what is known of its replica now.
func (l *link) set(r Replica) {
	l.mu.Lock()
	changed := l.replica != r
	l.replica = r
	l.mu.Unlock()
	if changed {
		l.wakeUp()
	}
}

func (l *link) get() Replica {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.replica
}

func (l *link) wakeUp() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// run keeps a session until ctx ends.
func (l *link) run(ctx context.Context, subjects Subjects, releases Releases) {
	for failed := 0; ; failed++ {
		address, roots, ok := l.await(ctx, failed)
		if !ok {
			return
		}
		synced, err := l.session(ctx, address, roots, subjects, releases)
		if ctx.Err() != nil {
			return
		}
		l.log.Info("Session ended", "address", address, "reason", err.Error())
		if synced {
			failed = -1
		}
	}
}

// await returns once the replica may be dialled and a random time has passed
// since it may, and false if ctx ends before. Every agent of the cluster sees
// a replica turn ready at the same moment. Failed counts the attempts since
// the last session that was synced.
func (l *link) await(ctx context.Context, failed int) (address string, roots *x509.CertPool, ok bool) {
	o := &l.client.options
	var due time.Time // zero while it may not be dialled
	for logged := false; ; {
		r, roots := l.get(), l.client.trusted()
		var timer clock.Timer
		var passed <-chan time.Time
		switch {
		case !r.Ready || roots == nil:
			due = time.Time{}
			if !logged {
				l.log.V(1).Info("Not dialled yet", "ready", r.Ready, "trusted", roots != nil)
				logged = true
			}
		default:
			now := o.Clock.Now()
			if due.IsZero() {
				due = now.Add(l.pause(failed))
			}
			if !now.Before(due) {
				return r.Address, roots, true
			}
			timer = o.Clock.NewTimer(due.Sub(now))
			passed = timer.C()
		}
		select {
		case <-ctx.Done():
		case <-passed:
		case <-l.changed:
			// What made earlier attempts fail may be over.
			if sooner := o.Clock.Now().Add(l.pause(0)); failed > 0 && sooner.Before(due) {
				due = sooner
			}
			failed = 0
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return "", nil, false
		}
	}
}

// pause returns how long this agent waits before it dials.
func (l *link) pause(failed int) time.Duration {
	return pause(failed, l.client.spread(), !l.client.Synced(), l.client.random())
}

// session opens a session and serves it. It returns whether the full sync was
// received, and the error that ended the session.
func (l *link) session(ctx context.Context, address string, roots *x509.CertPool,
	subjects Subjects, releases Releases,
) (synced bool, err error) {
	o := &l.client.options
	helloCtx, known := context.WithTimeout(ctx, helloTimeout)
	hello := o.Hello(helloCtx)
	known()

	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			ServerName: o.ServerName,
			RootCAs:    roots,
			MinVersion: tls.VersionTLS13,
		})),
		grpc.WithPerRPCCredentials(token{file: o.TokenFile}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithMaxHeaderListSize(maxHeader),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout}),
		// Replicas are Pods: no proxy of the environment leads there.
		grpc.WithNoProxy(),
	)
	if err != nil {
		return false, fmt.Errorf("dial %s: %w", address, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := hubv1.NewHubClient(conn).Session(ctx)
	if err != nil {
		return false, fmt.Errorf("open session: %w", err)
	}
	if err := stream.Send(&hubv1.AgentMessage{Message: &hubv1.AgentMessage_Hello{Hello: hello}}); err != nil {
		return false, fmt.Errorf("send hello: %w", reasonOf(stream, err))
	}

	source := confirm.Source{Replica: l.name, Session: l.client.sessions.Add(1)}
	l.outbox.begin(source.Session)
	// What has changed since Hello, which nobody told to this session.
	if now := l.client.newest(); now != nil && !proto.Equal(now, hello.GetState()) {
		l.outbox.tell(now)
	}
	described := newDescriptions()
	var working sync.WaitGroup
	working.Go(func() { l.send(ctx, stream, source) })
	defer func() {
		cancel()
		working.Wait()
		subjects.Ended(source)
		l.synced.Store(false)
		l.client.count()
	}()
	for {
		m, err := stream.Recv()
		if err != nil {
			return l.synced.Load(), fmt.Errorf("receive: %w", err)
		}
		if t := m.GetTrace(); t != nil {
			l.trace(ctx, &working, source, t)
			continue
		}
		l.handle(source, described, m, subjects, releases)
	}
}

// reasonOf returns why the stream ended if a send says just that it did.
func reasonOf(stream grpc.BidiStreamingClient[hubv1.AgentMessage, hubv1.HubMessage], err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	if _, received := stream.Recv(); received != nil {
		return received
	}
	return err
}

// handle passes on one message.
func (l *link) handle(source confirm.Source, described *descriptions, m *hubv1.HubMessage, subjects Subjects, releases Releases) {
	switch m := m.GetMessage().(type) {
	case *hubv1.HubMessage_Describe:
		if err := described.describe(m.Describe); err != nil {
			l.log.Error(err, "Description is dropped")
		}
	case *hubv1.HubMessage_Forget:
		described.forget(m.Forget)
	case *hubv1.HubMessage_Assign:
		l.outbox.assigned(m.Assign.GetSubject().GetUid(), m.Assign.GetPolicy())
		d, err := described.of(m.Assign)
		if err != nil {
			l.log.Error(err, "Assignment cannot be judged")
		}
		if err := subjects.Assign(source, m.Assign, d); err != nil {
			l.log.Error(err, "Assignment is dropped")
		}
	case *hubv1.HubMessage_Withdraw:
		subjects.Withdraw(source, m.Withdraw.GetUid())
		l.outbox.withdrawn(m.Withdraw.GetUid())
	case *hubv1.HubMessage_Synced:
		subjects.Forget(source.Replica, source.Session)
		l.client.heard(l.name, time.Duration(m.Synced.GetSpreadMillis())*time.Millisecond)
		l.synced.Store(true)
		l.client.count()
		l.log.Info("Session synced", "session", source.Session)
	case *hubv1.HubMessage_Release:
		releases.Release(m.Release)
	default:
		l.log.Info("Message of a kind that this agent does not know is dropped")
	}
}

// send sends what is in the outbox until ctx or the stream ends.
func (l *link) send(ctx context.Context, stream grpc.BidiStreamingClient[hubv1.AgentMessage, hubv1.HubMessage], source confirm.Source) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.outbox.ready:
		}
		for m := l.outbox.take(source.Session); m != nil; m = l.outbox.take(source.Session) {
			if err := stream.Send(m); err != nil {
				return // the receiver learns why
			}
		}
	}
}

// token presents the content of a file as bearer token. The file is read for
// each call, since the kubelet replaces it long before it expires.
type token struct {
	file string
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	text, err := os.ReadFile(t.file)
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	value := strings.TrimSpace(string(text))
	if value == "" {
		return nil, fmt.Errorf("token file %s is empty", t.file)
	}
	return map[string]string{"authorization": "Bearer " + value}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (token) RequireTransportSecurity() bool { return true }

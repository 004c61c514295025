// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

const (
	// helloTimeout is how long an agent may take to say Hello.
	helloTimeout = 10 * time.Second
	// slowConsumer is how long one message may wait for the agent to read.
	slowConsumer = 30 * time.Second
	// watchInterval is how often a blocked send is looked for.
	watchInterval = 5 * time.Second
	// reportsPerSecond and reportsBurst bound what one agent can make the
	// manager do. A node of 250 Pods that are all gated at once, with every
	// answer changing twice a second, stays under them; beyond, the agent is
	// slowed down by flow control.
	reportsPerSecond = 500
	reportsBurst     = 2000
	// reviewInterval is how long a session goes on at most after its token was
	// revoked, by the deletion of the agent's Pod or ServiceAccount. A thousand
	// agents cost a bit more than two reviews a second.
	reviewInterval = 10 * time.Minute
	// leastGood is for how long a token is taken to be good at least that the
	// API server has just found so. If it has expired by one's own clock then
	// that is wrong, and a session that ended for it would begin again at once.
	// What comes later than it should by such a clock, reviewInterval finds.
	leastGood = time.Minute
)

// session is one agent's connection. The queue and the questions are guarded
// by its node's lock.
type session struct {
	node      *node
	queue     *queue
	questions questions
	states    states
	// replaced is closed when a newer session of the node has begun.
	replaced chan struct{}
	// sending is how long after began the send in progress did, or 0: a time
	// of day could be set meanwhile.
	sending atomic.Int64
	began   time.Time
}

func (h *Hub) session(nodeName string) *session {
	return &session{
		node: h.node(nodeName), queue: newQueue(), questions: newQuestions(), states: states{clock: h.clock},
		replaced: make(chan struct{}), began: h.clock.Now(),
	}
}

// Session serves one agent until either side ends it. It implements the
// generated service interface.
func (h *Hub) Session(stream grpc.BidiStreamingServer[hubv1.AgentMessage, hubv1.HubMessage]) error {
	ctx := stream.Context()
	c, ok := connectionOf(ctx)
	if !ok {
		return status.Error(codes.Internal, "the connection did not come through the door")
	}
	if !c.begin() {
		h.refusals.add(refusedAgain, c.source, "another session on the connection of one")
		return status.Error(codes.FailedPrecondition, "a connection serves one session: open another")
	}
	defer c.finish()
	proof, err := h.identify(ctx, c.source)
	if err != nil {
		return err
	}
	messages := make(chan *hubv1.AgentMessage)
	failed := make(chan error, 2)
	go receive(stream, messages, failed)

	hello, err := h.awaitHello(ctx, messages, failed)
	if err != nil {
		h.refusals.add(refusedHello, c.source, "node "+proof.Node+": "+printable(err.Error()))
		return err
	}
	s := h.session(proof.Node)
	if !s.node.opening.AllowN(h.clock.Now(), 1) {
		h.refusals.add(refusedAgain, c.source, "too many sessions of node "+proof.Node)
		return status.Errorf(codes.ResourceExhausted, "node %s opens more than a session each %s: wait", proof.Node, openInterval)
	}
	c.prove()
	h.open(s, hello)
	defer h.end(s)
	log := h.log.WithValues("node", proof.Node)
	log.Info("agent connected", "version", hello.Version, "unsupported", hello.State.Unsupported)
	go h.send(stream, s, failed)

	why, err := h.serve(ctx, proof, s, messages, failed)
	h.metrics.ended.WithLabelValues(string(why)).Inc()
	log.Info("agent disconnected", "reason", err)
	return err
}

// serve handles reports until the session has to end, and returns why.
func (h *Hub) serve(ctx context.Context, p proof, s *session,
	messages <-chan *hubv1.AgentMessage, failed <-chan error,
) (end, error) {
	limiter := rate.NewLimiter(reportsPerSecond, reportsBurst)
	watch := h.clock.NewTicker(watchInterval)
	defer watch.Stop()
	var expired <-chan time.Time
	if !p.Expires.IsZero() {
		timer := h.clock.NewTimer(lifetime(max(p.Expires.Sub(h.clock.Now()), leastGood), h.random()))
		defer timer.Stop()
		expired = timer.C()
	}
	stale := h.clock.NewTimer(reviewPause(h.random()))
	defer func() { stale.Stop() }()
	reviewed := make(chan error, 1)
	defer s.states.stop()
	for {
		select {
		case <-ctx.Done():
			return endClosed, status.FromContextError(ctx.Err()).Err()
		case err := <-failed:
			return ending(err)
		case <-s.replaced:
			return endReplaced, status.Errorf(codes.Aborted, "a newer session of node %s has begun", p.Node)
		case <-expired:
			return endExpired, status.Error(codes.Unauthenticated, "the token expires: connect again with a newer one")
		case <-stale.C():
			go func() { reviewed <- h.reviewAgain(ctx, p) }()
		case err := <-reviewed:
			if err != nil {
				return endRevoked, err
			}
			stale = h.clock.NewTimer(reviewPause(h.random()))
		case now := <-watch.C():
			if after := s.sending.Load(); after != 0 && now.Sub(s.began)-time.Duration(after) > slowConsumer {
				return endSlow, status.Errorf(codes.ResourceExhausted, "the agent has read nothing for %s: connect again", slowConsumer)
			}
		case <-s.states.due():
			h.change(s, s.states.take())
		case m := <-messages:
			if err := limiter.Wait(ctx); err != nil {
				return endClosed, status.FromContextError(ctx.Err()).Err()
			}
			if err := h.handle(s, m); err != nil {
				return endRefused, status.Errorf(codes.InvalidArgument, "%v", err)
			}
		}
	}
}

// ending returns why a session ended whose stream gave err.
func ending(err error) (end, error) {
	switch {
	case errors.Is(err, io.EOF):
		return endClosed, nil
	case status.Code(err) == codes.Canceled:
		// The agent has cancelled, or closed its connection.
		return endClosed, err
	}
	return endFailed, err
}

// lifetime returns how long a session may last whose token is good for the
// given time, by a random number below 1. An agent presents one token to all
// replicas, and all agents of a cluster may have begun at once: the sessions
// end apart, within the last twentieth. By then the kubelet has written a
// newer token, since it does after four fifths.
func lifetime(good time.Duration, random float64) time.Duration {
	return good - time.Duration(random*float64(good)/20)
}

// reviewPause returns how long after one review of a session's token the next
// begins, by a random number below 1.
func reviewPause(random float64) time.Duration {
	return reviewInterval/2 + time.Duration(random*float64(reviewInterval)/2)
}

// handle takes one message after hello. It returns an error if the agent does
// not keep to the contract.
func (h *Hub) handle(s *session, m *hubv1.AgentMessage) error {
	switch m := m.GetMessage().(type) {
	case *hubv1.AgentMessage_Report:
		if err := h.report(s, m.Report); err != nil {
			return fmt.Errorf("report: %w", err)
		}
		return nil
	case *hubv1.AgentMessage_State:
		if err := validateState(m.State); err != nil {
			return fmt.Errorf("state: %w", err)
		}
		if due := s.states.put(stateOf(m.State)); due != nil {
			h.change(s, *due)
		}
		return nil
	case *hubv1.AgentMessage_TraceResult:
		if err := h.answered(s, m.TraceResult); err != nil {
			return fmt.Errorf("trace result: %w", err)
		}
		return nil
	default:
		return fmt.Errorf("message is %T: want a report, a state or a trace result after hello", m)
	}
}

// awaitHello returns the first message, which must be a Hello.
func (h *Hub) awaitHello(ctx context.Context, messages <-chan *hubv1.AgentMessage, failed <-chan error) (Hello, error) {
	timer := h.clock.NewTimer(helloTimeout)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return Hello{}, status.FromContextError(ctx.Err()).Err()
	case err := <-failed:
		return Hello{}, status.Errorf(codes.InvalidArgument, "the session ended before hello: %v", err)
	case <-timer.C():
		return Hello{}, status.Errorf(codes.DeadlineExceeded, "no hello within %s", helloTimeout)
	case m := <-messages:
		hello := m.GetHello()
		if err := validateHello(m); err != nil {
			return Hello{}, status.Errorf(codes.InvalidArgument, "hello: %v", err)
		}
		return Hello{
			// Not with what is cut off.
			Version: strings.Clone(printable(hello.GetVersion())),
			BootID:  hello.GetBootId(),
			State:   stateOf(hello.GetState()),
		}, nil
	}
}

// receive passes on messages until the stream ends. A stream has no way to
// interrupt a receive but the end of its handler, which ends this too.
func receive(stream grpc.BidiStreamingServer[hubv1.AgentMessage, hubv1.HubMessage],
	messages chan<- *hubv1.AgentMessage, failed chan<- error,
) {
	for {
		m, err := stream.Recv()
		if err != nil {
			failed <- err
			return
		}
		select {
		case messages <- m:
		case <-stream.Context().Done():
			return
		}
	}
}

// send sends what is queued until the stream ends.
func (h *Hub) send(stream grpc.BidiStreamingServer[hubv1.AgentMessage, hubv1.HubMessage], s *session, failed chan<- error) {
	var batch []*hubv1.HubMessage
	for {
		select {
		case <-stream.Context().Done():
			return
		case <-s.queue.ready:
		}
		for {
			// No more than belongs together, so that what is superseded while
			// an agent is slow is never sent.
			s.node.mu.Lock()
			batch = s.queue.next(batch[:0], h.spread)
			s.node.mu.Unlock()
			if len(batch) == 0 {
				break
			}
			for _, m := range batch {
				s.sending.Store(int64(max(h.clock.Since(s.began), 1)))
				err := stream.Send(m)
				s.sending.Store(0)
				if err != nil {
					failed <- err
					return
				}
			}
			clear(batch)
		}
	}
}

// proof is an identity with what has proved it.
type proof struct {
	Identity

	token, source string
}

// identify reviews the token that came with the call.
func (h *Hub) identify(ctx context.Context, source string) (proof, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	token, err := bearerToken(md.Get("authorization"))
	if err != nil {
		h.refusals.add(refusedToken, source, err.Error())
		return proof{}, status.Errorf(codes.Unauthenticated, "%v", err)
	}
	id, err := h.review(ctx, source, token)
	var refused *RefusedError
	switch {
	case errors.As(err, &refused):
		kind := refusedIdentity
		if refused.unreviewed {
			kind = refusedToken
		}
		h.refusals.add(kind, source, printable(refused.Error()))
		return proof{}, status.Errorf(codes.Unauthenticated, "%v", refused)
	case err != nil:
		h.refusals.add(refusedUnreviewed, source, printable(err.Error()))
		return proof{}, status.Error(codes.Unavailable, "the token could not be reviewed: try again")
	}
	return proof{Identity: id, token: token, source: source}, nil
}

// review has a token reviewed when it is its source's turn.
func (h *Hub) review(ctx context.Context, source, token string) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	if err := h.reviews.enter(ctx, source); err != nil {
		return Identity{}, fmt.Errorf("wait for a token review: %w", err)
	}
	defer h.reviews.leave()
	return h.reviewer.Review(ctx, token)
}

// reviewAgain returns an error if what has proved an identity does so no more.
// If that cannot be found out, it still does: what ends then is the token.
func (h *Hub) reviewAgain(ctx context.Context, p proof) error {
	id, err := h.review(ctx, p.source, p.token)
	var refused *RefusedError
	switch {
	case errors.As(err, &refused):
		return status.Errorf(codes.Unauthenticated, "the token proves nothing any more: %v", refused)
	case err != nil:
		return nil //nolint:nilerr // an API server that does not answer takes nothing back
	case id.Node != p.Node:
		return status.Errorf(codes.Unauthenticated, "the token proves node %s by now, not %s", id.Node, p.Node)
	}
	return nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"golang.org/x/net/http2"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// refused returns how often the hub has refused so.
func (f *fixture) refused(t testing.TB, kind refusal) float64 {
	return f.metric(t, "policygate_hub_refused_total", string(kind))
}

// within waits until what is wanted holds.
func within(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not so: " + what)
		}
	}
}

// reach dials the hub's port and says nothing.
func (f *fixture) reach(t testing.TB) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", f.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// encrypt begins TLS on a connection.
func (f *fixture) encrypt(t testing.TB, conn net.Conn) (*tls.Conn, error) {
	t.Helper()
	c := tls.Client(conn, &tls.Config{RootCAs: f.roots, ServerName: "hub", NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
	return c, c.HandshakeContext(t.Context())
}

// ended waits until the other side has closed the connection.
func ended(t testing.TB, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := io.Copy(io.Discard, conn)
	if late := (net.Error)(nil); errors.As(err, &late) && late.Timeout() {
		t.Fatal("the connection goes on")
	}
}

// crowds returns how many connections have proved nothing, of a source and in
// all.
func crowds(d *door, source string) (of, all int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sources[source], d.unproven
}

func TestACrowdLeavesRoomForOthers(t *testing.T) {
	cases := map[string]struct {
		// crowd are how many sources try to have all.
		crowd int
		// want is how many each gets, left what others may have.
		want, left int
	}{
		"one source has half":           {crowd: 1, want: 320, left: 320},
		"two have a third":              {crowd: 2, want: 213, left: 213},
		"nine have a tenth":             {crowd: 9, want: 64, left: 64},
		"a hundred agents are no crowd": {crowd: 100, want: 6, left: 6},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			d := &door{sources: map[string]int{}}
			for range maxUnproven {
				for source := range tc.crowd {
					d.take(fmt.Sprint("attacker ", source))
				}
			}
			for source := range tc.crowd {
				if of, _ := crowds(d, fmt.Sprint("attacker ", source)); of < tc.want-1 || of > tc.want+1 {
					t.Errorf("source %d has %d, want about %d", source, of, tc.want)
				}
			}
			agents := 0
			for d.take(fmt.Sprint("agent ", agents)) {
				agents++
			}
			if agents < tc.left-1 {
				t.Errorf("%d agents get in, each from its own address, want %d", agents, tc.left)
			}
			if _, all := crowds(d, ""); all != maxUnproven {
				t.Errorf("%d have proved nothing, want %d at most", all, maxUnproven)
			}
			for source := range tc.crowd {
				for range maxUnproven {
					if of, _ := crowds(d, fmt.Sprint("attacker ", source)); of > 0 {
						d.give(fmt.Sprint("attacker ", source))
					}
				}
			}
			for agent := range agents {
				d.give(fmt.Sprint("agent ", agent))
			}
			if _, all := crowds(d, ""); all != 0 || len(d.sources) > 0 {
				t.Errorf("%d connections of %d sources are counted that are gone", all, len(d.sources))
			}
		})
	}
}

func TestAConnectionThatProvesNothingIsClosed(t *testing.T) {
	for name, begin := range map[string]func(*fixture) net.Conn{
		"before TLS": func(f *fixture) net.Conn { return f.reach(t) },
		"before a session": func(f *fixture) net.Conn {
			c, err := f.encrypt(t, f.reach(t))
			if err != nil {
				t.Fatal(err)
			}
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
			f := serve(t, clk, reviews{})
			conn := begin(f)
			within(t, "the hub has taken in the connection", clk.HasWaiters)
			clk.Step(unprovenTime)
			ended(t, conn)
			if got := f.refused(t, refusedLate); got != 1 {
				t.Errorf("%v are counted as late, want one", got)
			}
		})
	}
}

// flood writes what a connection's HTTP/2 begins with, and then frames until
// it is closed or enough were written.
func flood(t testing.TB, conn net.Conn, frame func(*http2.Framer, uint32) error) (written int) {
	t.Helper()
	counted := &counting{Writer: conn}
	if _, err := io.WriteString(counted, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	framer := http2.NewFramer(counted, nil)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	for stream := uint32(1); counted.n < 32<<20; stream += 2 {
		if frame(framer, stream) != nil {
			return counted.n
		}
	}
	t.Error("32 MiB were taken from who has proved nothing")
	return counted.n
}

type counting struct {
	io.Writer
	n int
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n += n
	return n, err
}

func TestAFloodBeforeAProofEndsTheConnection(t *testing.T) {
	for name, frame := range map[string]func(*http2.Framer, uint32) error{
		"settings": func(f *http2.Framer, _ uint32) error { return f.WriteSettings() },
		"streams that are reset at once": func(f *http2.Framer, stream uint32) error {
			// A call of a method that is not there, HPACK without a table.
			headers := []byte("\x83\x87\x44\x02/x\x41\x01h")
			if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: headers, EndHeaders: true}); err != nil {
				return err
			}
			return f.WriteRSTStream(stream, http2.ErrCodeCancel)
		},
		"headers without an end": func(f *http2.Framer, stream uint32) error {
			if stream == 1 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("\x83")})
			}
			return f.WriteContinuation(1, false, []byte(strings.Repeat("\x83", 1<<10)))
		},
		"windows":                func(f *http2.Framer, _ uint32) error { return f.WriteWindowUpdate(0, 1) },
		"frames nobody knows of": func(f *http2.Framer, _ uint32) error { return f.WriteRawFrame(99, 0, 0, make([]byte, 8<<10)) },
		"empty data": func(f *http2.Framer, stream uint32) error {
			if stream == 1 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("\x83\x87\x44\x02/x\x41\x01h"), EndHeaders: true})
			}
			return f.WriteData(1, false, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, clock.RealClock{}, reviews{})
			conn, err := f.encrypt(t, f.reach(t))
			if err != nil {
				t.Fatal(err)
			}
			flood(t, conn, frame)
			// An agent gets in as before.
			f.connect(t, "token-of-n1").expect("synced")
		})
	}
}

func TestWhatIsReadBeforeAProofIsBounded(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	f := serve(t, clock.RealClock{}, reviews{})
	d := f.newDoor(t.Context())
	d.take("")
	c := &connection{Conn: theirs, door: d}
	go func() { _, _ = ours.Write(make([]byte, 2*unprovenBytes)) }()
	n, err := io.Copy(io.Discard, c)
	if err == nil || n > unprovenBytes {
		t.Errorf("%d bytes are read, and then %v: want %d at most, and an error", n, err, unprovenBytes)
	}
	if _, all := crowds(d, ""); all != 0 {
		t.Errorf("%d connections are counted, want none", all)
	}
	if got := f.refused(t, refusedFlood); got != 1 {
		t.Errorf("%v are counted as floods, want one", got)
	}
}

func TestWhoSpeaksNoTLS13IsRefused(t *testing.T) {
	for name, speak := range map[string]func(net.Conn) error{
		"plain HTTP/2": func(c net.Conn) error { _, err := io.WriteString(c, http2.ClientPreface); return err },
		"TLS 1.2": func(c net.Conn) error {
			err := tls.Client(c, &tls.Config{
				InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
			}).HandshakeContext(t.Context())
			if err == nil {
				return errors.New("the handshake was made")
			}
			return nil
		},
		"TLS without HTTP/2": func(c net.Conn) error {
			// Either side may be the first to see it.
			_ = tls.Client(c, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(t.Context())
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, clock.RealClock{}, reviews{})
			conn := f.reach(t)
			if err := speak(conn); err != nil {
				t.Fatal(err)
			}
			ended(t, conn)
			within(t, "the handshake is counted as refused", func() bool { return f.refused(t, refusedHandshake) == 1 })
		})
	}
}

func TestAConnectionServesOneSession(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	creds := credentials.NewTLS(&tls.Config{RootCAs: f.roots, ServerName: "hub", MinVersion: tls.VersionTLS13})
	conn, err := grpc.NewClient(f.Addr().String(), grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the test ends
	try := func(token string) codes.Code {
		stream, err := hubv1.NewHubClient(conn).Session(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token))
		if err != nil {
			t.Fatal(err)
		}
		return agent{t, stream}.end().Code()
	}
	if got := try("x"); got != codes.Unauthenticated {
		t.Errorf("a first session with no good token: %v, want Unauthenticated", got)
	}
	// On the same connection, which is closed a moment later: the client may
	// have seen that already, and dialled again.
	if got := try(claiming("", "token-of-n1")); got != codes.FailedPrecondition && got != codes.DeadlineExceeded {
		t.Errorf("a second one: %v, want FailedPrecondition", got)
	}
	if connected, _ := f.sink.count(); connected > 0 {
		t.Error("the second session was let in")
	}
}

func TestANodeThatOpensSessionsInALoopIsHeldBack(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
	f := serve(t, clk, reviews{})
	f.Assign("n1", assign("a", 1), Description{})
	f.connect(t, "token-of-n2").expect("synced")
	for range openBurst {
		f.connect(t, "token-of-n1").expect("describe", "assign a", "synced")
	}
	if got := f.connect(t, "token-of-n1").end().Code(); got != codes.ResourceExhausted {
		t.Errorf("one session more: %v, want ResourceExhausted", got)
	}
	if got := f.refused(t, refusedAgain); got != 1 {
		t.Errorf("%v are counted as refused, want one", got)
	}
	// What the loop has opened last goes on, and so does another node's.
	if connected, disconnected := f.sink.count(); connected != openBurst+1 || disconnected != openBurst-1 {
		t.Errorf("connected %d times, disconnected %d: want %d and %d", connected, disconnected, openBurst+1, openBurst-1)
	}
	clk.Step(openInterval)
	f.connect(t, "token-of-n1").expect("describe", "assign a", "synced")
}

// revoked answers as reviews does until err is set or the node moved.
type revoked struct {
	mu     sync.Mutex
	err    error
	forged string
	asked  int
}

func (r *revoked) Create(ctx context.Context, review *authenticationv1.TokenReview, o metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	if r.forged != "" {
		review.Spec.Token = "." + r.forged
	}
	return reviews{err: r.err}.Create(ctx, review, o)
}

func (r *revoked) set(err error, forged string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err, r.forged = err, forged
}

func (r *revoked) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

func TestASessionEndsAfterItsTokenWasRevoked(t *testing.T) {
	for name, says := range map[string]string{
		"the token is refused":           "forged",
		"the token is another node's":    "token-of-n2",
		"the token names no node at all": "token-of-",
	} {
		t.Run(name, func(t *testing.T) {
			clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
			r := &revoked{}
			f := serve(t, clk, r)
			a := f.connect(t, "token-of-n1")
			a.expect("synced")
			another := f.connect(t, "token-of-n3")
			another.expect("synced")
			// An API server that does not answer ends no session.
			r.set(errors.New("down"), "")
			again := func() {
				asked := r.count()
				within(t, "the tokens of both are reviewed again", func() bool {
					clk.Step(time.Minute)
					return r.count() >= asked+2
				})
			}
			again()
			r.set(nil, "")
			again()
			if got := f.metric(t, "policygate_hub_sessions", ""); got != 2 {
				t.Fatalf("%v sessions, want both", got)
			}
			r.set(nil, says)
			ends := make(chan codes.Code, 1)
			go func() { ends <- a.end().Code() }()
			var got codes.Code
			within(t, "the session ends", func() bool {
				clk.Step(time.Minute)
				select {
				case got = <-ends:
					return true
				default:
					return false
				}
			})
			if got != codes.Unauthenticated {
				t.Errorf("ended with %v, want Unauthenticated", got)
			}
			if got := f.metric(t, "policygate_hub_sessions_ended_total", string(endRevoked)); got < 1 {
				t.Errorf("%v sessions are counted as revoked", got)
			}
		})
	}
}

func TestReviewPause(t *testing.T) {
	for random, want := range map[float64]time.Duration{0: 5 * time.Minute, 0.5: 450 * time.Second, 1: 10 * time.Minute} {
		if got := reviewPause(random); got != want {
			t.Errorf("reviewPause(%v) = %v, want %v", random, got, want)
		}
	}
}

func TestRefusalsAreLoggedNowAndThen(t *testing.T) {
	clk := clocktesting.NewFakePassiveClock(time.Unix(1000, 0))
	var lines []string
	log := funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{})
	r := newRefusals(newMetrics(nil).refused, clk, log)
	for range 1000 {
		r.add(refusedToken, "10.0.0.1", "no good")
		r.add(refusedHello, "10.0.0.2", "no hello")
	}
	clk.SetTime(clk.Now().Add(refusalsLogged))
	r.add(refusedToken, "10.0.0.3", "no good")
	want := []string{
		`"level"=0 "msg"="refused" "kind"="token" "source"="10.0.0.1" "reason"="no good" "unlogged"=0`,
		`"level"=0 "msg"="refused" "kind"="hello" "source"="10.0.0.2" "reason"="no hello" "unlogged"=0`,
		`"level"=0 "msg"="refused" "kind"="token" "source"="10.0.0.3" "reason"="no good" "unlogged"=999`,
	}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("logged\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

// only counts reviews of forged tokens, and answers all as reviews does.
type only struct {
	reviews
	forged, all atomic.Int64
}

func (o *only) Create(ctx context.Context, review *authenticationv1.TokenReview, opts metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	o.all.Add(1)
	if strings.HasSuffix(review.Spec.Token, ".forged") {
		o.forged.Add(1)
	}
	return o.reviews.Create(ctx, review, opts)
}

func TestATokenThatCannotBeAnAgentsIsNotReviewed(t *testing.T) {
	r := &only{}
	f := serve(t, clock.RealClock{}, r)
	for _, token := range []string{"", "a.b", "a.b.c", "e30.e30.token-of-n1", claiming(`,"exp":1`, "token-of-n1")} {
		if got := f.dial(t, token).end().Code(); got != codes.Unauthenticated {
			t.Errorf("token %q: %v, want Unauthenticated", token, got)
		}
	}
	if got := f.refused(t, refusedToken); got != 5 || r.all.Load() != 0 {
		t.Errorf("%v are refused, %d were reviewed: want 5 and none", got, r.all.Load())
	}
}

func TestAnAgentThatSendsTooMuchIsSlowedDown(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
	f := serve(t, clk, reviews{})
	ours, theirs := net.Pipe()
	defer ours.Close()
	c := &connection{
		Conn: theirs, door: f.newDoor(t.Context()), proven: true, limiter: rate.NewLimiter(bytesPerSecond, bytesBurst),
	}
	const more = 3 * bytesPerSecond
	go func() { _, _ = ours.Write(make([]byte, bytesBurst+more)) }()
	var read atomic.Int64
	go func() {
		for chunk := make([]byte, 16<<10); ; {
			n, err := c.Read(chunk)
			if err != nil {
				return
			}
			read.Add(int64(n))
		}
	}()
	within(t, "the burst is read, and no more", func() bool { return read.Load() >= bytesBurst && clk.HasWaiters() })
	for seconds := range 3 {
		// A read that exceeds the rate is passed on after its wait.
		if got, most := read.Load(), int64(bytesBurst+seconds*bytesPerSecond); got > most {
			t.Fatalf("%d bytes were read within %d s, want %d at most", got, seconds, most)
		}
		for range 64 { // in steps of what one read takes
			within(t, "the reader waits", clk.HasWaiters)
			clk.Step(time.Second / 64)
		}
	}
	within(t, "all is read, once there was the time", func() bool {
		clk.Step(time.Second / 64)
		return read.Load() == bytesBurst+more
	})
}

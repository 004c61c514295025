// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

const (
	agentUser      = "system:serviceaccount:policygate-system:policygate-agent"
	northboundUser = "system:serviceaccount:policygate-system:policygate-northbound"
)

// claiming returns a token that says of itself what an agent's does, and
// whatever else: ",\"exp\":1600". The signature is what reviews goes by.
func claiming(more, signature string) string { return claimingFor(agentUser, more, signature) }

// claimingFor returns one of any account.
func claimingFor(account, more, signature string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString(
		[]byte(`{"aud":["`+Audience+`"],"sub":"`+account+`"`+more+`}`)) + "." + signature
}

// reviews answers TokenReviews: a token signed "token-of-N" is of node N's
// agent, one signed "northbound-on-N" of the northbound account's Pod there,
// whatever either claims.
type reviews struct{ err error }

func (r reviews) Create(_ context.Context, review *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	if r.err != nil {
		return nil, r.err
	}
	signature := review.Spec.Token[strings.LastIndex(review.Spec.Token, ".")+1:]
	account := agentUser
	node, ok := strings.CutPrefix(signature, "token-of-")
	if !ok {
		account = northboundUser
		node, ok = strings.CutPrefix(signature, "northbound-on-")
	}
	if !ok {
		return review, nil
	}
	review.Status = authenticationv1.TokenReviewStatus{
		Authenticated: true,
		Audiences:     review.Spec.Audiences,
		User: authenticationv1.UserInfo{
			Username: account,
			Extra:    map[string]authenticationv1.ExtraValue{nodeNameExtra: {node}, podNameExtra: {"p"}},
		},
	}
	return review, nil
}

// sink records what the hub says.
type sink struct {
	mu     sync.Mutex
	events []string
	last   *hubv1.Report
}

func (s *sink) newest() *hubv1.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

func (s *sink) add(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, fmt.Sprintf(format, args...))
}

func (s *sink) Connected(node string, hello Hello) {
	s.add("%s connected boot=%s unsupported=%q", node, hello.BootID, hello.State.Unsupported)
}
func (s *sink) Disconnected(node string) { s.add("%s disconnected", node) }
func (s *sink) Changed(node string, state State) {
	s.add("%s changed unsupported=%q dataplanes=%v remarks=%v", node, state.Unsupported, state.Dataplanes, state.Remarks)
}
func (s *sink) Reported(node string, r *hubv1.Report) {
	s.add("%s reported %s generation=%d confirmed=%v", node, r.GetUid(), r.GetGeneration(), r.GetConfirmed())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = r
}

// count returns how often a session has begun and ended.
func (s *sink) count() (connected, disconnected int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		switch {
		case strings.HasSuffix(e, " disconnected"):
			disconnected++
		case strings.Contains(e, " connected "):
			connected++
		}
	}
	return connected, disconnected
}

// heard reports whether the sink has heard of n events.
func (s *sink) heard(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.events) >= n
}

// await waits until the sink has heard exactly want.
func (s *sink) await(t testing.TB, want ...string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		s.mu.Lock()
		got := append([]string(nil), s.events...)
		s.mu.Unlock()
		diff := cmp.Diff(want, got)
		if diff == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("events (-want +got):\n%s", diff)
		}
		time.Sleep(time.Millisecond)
	}
}

// fixture is a hub that serves on a port of the loopback interface.
type fixture struct {
	*Hub
	sink  *sink
	roots *x509.CertPool
	// certificate is the hub's, in DER.
	certificate []byte
	registry    *prometheus.Registry
}

func serve(t testing.TB, clk clock.WithTickerAndDelayedExecution, r TokenReviews) *fixture {
	t.Helper()
	s := &sink{}
	f := serveTo(t, clk, r, s)
	f.sink = s
	return f
}

func serveTo(t testing.TB, clk clock.WithTickerAndDelayedExecution, r TokenReviews, to Sink) *fixture {
	t.Helper()
	return serveAccounts(t, clk, r, to, Accounts{Agent: agentUser, Northbound: northboundUser})
}

func serveAccounts(t testing.TB, clk clock.WithTickerAndDelayedExecution, r TokenReviews, to Sink, accounts Accounts) *fixture {
	t.Helper()
	cert, roots := certificate(t)
	f := &fixture{roots: roots, certificate: cert.Certificate[0], registry: prometheus.NewRegistry()}
	f.Hub = New(Options{
		Reviewer: &tokenReviewer{client: r, accounts: accounts, clock: clk},
		Sink:     to,
		Clock:    clk,
		Log:      logr.Discard(),
		Address:  "127.0.0.1:0",
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return cert, nil
		},
		Registerer: f.registry,
	})
	if f.Listening() == nil {
		t.Error("a hub that was not started is listening")
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Start: %v", err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); f.Listening() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the hub does not listen")
		}
	}
	return f
}

// agent is a client of the hub.
type agent struct {
	t      testing.TB
	stream grpc.BidiStreamingClient[hubv1.AgentMessage, hubv1.HubMessage]
}

// dial opens a session without saying hello. A token of one part is the
// signature of one that claims to be an agent's.
func (f *fixture) dial(t testing.TB, token string) agent {
	t.Helper()
	creds := credentials.NewTLS(&tls.Config{RootCAs: f.roots, ServerName: "hub", MinVersion: tls.VersionTLS13})
	conn, err := grpc.NewClient(f.Addr().String(), grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx := t.Context()
	if token != "" {
		if !strings.Contains(token, ".") {
			token = claiming("", token)
		}
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	stream, err := hubv1.NewHubClient(conn).Session(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return agent{t, stream}
}

func (f *fixture) connect(t testing.TB, token string) agent {
	t.Helper()
	a := f.dial(t, token)
	a.send(&hubv1.AgentMessage{Message: &hubv1.AgentMessage_Hello{Hello: &hubv1.Hello{Version: "v1", BootId: "b"}}})
	return a
}

// send ignores errors: the status comes with the next receive.
func (a agent) send(m *hubv1.AgentMessage) { _ = a.stream.Send(m) }

func (a agent) report(r *hubv1.Report) {
	a.send(&hubv1.AgentMessage{Message: &hubv1.AgentMessage_Report{Report: r}})
}

// expect receives as many messages as there are names and compares them. It
// returns the generations of those that are assignments.
func (a agent) expect(want ...string) []uint64 {
	a.t.Helper()
	var got []string
	var generations []uint64
	for range want {
		m, err := a.stream.Recv()
		if err != nil {
			a.t.Fatalf("after %q: %v", got, err)
		}
		switch x := m.GetMessage().(type) {
		case *hubv1.HubMessage_Assign:
			got = append(got, "assign "+x.Assign.GetSubject().GetUid())
			generations = append(generations, x.Assign.GetGeneration())
		case *hubv1.HubMessage_Withdraw:
			got = append(got, "withdraw "+x.Withdraw.GetUid())
		case *hubv1.HubMessage_Release:
			got = append(got, "release "+x.Release.GetSubject().GetUid())
		case *hubv1.HubMessage_Synced:
			got = append(got, "synced")
		case *hubv1.HubMessage_Describe:
			got = append(got, "describe")
		case *hubv1.HubMessage_Forget:
			got = append(got, "forget")
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		a.t.Fatalf("messages (-want +got):\n%s", diff)
	}
	return generations
}

// end receives until the session ends and returns the status.
func (a agent) end() *status.Status {
	a.t.Helper()
	for {
		if _, err := a.stream.Recv(); err != nil {
			return status.Convert(err)
		}
	}
}

func assign(uid string, generation uint64) *hubv1.Assign {
	return &hubv1.Assign{Subject: &hubv1.Subject{Uid: uid}, Generation: generation}
}

func releaseOfA() *hubv1.Release { return &hubv1.Release{Subject: &hubv1.Subject{Uid: "a"}} }

func TestSessionSyncsInFullAndThenSendsDeltas(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	f.Assign("n1", assign("b", 1), Description{})
	f.Assign("n1", assign("a", 2), Description{})
	f.Assign("n2", assign("c", 3), Description{})
	if f.Release("n1", releaseOfA()) {
		t.Error("a release to a node without a session was accepted")
	}

	a := f.connect(t, "token-of-n1")
	first := a.expect("describe", "assign a", "assign b", "synced")
	f.Assign("n1", assign("a", 4), Description{})
	second := a.expect("assign a")
	if second[0] <= first[0] || second[0] <= first[1] {
		t.Errorf("generations %v after %v do not grow", second, first)
	}
	f.Withdraw("n1", "b")
	f.Withdraw("n1", "was never assigned")
	a.expect("withdraw b")
	if !f.Release("n1", releaseOfA()) {
		t.Error("a release to a node with a session was not accepted")
	}
	a.expect("release a")

	a.report(&hubv1.Report{Uid: "a", Generation: first[0], Confirmed: true})  // answers an older one
	a.report(&hubv1.Report{Uid: "b", Generation: first[1], Confirmed: true})  // withdrawn
	a.report(&hubv1.Report{Uid: "c", Generation: second[0], Confirmed: true}) // another node's
	a.report(&hubv1.Report{Uid: "a", Generation: second[0], Confirmed: true})
	f.sink.await(t, `n1 connected boot=b unsupported=""`, "n1 reported a generation=4 confirmed=true")
}

func TestANewerSessionReplacesAnOlderOne(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	f.Assign("n1", assign("a", 1), Description{})
	older := f.connect(t, "token-of-n1")
	before := older.expect("describe", "assign a", "synced")
	newer := f.connect(t, "token-of-n1")
	after := newer.expect("describe", "assign a", "synced")
	if after[0] <= before[0] {
		t.Errorf("the generation is %d in the newer session, was %d: want it to grow", after[0], before[0])
	}
	if got := older.end(); got.Code() != codes.Aborted {
		t.Errorf("the older session ended with %v, want Aborted", got)
	}
	newer.report(&hubv1.Report{Uid: "a", Generation: before[0], Confirmed: true}) // of the older session
	newer.report(&hubv1.Report{Uid: "a", Generation: after[0]})
	connected := `n1 connected boot=b unsupported=""`
	f.sink.await(t, connected, "n1 disconnected", connected, "n1 reported a generation=1 confirmed=false")
}

func TestASessionWithoutProofIsRefused(t *testing.T) {
	cases := map[string]struct {
		token   string
		reviews reviews
		want    codes.Code
	}{
		"no token":                             {want: codes.Unauthenticated},
		"a token that is not valid":            {token: "forged", want: codes.Unauthenticated},
		"the API server does not answer":       {token: "token-of-n1", reviews: reviews{err: errors.New("down")}, want: codes.Unavailable},
		"a valid token is told of a bad hello": {token: "token-of-n1", want: codes.InvalidArgument},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			f := serve(t, clock.RealClock{}, tc.reviews)
			a := f.dial(t, tc.token)
			a.report(&hubv1.Report{Uid: "a"})
			if got := a.end(); got.Code() != tc.want {
				t.Errorf("ended with %v, want %v", got, tc.want)
			}
			f.sink.await(t)
		})
	}
}

func TestAMalformedReportEndsTheSession(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	f.Assign("n1", assign("a", 1), describe(t, "why"))
	a := f.connect(t, "token-of-n1")
	generations := a.expect("describe", "assign a", "synced")
	a.report(&hubv1.Report{Uid: "a", Generation: generations[0], Unrealized: []uint32{1}})
	want := "report: unrealized[0] is 1: the description has 1 whys"
	if got := a.end(); got.Code() != codes.InvalidArgument || got.Message() != want {
		t.Errorf("ended with %v, want InvalidArgument and %q", got, want)
	}
}

func TestAReportIsPassedOnWhole(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	excusing := assign("a", 7)
	excusing.ExcuseFamilies, excusing.Excused = true, []uint32{0}
	d, err := Describe(&hubv1.Description{Expectations: make([]*hubv1.Expectation, 2), Whys: []string{"x", "y"}})
	if err != nil {
		t.Fatal(err)
	}
	f.Assign("n1", excusing, d)
	a := f.connect(t, "token-of-n1")
	report := &hubv1.Report{
		Uid: "a", Generation: a.expect("describe", "assign a", "synced")[0],
		Unmet:         []*hubv1.Unmet{{Expectation: 1, Reason: "no rule"}},
		UnmetRequired: 1, UnmetAdvisory: 2, Ipv6Unenforced: true,
		Unrealized: []uint32{1}, Realized: []uint32{0}, Steady: true,
	}
	a.report(report)
	f.sink.await(t, `n1 connected boot=b unsupported=""`, "n1 reported a generation=7 confirmed=false")
	want := proto.CloneOf(report)
	want.Generation = 7
	if got := f.sink.newest(); !proto.Equal(want, got) {
		t.Errorf("passed on %v, want %v", got, want)
	}
}

func TestASessionEndsWhenItsTokenExpires(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
	f := serve(t, clk, reviews{})
	a := f.connect(t, claiming(`,"exp":1600`, "token-of-n1"))
	a.expect("synced")
	f.sink.await(t, `n1 connected boot=b unsupported=""`)
	ended := make(chan *status.Status, 1)
	go func() { ended <- a.end() }()
	clk.Step(569 * time.Second)
	select {
	case got := <-ended:
		t.Fatalf("ended before the last twentieth of the token's time: %v", got)
	case <-time.After(50 * time.Millisecond):
	}
	// The session's timer may not be set yet; it is set for the same time.
	for deadline := time.Now().Add(10 * time.Second); ; clk.Step(time.Second) {
		select {
		case got := <-ended:
			if got.Code() != codes.Unauthenticated {
				t.Errorf("ended with %v, want Unauthenticated", got)
			}
			if got := f.metric(t, "policygate_hub_sessions_ended_total", "expired"); got != 1 {
				t.Errorf("%v sessions are counted as expired, want one", got)
			}
			return
		case <-time.After(10 * time.Millisecond):
			if time.Now().After(deadline) {
				t.Fatal("the session outlives its token")
			}
		}
	}
}

// The API server finds the token good that this replica's clock, an hour ahead,
// says has expired: the session must last, or the agent would connect without
// end.
func TestATokenThatWasFoundGoodIsBelievedAgainstTheClock(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Unix(10_000, 0))
	f := serve(t, clk, reviews{})
	a := f.connect(t, claiming(`,"exp":6400`, "token-of-n1"))
	a.expect("synced")
	f.sink.await(t, `n1 connected boot=b unsupported=""`)
	clk.Step(leastGood / 2)
	f.Assign("n1", assign("a", 1), describe(t, "a"))
	a.expect("describe", "assign a")
	ended := make(chan struct{})
	go func() { a.end(); close(ended) }()
	for deadline := time.Now().Add(10 * time.Second); ; clk.Step(time.Second) {
		select {
		case <-ended:
			return
		case <-time.After(10 * time.Millisecond):
			if time.Now().After(deadline) {
				t.Fatal("the session is not ended by the clock either")
			}
		}
	}
}

// certificate returns a self-signed certificate for "hub".
func certificate(t testing.TB) (*tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "hub"}, DNSNames: []string{"hub"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, roots
}

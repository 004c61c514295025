// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/confirm"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

const serverName = "policygate-hub.policygate-system.svc"

// authority is a certificate authority for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: t.Name()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return &authority{cert: cert, key: key}
}

func (a *authority) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a *authority) leaf(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// hub is a replica whose messages the test writes.
type hub struct {
	hubv1.UnimplementedHubServer
	address string
	server  *grpc.Server
	// sessions gets each session once its Hello was read.
	sessions chan *hubSession
}

type hubSession struct {
	stream grpc.BidiStreamingServer[hubv1.AgentMessage, hubv1.HubMessage]
	hello  *hubv1.Hello
	tokens []string
	end    chan struct{}
}

func (h *hub) Session(stream grpc.BidiStreamingServer[hubv1.AgentMessage, hubv1.HubMessage]) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	md, _ := metadata.FromIncomingContext(stream.Context())
	s := &hubSession{stream: stream, hello: m.GetHello(), tokens: md.Get("authorization"), end: make(chan struct{})}
	h.sessions <- s
	select {
	case <-s.end:
	case <-stream.Context().Done():
	}
	return nil
}

// serve starts a hub at the address, or at a free one if it is empty.
func serve(t *testing.T, address string, cert tls.Certificate) *hub {
	t.Helper()
	if address == "" {
		address = "127.0.0.1:0"
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "tcp", address)
	must(t, err)
	h := &hub{address: listener.Addr().String(), sessions: make(chan *hubSession, 16)}
	h.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13,
	})))
	hubv1.RegisterHubServer(h.server, h)
	go func() { _ = h.server.Serve(listener) }()
	t.Cleanup(h.server.Stop)
	return h
}

// next returns the next session.
func (h *hub) next(t *testing.T) *hubSession {
	t.Helper()
	select {
	case s := <-h.sessions:
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("no session within 10 s")
		return nil
	}
}

func (s *hubSession) send(t *testing.T, messages ...*hubv1.HubMessage) {
	t.Helper()
	for _, m := range messages {
		must(t, s.stream.Send(m))
	}
}

func assignOf(uid string, generation uint64) *hubv1.HubMessage {
	return &hubv1.HubMessage{Message: &hubv1.HubMessage_Assign{Assign: &hubv1.Assign{
		Subject: &hubv1.Subject{Uid: uid}, Generation: generation,
	}}}
}

var synced = &hubv1.HubMessage{Message: &hubv1.HubMessage_Synced{Synced: &hubv1.Synced{}}}

// record is the Subjects and Releases of a test: what is told, in words.
type record struct {
	mu      sync.Mutex
	told    []string
	sources []confirm.Source
	// descriptions are those of the assignments.
	descriptions []*confirm.Description
	// ended are the sessions that are over.
	ended []confirm.Source
}

func (r *record) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, fmt.Sprintf(format, args...))
}

func (r *record) Assign(from confirm.Source, a *hubv1.Assign, d *confirm.Description) error {
	if a.GetSubject().GetUid() == "" {
		return errors.New("no uid")
	}
	r.add("%s assign %s %d", from.Replica, a.GetSubject().GetUid(), a.GetGeneration())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sources = append(r.sources, from)
	r.descriptions = append(r.descriptions, d)
	return nil
}

func (r *record) Withdraw(from confirm.Source, uid string) {
	r.add("%s withdraw %s", from.Replica, uid)
}

func (r *record) Ended(from confirm.Source) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = append(r.ended, from)
}

func (r *record) Forget(replica string, before uint64) {
	if before == 1<<64-1 {
		r.add("%s forget all", replica)
		return
	}
	r.add("%s forget before %d", replica, before)
}

func (r *record) Release(release *hubv1.Release) { r.add("release %s", release.GetSubject().GetUid()) }

// await waits until what was told is as wanted, in any order between replicas
// if sorted, and forgets it.
func (r *record) await(t *testing.T, want ...string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		r.mu.Lock()
		got := slices.Clone(r.told)
		if len(got) >= len(want) || time.Now().After(deadline) {
			r.told = nil
			r.mu.Unlock()
			if !slices.Equal(got, want) {
				t.Fatalf("told %q, want %q", got, want)
			}
			return
		}
		r.mu.Unlock()
		<-time.After(time.Millisecond)
	}
}

func (r *record) last() confirm.Source {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sources[len(r.sources)-1]
}

// fixture is a running Client.
type fixture struct {
	*Client
	*record
	tokenFile string
}

func start(t *testing.T, traces Traces) *fixture {
	t.Helper()
	return startBy(t, traces, clock.RealClock{}, nil)
}

// startBy starts a Client that goes by clk. Random is nil for any.
func startBy(t *testing.T, traces Traces, clk clock.Clock, random func() float64) *fixture {
	t.Helper()
	f := &fixture{record: &record{}, tokenFile: filepath.Join(t.TempDir(), "token")}
	must(t, os.WriteFile(f.tokenFile, []byte("first\n"), 0o600))
	f.Client = New(Options{
		ServerName: serverName,
		TokenFile:  f.tokenFile,
		Hello: func(context.Context) *hubv1.Hello {
			return &hubv1.Hello{Version: "v1", BootId: "boot", State: &hubv1.State{Unsupported: "eBPF"}}
		},
		Traces: traces,
		Clock:  clk,
		Log:    testr.New(t),
	})
	if random != nil {
		f.random = random
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx, f.record, f.record) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func reportIn(t *testing.T, s *hubSession) *hubv1.Report {
	t.Helper()
	m, err := s.stream.Recv()
	must(t, err)
	return m.GetReport()
}

func TestSessionPassesOnWhatTheHubSaysAndReports(t *testing.T) {
	ca := newAuthority(t)
	h := serve(t, "", ca.leaf(t, serverName))
	f := start(t, nil)
	f.SetReplicas([]Replica{{Name: "a", Address: h.address, Ready: true}})
	f.SetRoots(ca.roots())

	s := h.next(t)
	if s.hello.GetVersion() != "v1" || s.hello.GetBootId() != "boot" || s.hello.GetState().GetUnsupported() != "eBPF" {
		t.Errorf("hello %v", s.hello)
	}
	if !slices.Equal(s.tokens, []string{"Bearer first"}) {
		t.Errorf("authorization %q, want one Bearer token without the newline", s.tokens)
	}
	if err := f.Ready(); err == nil || !strings.Contains(err.Error(), "no session") {
		t.Errorf("ready is %v, want no session", err)
	}
	if f.Synced() {
		t.Error("synced before the hub said so")
	}
	s.send(t, assignOf("u", 4), assignOf("", 5), synced,
		&hubv1.HubMessage{Message: &hubv1.HubMessage_Withdraw{Withdraw: &hubv1.Withdraw{Uid: "v"}}},
		&hubv1.HubMessage{Message: &hubv1.HubMessage_Release{Release: &hubv1.Release{Subject: &hubv1.Subject{Uid: "u"}}}},
		&hubv1.HubMessage{},
	)
	f.await(t, "a assign u 4", "a forget before 1", "a withdraw v", "release u")
	if err := f.Ready(); err != nil {
		t.Error(err)
	}
	if !f.Synced() {
		t.Error("not synced after the hub said so")
	}
	f.Send(f.last(), &hubv1.Report{Uid: "u", Generation: 4, Confirmed: true})
	if r := reportIn(t, s); r.GetUid() != "u" || r.GetGeneration() != 4 || !r.GetConfirmed() {
		t.Errorf("report %v", r)
	}
}

func TestAfterARestartTheSessionIsOpenedAnew(t *testing.T) {
	ca := newAuthority(t)
	h := serve(t, "", ca.leaf(t, serverName))
	f := start(t, nil)
	f.SetRoots(ca.roots())
	f.SetReplicas([]Replica{{Name: "a", Address: h.address, Ready: true}})
	s := h.next(t)
	s.send(t, assignOf("u", 4), assignOf("gone", 5), synced)
	f.await(t, "a assign u 4", "a assign gone 5", "a forget before 1")
	before := f.last()

	h.server.Stop()
	must(t, os.WriteFile(f.tokenFile, []byte("second"), 0o600))
	h = serve(t, h.address, ca.leaf(t, serverName))
	s = h.next(t)
	if !slices.Equal(s.tokens, []string{"Bearer second"}) {
		t.Errorf("authorization %q, want the token that was written since", s.tokens)
	}
	// Nothing was forgotten at the loss, nor is it before the full sync.
	s.send(t, assignOf("u", 1))
	f.await(t, "a assign u 1")
	// A report on an assignment of the session before is not for this one,
	// which may have given the same generation to another.
	f.Send(before, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true})
	f.Send(f.last(), &hubv1.Report{Uid: "u", Generation: 1})
	if r := reportIn(t, s); r.GetConfirmed() {
		t.Errorf("report %v of an earlier session", r)
	}
	s.send(t, synced)
	f.await(t, fmt.Sprintf("a forget before %d", f.last().Session))
	if f.last().Session <= before.Session {
		t.Errorf("session %d after %d, want it to grow", f.last().Session, before.Session)
	}
}

func TestAHubEndsASessionAndTheAgentReturns(t *testing.T) {
	ca := newAuthority(t)
	h := serve(t, "", ca.leaf(t, serverName))
	f := start(t, nil)
	f.SetRoots(ca.roots())
	f.SetReplicas([]Replica{{Name: "a", Address: h.address, Ready: true}})
	close(h.next(t).end)
	h.next(t)
}

func TestTwoReplicasAndOneGone(t *testing.T) {
	ca := newAuthority(t)
	a, b := serve(t, "", ca.leaf(t, serverName)), serve(t, "", ca.leaf(t, serverName))
	f := start(t, nil)
	f.SetRoots(ca.roots())
	f.SetReplicas([]Replica{{Name: "a", Address: a.address, Ready: true}, {Name: "b", Address: b.address, Ready: true}})
	sa, sb := a.next(t), b.next(t)
	sa.send(t, assignOf("u", 1))
	f.await(t, "a assign u 1")
	fromA := f.last()
	sb.send(t, assignOf("u", 9))
	f.await(t, "b assign u 9")
	f.Send(fromA, &hubv1.Report{Uid: "u", Generation: 1})
	f.Send(f.last(), &hubv1.Report{Uid: "u", Generation: 9})
	if ra, rb := reportIn(t, sa), reportIn(t, sb); ra.GetGeneration() != 1 || rb.GetGeneration() != 9 {
		t.Errorf("a was told %v, b %v", ra, rb)
	}

	// Not ready, but not gone: the session goes on.
	f.SetReplicas([]Replica{{Name: "a", Address: a.address}, {Name: "b", Address: b.address, Ready: true}})
	sa.send(t, assignOf("v", 2))
	f.await(t, "a assign v 2")
	f.SetReplicas([]Replica{{Name: "b", Address: b.address, Ready: true}})
	f.await(t, "a forget all")
	select {
	case <-sa.stream.Context().Done():
	case <-time.After(10 * time.Second):
		t.Error("the session with the replica that is gone goes on")
	}
	sb.send(t, assignOf("w", 3))
	f.await(t, "b assign w 3")
}

func TestAReplicaThatIsNotReadyIsNotDialled(t *testing.T) {
	ca := newAuthority(t)
	h := serve(t, "", ca.leaf(t, serverName))
	f := start(t, nil)
	f.SetRoots(ca.roots())
	f.SetReplicas([]Replica{{Name: "a", Address: h.address}})
	select {
	case <-h.sessions:
		t.Fatal("dialled although it is not ready")
	case <-time.After(2 * firstDelay):
	}
	f.SetReplicas([]Replica{{Name: "a", Address: h.address, Ready: true}})
	h.next(t)
}

func TestAWrongCertificateIsRefusedUntilTheRootsChange(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	for name, tc := range map[string]struct {
		cert  tls.Certificate
		roots *x509.CertPool
	}{
		"of another authority": {cert: ca.leaf(t, serverName), roots: other.roots()},
		"for another name":     {cert: ca.leaf(t, "policygate-hub.other.svc"), roots: ca.roots()},
	} {
		t.Run(name, func(t *testing.T) {
			h := serve(t, "", tc.cert)
			f := start(t, nil)
			f.SetReplicas([]Replica{{Name: "a", Address: h.address, Ready: true}})
			f.SetRoots(tc.roots)
			select {
			case <-h.sessions:
				t.Fatal("a session was opened")
			case <-time.After(time.Second):
			}
			if name == "of another authority" {
				f.SetRoots(ca.roots())
				h.next(t)
			}
		})
	}
}

func TestTokenFile(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	must(t, os.WriteFile(empty, []byte(" \n"), 0o600))
	for name, tc := range map[string]struct{ file, want string }{
		"a missing file is named": {file: filepath.Join(dir, "missing"), want: "read token: open "},
		"an empty file is named":  {file: empty, want: "is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := token{file: tc.file}.GetRequestMetadata(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	if !(token{}).RequireTransportSecurity() {
		t.Error("the token would be sent in clear text")
	}
}

func TestOutbox(t *testing.T) {
	o := &outbox{ready: make(chan struct{}, 1)}
	o.put(1, &hubv1.Report{Uid: "early"})
	o.begin(1)
	o.put(1, &hubv1.Report{Uid: "u", Generation: 1})
	o.put(1, &hubv1.Report{Uid: "v", Generation: 1})
	o.put(1, &hubv1.Report{Uid: "w", Generation: 1})
	o.put(1, &hubv1.Report{Uid: "u", Generation: 2})
	o.put(2, &hubv1.Report{Uid: "u", Generation: 3})
	o.withdrawn("v")
	var got []string
	for r := o.take(1); r != nil; r = o.take(1) {
		got = append(got, fmt.Sprint(r.GetReport().GetUid(), r.GetReport().GetGeneration()))
	}
	if want := []string{"u2", "w1"}; !slices.Equal(got, want) {
		t.Errorf("took %v, want %v: the newest of each, in the order they came in", got, want)
	}
	o.put(1, &hubv1.Report{Uid: "u"})
	o.begin(2)
	if r := o.take(2); r != nil {
		t.Errorf("a new session begins with %v", r)
	}
}

func TestReportsOnPodsAreSentFirst(t *testing.T) {
	for name, tc := range map[string]struct {
		puts func(o *outbox)
		want []string
	}{
		"then the state, then those on policies, then traces": {
			puts: func(o *outbox) {
				o.assigned("p", true)
				o.assigned("u", false)
				o.put(1, &hubv1.Report{Uid: "p"})
				o.answer(1, &hubv1.TraceResult{})
				o.tell(&hubv1.State{Unsupported: "old"})
				o.put(1, &hubv1.Report{Uid: "u"})
				o.tell(&hubv1.State{Unsupported: "new"})
			},
			want: []string{"u", "new", "p", "trace"},
		},
		"of policies the newest of each, in the order in which they came": {
			puts: func(o *outbox) {
				for _, uid := range []string{"p", "q", "r"} {
					o.assigned(uid, true)
					o.put(1, &hubv1.Report{Uid: uid})
				}
				o.put(1, &hubv1.Report{Uid: "p", Generation: 2})
				o.withdrawn("q")
			},
			want: []string{"p", "r"},
		},
		"what answers an assignment before is dropped": {
			puts: func(o *outbox) {
				o.assigned("p", true)
				o.put(1, &hubv1.Report{Uid: "p"})
				o.assigned("p", true)
			},
		},
		"whose a uid is, the newest assignment says": {
			puts: func(o *outbox) {
				o.assigned("p", true)
				o.put(1, &hubv1.Report{Uid: "p"})
				o.assigned("p", false)
				o.assigned("q", true)
				o.put(1, &hubv1.Report{Uid: "q"})
				o.put(1, &hubv1.Report{Uid: "p"})
			},
			want: []string{"p", "q"},
		},
		"a new session knows nobody": {
			puts: func(o *outbox) {
				o.assigned("p", true)
				o.tell(&hubv1.State{Unsupported: "old"})
				o.begin(1)
				o.put(1, &hubv1.Report{Uid: "p"})
				o.put(1, &hubv1.Report{Uid: "u"})
			},
			want: []string{"p", "u"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := &outbox{ready: make(chan struct{}, 1)}
			o.begin(1)
			tc.puts(o)
			var got []string
			for m := o.take(1); m != nil; m = o.take(1) {
				word := m.GetReport().GetUid() + m.GetState().GetUnsupported()
				if m.GetTraceResult() != nil {
					word = "trace"
				}
				got = append(got, word)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("took %v, want %v", got, tc.want)
			}
			if len(o.reports) > 0 {
				t.Errorf("%d reports are left", len(o.reports))
			}
		})
	}
}

// stateIn returns the next message of a session, which must be a state.
func stateIn(t *testing.T, s *hubSession) string {
	t.Helper()
	m, err := s.stream.Recv()
	must(t, err)
	if m.GetState() == nil {
		t.Fatalf("message %v, want a state", m)
	}
	return m.GetState().GetUnsupported()
}

func TestWhatIsToldOfTheNodeGoesToEveryReplica(t *testing.T) {
	ca := newAuthority(t)
	a, b := serve(t, "", ca.leaf(t, serverName)), serve(t, "", ca.leaf(t, serverName))
	f := start(t, nil)
	f.SetRoots(ca.roots())
	f.SetReplicas([]Replica{{Name: "a", Address: a.address, Ready: true}, {Name: "b", Address: b.address, Ready: true}})
	sessions := []*hubSession{a.next(t), b.next(t)}
	f.Tell(&hubv1.State{Unsupported: "XDP"})
	for i, s := range sessions {
		if got := stateIn(t, s); got != "XDP" {
			t.Errorf("replica %d was told %q, want XDP", i, got)
		}
	}
	// Hello of the next session still says what it did.
	sessions[0].end <- struct{}{}
	if got := stateIn(t, a.next(t)); got != "XDP" {
		t.Errorf("a session that began with an older state was told %q, want the newest", got)
	}
}

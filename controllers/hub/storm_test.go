// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// gauged answers TokenReviews as reviews does, and counts those in flight. It
// holds the first back until as many are in flight as may be.
type gauged struct {
	reviews
	flying, most atomic.Int64
	full         chan struct{}
	fill         sync.Once
}

func (g *gauged) Create(ctx context.Context, review *authenticationv1.TokenReview, o metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	flying := g.flying.Add(1)
	defer g.flying.Add(-1)
	for most := g.most.Load(); flying > most && !g.most.CompareAndSwap(most, flying); most = g.most.Load() {
	}
	if flying >= maxReviews {
		g.fill.Do(func() { close(g.full) })
	}
	select {
	case <-g.full:
	case <-ctx.Done():
	}
	return g.reviews.Create(ctx, review, o)
}

func TestAStormOfAgentsIsTakenInBoundedSteps(t *testing.T) {
	const agents = 300
	r := &gauged{full: make(chan struct{})}
	f := serve(t, clock.RealClock{}, r)
	shared := describe(t, "of all")
	for i := range agents {
		f.Assign(fmt.Sprint("n", i), assign("a", 1), shared)
	}
	// None keeps to the spread, as agents would whose replicas have all gone
	// before they said one.
	storm := func() {
		var dialling sync.WaitGroup
		for i := range agents {
			dialling.Go(func() {
				a := f.connect(t, fmt.Sprint("token-of-n", i))
				agent := newMirror(t)
				for {
					m, err := a.stream.Recv()
					if err != nil {
						t.Errorf("agent %d: %v", i, err)
						return
					}
					agent.receive(m)
					if s := m.GetSynced(); s != nil {
						if s.GetSpreadMillis() != spreadMillis(agents) || agent.assigned["a"] != 1 {
							t.Errorf("agent %d is synced with %d assignments within %d ms", i, agent.assigned["a"], s.GetSpreadMillis())
						}
						return
					}
				}
			})
		}
		dialling.Wait()
	}
	storm()
	// All at once again, in place of the sessions before.
	storm()
	if most := r.most.Load(); most != maxReviews {
		t.Errorf("%d reviews were in flight at once, want %d", most, maxReviews)
	}
	connected, disconnected := f.sink.count()
	if connected != 2*agents || disconnected != agents {
		t.Errorf("connected %d times, disconnected %d: want %d and %d", connected, disconnected, 2*agents, agents)
	}
}

// beside dials the hub from an address of its own.
func (f *fixture) beside(t testing.TB, source, token string) (agent, *grpc.ClientConn, error) {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	conn, err := grpc.NewClient(f.Addr().String(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: f.roots, ServerName: "hub", MinVersion: tls.VersionTLS13})),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := hubv1.NewHubClient(conn).Session(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token))
	return agent{t, stream}, conn, err
}

// comes dials until the agent is synced, as agents do, and returns how often
// it had to.
func (f *fixture) comes(t *testing.T, number int, stop *atomic.Bool) (attempts int) {
	t.Helper()
	source := fmt.Sprintf("127.1.%d.%d", number/250, 1+number%250)
	for wait := 250 * time.Millisecond; !stop.Load(); wait = min(2*wait, 10*time.Second) {
		attempts++
		a, conn, err := f.beside(t, source, claiming("", fmt.Sprint("token-of-n", number)))
		t.Cleanup(func() { _ = conn.Close() })
		if err == nil {
			a.send(&hubv1.AgentMessage{Message: &hubv1.AgentMessage_Hello{Hello: &hubv1.Hello{BootId: "b"}}})
			var m *hubv1.HubMessage
			for m, err = a.stream.Recv(); err == nil; m, err = a.stream.Recv() {
				if m.GetSynced() != nil {
					return attempts
				}
			}
		}
		_ = conn.Close()
		time.Sleep(time.Duration(rand.Float64() * float64(wait)))
	}
	return attempts
}

func TestAgentsGetInBesideAnAttacker(t *testing.T) {
	const agents = 1000
	r := &only{}
	f := serve(t, clock.RealClock{}, r)
	for i := range agents {
		f.Assign(fmt.Sprint("n", i), assign("a", 1), Description{})
	}
	// Three Pods: one opens connections and says nothing, one has no good
	// token, and one has such as only the API server can tell from good ones.
	var over atomic.Bool
	var attacking, coming sync.WaitGroup
	var silent, attempts atomic.Int64
	for range 8 {
		attacking.Go(func() {
			// More than the hub has room for, and not all that were ever opened:
			// the test would run out of descriptors, and its agents with it.
			var open [maxUnproven / 4]net.Conn
			defer func() {
				for _, conn := range open {
					if conn != nil {
						_ = conn.Close()
					}
				}
			}()
			for i := 0; !over.Load(); i = (i + 1) % len(open) {
				conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.2.0.1")}}).DialContext(t.Context(), "tcp", f.Addr().String())
				if err != nil {
					time.Sleep(time.Millisecond)
					continue
				}
				silent.Add(1)
				if open[i] != nil {
					_ = open[i].Close()
				}
				open[i] = conn
				time.Sleep(time.Millisecond)
			}
		})
		for source, token := range map[string]string{"127.2.0.2": "a.b.c", "127.2.0.3": claiming("", "forged")} {
			attacking.Go(func() {
				for !over.Load() {
					a, conn, err := f.beside(t, source, token)
					if err == nil {
						a.end()
					}
					_ = conn.Close()
				}
			})
		}
	}
	// The attack is on before the first agent comes.
	within(t, "the attacker has a crowd", func() bool { return f.refused(t, refusedCrowd) > 0 })
	for i := range agents {
		coming.Go(func() { attempts.Add(int64(f.comes(t, i, &over))) })
	}
	coming.Wait()
	over.Store(true)
	attacking.Wait()
	// Each was synced, or the test would not come here. Whoever gets no time to
	// answer pings, on a busy machine, is cut off again.
	if connected, _ := f.sink.count(); connected < agents {
		t.Errorf("connected %d times, want %d", connected, agents)
	}
	if r.forged.Load() == 0 || f.refused(t, refusedToken) == 0 {
		t.Errorf("%d forged tokens were reviewed, %v others refused: there was no attack", r.forged.Load(), f.refused(t, refusedToken))
	}
	// It is one source among hundreds while agents wait.
	if forged := r.forged.Load(); forged > agents {
		t.Errorf("%d forged tokens were reviewed, and %d agents'", forged, agents)
	}
	t.Logf("%d agents came in %d attempts; %d silent connections, %d forged tokens reviewed, %v others refused, %v crowded out",
		agents, attempts.Load(), silent.Load(), r.forged.Load(), f.refused(t, refusedToken), f.refused(t, refusedCrowd))
}

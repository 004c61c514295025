// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// address returns the nth Pod's address.
func address(n int) []byte {
	a := netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})
	return a.AsSlice()
}

// allowed is what a node with ten Pods that a policy selects must confirm of
// a Pod that its rule names, on two ports: from is the Pod, or nil for what
// all such Pods have in common.
func allowed(from []byte) *hubv1.Description {
	d := &hubv1.Description{Whys: []string{"database/allow-jobs ingress[0]", "database/allow-jobs ingress[0], stranger"}}
	for to := range 10 {
		for _, port := range []uint32{3306, 9104} {
			d.Expectations = append(d.Expectations, &hubv1.Expectation{
				Flow: &hubv1.Flow{Protocol: 6, Src: from, Dst: address(to), Port: port}, Want: hubv1.Answer_ANSWER_ALLOWED,
			})
		}
		// The control: a stranger is shut out of the same Pod.
		d.Expectations = append(d.Expectations, &hubv1.Expectation{
			Flow: &hubv1.Flow{Protocol: 6, Src: address(5000), Dst: address(to), Port: 3306}, Want: hubv1.Answer_ANSWER_DENIED, Why: 1,
		})
	}
	return d
}

// podAssign is the nth Pod's assignment without what has to be confirmed.
func podAssign(n int) *hubv1.Assign {
	return &hubv1.Assign{
		Subject: &hubv1.Subject{
			Uid: fmt.Sprintf("7f1c1b52-92c5-4b0f-8d43-%012d", n), Namespace: "jobs", Name: fmt.Sprintf("import-%d", n),
			Ips: []string{netip.AddrFrom4([4]byte(address(n))).String()},
		},
		Generation: 1,
		Basis:      &hubv1.Basis{NetworkPolicies: 123456, Namespaces: 123456, Pod: uint64(123456 + n)},
	}
}

// BenchmarkDescriptions tells what Pods under one policy cost on the way to
// one node: described, and with the description in each assignment.
func BenchmarkDescriptions(b *testing.B) {
	for _, pods := range []int{300, 3000} {
		b.Run(fmt.Sprint("pods=", pods), func(b *testing.B) {
			var described, inline sum
			for b.Loop() {
				d, err := Describe(allowed(nil))
				if err != nil {
					b.Fatal(err)
				}
				q := newQueue()
				inlined := make([]*hubv1.Description, pods)
				for n := range pods {
					a := podAssign(n)
					q.assign(a.GetSubject().GetUid(), &assignment{message: a, description: d, generation: uint64(n)})
					inlined[n] = allowed(address(n))
				}
				described.add(func() (size int) {
					for batch := q.next(nil, nil); len(batch) > 0; batch = q.next(batch[:0], nil) {
						for _, m := range batch {
							size += encode(b, m)
						}
					}
					return size
				})
				inline.add(func() (size int) {
					for n := range pods {
						// One message with both takes some bytes less.
						size += encode(b, &hubv1.HubMessage{Message: &hubv1.HubMessage_Assign{Assign: podAssign(n)}})
						size += encode(b, inlined[n])
					}
					return size
				})
			}
			b.ReportMetric(described.bytes/float64(b.N*pods), "B/pod")
			b.ReportMetric(inline.bytes/float64(b.N*pods), "B-inline/pod")
			b.ReportMetric(inline.bytes/described.bytes, "inline/described-bytes")
			b.ReportMetric(float64(described.took.Nanoseconds())/float64(b.N*pods), "encode-ns/pod")
			b.ReportMetric(float64(inline.took)/float64(described.took), "inline/described-encode")
		})
	}
}

// sum adds up what encoding takes.
type sum struct {
	bytes float64
	took  time.Duration
}

func (s *sum) add(encode func() int) {
	began := time.Now()
	s.bytes += float64(encode())
	s.took += time.Since(began)
}

func encode(b *testing.B, m proto.Message) int {
	b.Helper()
	content, err := proto.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	return len(content)
}

// echo is a server that does nothing but to pass on what a session says.
type echo struct {
	hubv1.UnimplementedHubServer
	send    chan *hubv1.HubMessage
	reports chan *hubv1.Report
}

func (e *echo) Session(stream grpc.BidiStreamingServer[hubv1.AgentMessage, hubv1.HubMessage]) error {
	for m := range e.send {
		if err := stream.Send(m); err != nil {
			return err
		}
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		e.reports <- r.GetReport()
	}
	return nil
}

// bare serves an echo with the certificate of f.
func (f *fixture) bare(b *testing.B) (*echo, *fixture) {
	b.Helper()
	cert, roots := certificate(b)
	listener, err := new(net.ListenConfig).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	e := &echo{send: make(chan *hubv1.HubMessage), reports: make(chan *hubv1.Report)}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS13,
	})))
	hubv1.RegisterHubServer(server, e)
	go func() { _ = server.Serve(listener) }()
	b.Cleanup(server.Stop)
	b.Cleanup(func() { close(e.send) })
	at := &fixture{Hub: &Hub{}, roots: roots}
	at.listening.Store(listener.Addr().(*net.TCPAddr))
	return e, at
}

// confirming reports each assignment as confirmed until the session ends.
func (a agent) confirming() {
	for {
		m, err := a.stream.Recv()
		if err != nil {
			return
		}
		if x := m.GetAssign(); x != nil {
			a.report(&hubv1.Report{Uid: x.GetSubject().GetUid(), Generation: x.GetGeneration(), Confirmed: true})
		}
	}
}

// reported passes on reports, which the benchmarks await.
type reported struct{ reports chan *hubv1.Report }

func (reported) Connected(string, Hello)              {}
func (reported) Disconnected(string)                  {}
func (reported) Changed(string, State)                {}
func (s reported) Reported(_ string, r *hubv1.Report) { s.reports <- r }

// busy is how many agents share the round trips, so that none reports more
// than the hub takes from one.
const busy = 32

// BenchmarkRoundTrip tells how long it takes from Assign to the sink, beside
// idle sessions of other nodes, against the bare stream's round trip.
func BenchmarkRoundTrip(b *testing.B) {
	for _, idle := range []int{100, 1000} {
		b.Run(fmt.Sprint("sessions=", idle), func(b *testing.B) {
			s := reported{reports: make(chan *hubv1.Report, 1)}
			f := serveTo(b, clock.RealClock{}, reviews{}, s)
			d, err := Describe(allowed(nil))
			if err != nil {
				b.Fatal(err)
			}
			for n := range idle {
				f.Assign(fmt.Sprint("n", n), podAssign(n), d)
			}
			end := f.idle(b, idle)
			defer end()
			for n := range busy {
				go f.connect(b, fmt.Sprint("token-of-busy", n)).confirming()
			}
			e, at := f.bare(b)
			go at.connect(b, "").confirming()

			message := podAssign(1)
			// The hello of the bare one answers the first.
			hello := &hubv1.HubMessage{Message: &hubv1.HubMessage_Synced{Synced: &hubv1.Synced{}}}
			e.send <- hello
			<-e.reports
			for n := range busy {
				f.Assign(fmt.Sprint("busy", n), message, d)
				<-s.reports
			}
			turn := 0
			var hub, bare []time.Duration
			for b.Loop() {
				began := time.Now()
				e.send <- &hubv1.HubMessage{Message: &hubv1.HubMessage_Assign{Assign: message}}
				<-e.reports
				bare = append(bare, time.Since(began))
				node := fmt.Sprint("busy", turn%busy)
				turn++
				began = time.Now()
				f.Assign(node, message, d)
				<-s.reports
				hub = append(hub, time.Since(began))
			}
			for _, percent := range []int{50, 99} {
				slices.Sort(hub)
				slices.Sort(bare)
				at := len(hub) * percent / 100
				b.ReportMetric(float64(hub[at].Microseconds()), fmt.Sprintf("µs-p%d", percent))
				b.ReportMetric(float64(bare[at].Microseconds()), fmt.Sprintf("µs-bare-p%d", percent))
				b.ReportMetric(float64(hub[at])/float64(bare[at]), fmt.Sprintf("hub/bare-p%d", percent))
			}
		})
	}
}

// BenchmarkAssign tells what one assignment costs by the number of nodes, from
// many goroutines at once, each node with 20 assignments.
func BenchmarkAssign(b *testing.B) {
	for _, nodes := range []int{100, 1000} {
		b.Run(fmt.Sprint("nodes=", nodes), func(b *testing.B) {
			h := New(Options{Sink: reported{}, Clock: clock.RealClock{}})
			d, err := Describe(allowed(nil))
			if err != nil {
				b.Fatal(err)
			}
			names := make([]string, nodes)
			for n := range names {
				names[n] = fmt.Sprint("n", n)
			}
			pods := make([]*hubv1.Assign, 20)
			for n := range pods {
				pods[n] = podAssign(n)
			}
			for _, name := range names {
				n := h.node(name)
				n.session = &session{node: n, queue: newQueue(), questions: newQuestions()}
			}
			var next atomic.Int64
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					n := int(next.Add(1))
					h.Assign(names[n%nodes], pods[n/nodes%len(pods)], d)
				}
			})
		})
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/confirm"
	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// raw sends bytes as they are.
type raw struct{ encoding.CodecV2 }

func (r raw) Marshal(v any) (mem.BufferSlice, error) {
	if content, ok := v.([]byte); ok {
		return mem.BufferSlice{mem.SliceBuffer(content)}, nil
	}
	return r.CodecV2.Marshal(v)
}

// player is a hub that sends what it is given in the next session, and ends it.
type player struct {
	hubv1.UnimplementedHubServer
	scripts chan [][]byte
}

func (p *player) Session(stream grpc.BidiStreamingServer[hubv1.AgentMessage, hubv1.HubMessage]) error {
	if _, err := stream.Recv(); err != nil { // hello
		return err
	}
	go func() {
		for {
			if _, err := stream.Recv(); err != nil {
				return
			}
		}
	}()
	select {
	case script := <-p.scripts:
		for _, m := range script {
			if err := stream.SendMsg(m); err != nil {
				return err
			}
		}
	case <-stream.Context().Done():
	}
	return nil
}

// over tells when a session is, and passes on the rest.
type over struct {
	*confirm.Confirmer
	ended chan confirm.Source
}

func (o over) Ended(from confirm.Source) {
	o.Confirmer.Ended(from)
	select {
	case o.ended <- from:
	default:
	}
}

// blind is a dataplane that cannot be seen.
type blind struct{}

func (blind) Look(context.Context) (confirm.Look, error) { return nil, errBusy }
func (blind) Audit(context.Context) string               { return "blind" }

// prompt answers each trace at once.
type prompt struct{}

func (prompt) Trace(context.Context, flow.Flow) ([]tracev1.Hop, error) { return nil, nil }

// FuzzSession plays whole sessions of a hub that sends what it wants, on real
// connections to an agent whose node cannot be seen: nothing panics, and nothing
// of a session outlives it.
func FuzzSession(f *testing.F) {
	assign := func(of *hubv1.Assign) *hubv1.HubMessage {
		return &hubv1.HubMessage{Message: &hubv1.HubMessage_Assign{Assign: of}}
	}
	described := &hubv1.HubMessage{Message: &hubv1.HubMessage_Describe{Describe: describeOf(f, 1, "x")}}
	forgotten := &hubv1.HubMessage{Message: &hubv1.HubMessage_Forget{Forget: &hubv1.Forget{Ids: []uint64{1, 1}}}}
	release := &hubv1.HubMessage{Message: &hubv1.HubMessage_Release{Release: &hubv1.Release{Subject: &hubv1.Subject{Uid: "u"}}}}
	withdraw := &hubv1.HubMessage{Message: &hubv1.HubMessage_Withdraw{Withdraw: &hubv1.Withdraw{Uid: "u"}}}
	trace := &hubv1.HubMessage{Message: &hubv1.HubMessage_Trace{Trace: &hubv1.Trace{Id: 1, Flow: &hubv1.Flow{
		Protocol: 6, Src: []byte{10, 0, 0, 1}, Dst: []byte{10, 0, 0, 2}, Port: 80,
	}}}}
	for _, messages := range [][]*hubv1.HubMessage{
		{described, assign(naming("u", 1)), synced, release, withdraw, trace, trace, trace, trace, trace, trace},
		{assign(naming("u", 1)), described, assign(naming("u", 1)), forgotten, assign(naming("v", 1)), forgotten, described},
		{synced, synced, syncedWithin(1 << 31), withdraw, {}},
	} {
		var content []byte
		for _, m := range messages {
			b, err := proto.Marshal(m)
			must(f, err)
			content = append(append(content, byte(len(b))), b...)
		}
		f.Add(content)
	}

	ca := newAuthority(f)
	listener, err := new(net.ListenConfig).Listen(f.Context(), "tcp", "127.0.0.1:0")
	must(f, err)
	p := &player{scripts: make(chan [][]byte, 1)}
	server := grpc.NewServer(
		grpc.ForceServerCodecV2(raw{encoding.GetCodecV2(encodingproto.Name)}),
		grpc.Creds(credentials.NewTLS(&tls.Config{
			Certificates: []tls.Certificate{ca.leaf(f, serverName)}, MinVersion: tls.VersionTLS13,
		})))
	hubv1.RegisterHubServer(server, p)
	go func() { _ = server.Serve(listener) }()
	f.Cleanup(server.Stop)
	tokenFile := filepath.Join(f.TempDir(), "token")
	must(f, os.WriteFile(tokenFile, []byte("t"), 0o600))
	f.Fuzz(func(t *testing.T, content []byte) {
		var script [][]byte
		for len(content) > 0 && len(script) < 32 {
			n := min(int(content[0]), len(content)-1)
			script, content = append(script, content[1:1+n]), content[1+n:]
		}
		before := runtime.NumGoroutine()
		play(t, p, listener.Addr().String(), ca, tokenFile, script)
		for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before; <-time.After(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d goroutines are left of %d", runtime.NumGoroutine(), before)
			}
		}
	})
}

// play runs an agent until it has had one session with the script.
func play(t *testing.T, p *player, address string, ca *authority, tokenFile string, script [][]byte) {
	t.Helper()
	var c *Client
	confirmer := confirm.New(confirm.Options{Dataplane: blind{}, Reports: reportsTo{&c}, Clock: clock.RealClock{}, Log: logr.Discard()})
	c = New(Options{
		ServerName: serverName, TokenFile: tokenFile,
		Hello:  func(context.Context) *hubv1.Hello { return &hubv1.Hello{Version: "v1", BootId: "boot"} },
		Traces: prompt{}, Clock: clock.RealClock{}, Log: logr.Discard(),
	})
	c.random = func() float64 { return 0 }
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	subjects := over{confirmer, make(chan confirm.Source, 1)}
	var running sync.WaitGroup
	running.Go(func() { _ = confirmer.Run(ctx) })
	running.Go(func() { _ = c.Run(ctx, subjects, nowhere{}) })
	p.scripts <- script
	c.SetReplicas([]Replica{{Name: "a", Address: address, Ready: true}})
	c.SetRoots(ca.roots())
	select {
	case <-subjects.ended:
	case <-time.After(20 * time.Second):
		t.Error("the session does not end")
	}
	cancel()
	running.Wait()
}

// reportsTo breaks the circle between a Client and a Confirmer.
type reportsTo struct{ client **Client }

func (r reportsTo) Send(to confirm.Source, report *hubv1.Report) { (*r.client).Send(to, report) }

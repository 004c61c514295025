// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"crypto/tls"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// witness is a sink that notes what it should never hear.
type witness struct {
	mu    sync.Mutex
	wrong []string
	ended map[string]int
}

func (w *witness) note(right bool, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !right {
		w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
	}
}

func (w *witness) Connected(node string, h Hello) {
	w.note(h.Version == printable(h.Version) && h.BootID != "", "%s connected with %v", node, h)
}

func (w *witness) Disconnected(node string) {
	w.note(node != "victim", "%s disconnected", node)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended[node]++
}

func (w *witness) Changed(node string, s State) {
	w.note(node != "victim" && s.Unsupported == printable(s.Unsupported) && len(s.Remarks) <= maxRemarks, "%s changed to %v", node, s)
}

func (w *witness) Reported(node string, r *hubv1.Report) {
	w.note(node != "victim" && r.GetUid() == "a" && r.GetGeneration() == 5 && len(r.ProtoReflect().GetUnknown()) == 0 &&
		len(r.GetUnmet()) <= maxUnmet && len(r.GetUnrealized()) <= maxWhys, "%s reported %v", node, r)
}

// raw sends bytes as they are.
type raw struct{ encoding.CodecV2 }

func (r raw) Marshal(v any) (mem.BufferSlice, error) {
	if content, ok := v.([]byte); ok {
		return mem.BufferSlice{mem.SliceBuffer(content)}, nil
	}
	return r.CodecV2.Marshal(v)
}

// script decodes what a fuzzer writes: each message is a byte for its length,
// and that much.
func script(content []byte) (messages [][]byte) {
	for len(content) > 0 && len(messages) < 32 {
		n := min(int(content[0]), len(content)-1)
		messages = append(messages, content[1:1+n])
		content = content[1+n:]
	}
	return messages
}

// scripted is the inverse of script.
func scripted(f *testing.F, messages ...*hubv1.AgentMessage) (content []byte) {
	f.Helper()
	for _, m := range messages {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		content = append(append(content, byte(len(b))), b...)
	}
	return content
}

// FuzzSession plays whole sessions of an agent that sends what it wants, on
// real connections: nothing panics, no other node is heard of, nothing that
// was not assigned is reported, and nothing of a session outlives it.
func FuzzSession(f *testing.F) {
	// synced is the generation that the assignment has once it is synced.
	const synced = 1000
	hello := &hubv1.AgentMessage{Message: &hubv1.AgentMessage_Hello{Hello: &hubv1.Hello{Version: "v", BootId: "b", State: &hubv1.State{}}}}
	report := func(uid string, generation uint64) *hubv1.AgentMessage {
		return &hubv1.AgentMessage{Message: &hubv1.AgentMessage_Report{Report: &hubv1.Report{Uid: uid, Generation: generation, Confirmed: true}}}
	}
	state := &hubv1.AgentMessage{Message: &hubv1.AgentMessage_State{State: &hubv1.State{Unsupported: "x", Dataplanes: []string{"ipset"}}}}
	result := &hubv1.AgentMessage{Message: &hubv1.AgentMessage_TraceResult{TraceResult: &hubv1.TraceResult{Id: 1, Error: "x"}}}
	f.Add(scripted(f, hello, report("a", synced), report("v", 2), state, result, report("a", 4)), true)
	f.Add(scripted(f, report("v", 2)), false)
	f.Add(scripted(f, hello, hello), false)
	f.Add([]byte{1, 2, 3}, false)

	f.Add(scripted(f, hello, &hubv1.AgentMessage{Message: &hubv1.AgentMessage_Report{Report: &hubv1.Report{
		Uid: "a", Generation: synced, Unmet: []*hubv1.Unmet{{Reason: "x"}}, UnmetRequired: 1, Unrealized: []uint32{0}, Steady: true,
	}}}), false)

	w := &witness{ended: map[string]int{}}
	h := serveTo(f, clock.RealClock{}, reviews{}, w)
	h.handshakes.mu.Lock()
	h.handshakes.free = 1 << 30 // no fuzzer waits for its turn
	h.handshakes.mu.Unlock()
	h.Assign("victim", assign("v", 1), describe(f, "why"))
	victim := h.connect(f, "token-of-victim")
	victim.expect("describe", "assign v", "synced")
	var sessions atomic.Int64
	f.Fuzz(func(t *testing.T, content []byte, cancel bool) {
		node := fmt.Sprint("n", sessions.Add(1))
		h.generations.Store(synced - 2)
		h.Assign(node, assign("a", 5), describe(t, "why"))
		before := runtime.NumGoroutine()
		play(t, h, node, script(content), cancel)
		n := h.node(node)
		within(t, "the session is over, and so is all that served it", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.session == nil && runtime.NumGoroutine() <= before
		})
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, wrong := range w.wrong {
			t.Error(wrong)
		}
		h.mu.Lock()
		delete(h.nodes, node)
		h.mu.Unlock()
	})
}

// play opens a session, sends messages as they are, and ends it by either way.
func play(t *testing.T, h *fixture, node string, messages [][]byte, cancelled bool) {
	t.Helper()
	creds := credentials.NewTLS(&tls.Config{RootCAs: h.roots, ServerName: "hub", MinVersion: tls.VersionTLS13})
	conn, err := grpc.NewClient(h.Addr().String(), grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{encoding.GetCodecV2(encodingproto.Name)})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // it has served
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+claiming("", "token-of-"+node))
	stream, err := hubv1.NewHubClient(conn).Session(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if stream.SendMsg(m) != nil {
			break // it was refused
		}
	}
	if cancelled {
		return
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	agent{t, stream}.end()
}

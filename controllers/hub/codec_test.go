// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// wrapped returns content as a field of the number.
func wrapped(number protowire.Number, content []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), content)
}

// repeated returns so many empty fields of the number.
func repeated(number protowire.Number, n int) []byte {
	return bytes.Repeat(wrapped(number, nil), n)
}

// largest returns the largest trace result that hub.proto allows.
func largest() *hubv1.TraceResult {
	text := strings.Repeat("x", 512)
	hop := &hubv1.TraceHop{Way: "forwarded", In: text, Out: text, Routed: true, Answer: hubv1.Answer_ANSWER_DENIED, Reason: text, LeftOut: 1}
	hop.Steps = slices.Repeat([]*hubv1.TraceStep{{
		Hook: text, Base: text, Chain: text, Depth: 1, Rule: text, Effect: text, Maybe: text,
	}}, 128)
	hop.NearMisses = slices.Repeat([]*hubv1.TraceNearMiss{{
		Hook: text, Base: text, Chain: text, Rule: text, Set: text, Element: text, Effect: text,
		Held: true, Matched: true, Answer: hubv1.Answer_ANSWER_DENIED,
	}}, 16)
	return &hubv1.TraceResult{Id: 1, Hops: slices.Repeat([]*hubv1.TraceHop{hop}, 4)}
}

func TestWhatIsDecoded(t *testing.T) {
	const million = 1 << 20
	packed := protowire.AppendBytes(protowire.AppendTag(nil, 9, protowire.BytesType), make([]byte, million))
	result, err := proto.Marshal(&hubv1.AgentMessage{Message: &hubv1.AgentMessage_TraceResult{TraceResult: largest()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := largest().Validate(); err != nil || len(result) > maxReceive {
		t.Fatalf("the largest trace result takes %d bytes, of %d: %v", len(result), maxReceive, err)
	}
	for name, tc := range map[string]struct {
		content []byte
		want    string
	}{
		"nothing":                                {},
		"the largest trace result":               {content: result},
		"a long text":                            {content: wrapped(1, wrapped(1, bytes.Repeat([]byte("x"), million)))},
		"a report of a million empty unmet":      {content: wrapped(2, repeated(4, million)), want: "more than 8192 parts"},
		"a report of a million whys":             {content: wrapped(2, packed), want: "more than 8192 parts"},
		"a report a million times":               {content: repeated(2, million), want: "more than 8192 parts"},
		"a trace result of a million empty hops": {content: wrapped(3, repeated(3, million)), want: "more than 8192 parts"},
		"a hop of a million empty steps":         {content: wrapped(3, wrapped(3, repeated(7, million))), want: "more than 8192 parts"},
		"a state of a million empty dataplanes":  {content: wrapped(4, repeated(2, million)), want: "more than 8192 parts"},
		"a million fields that nobody knows":     {content: repeated(99, million), want: "more than 8192 parts"},
		"what is cut off":                        {content: result[:len(result)-1], want: "unexpected EOF"},
		"a group that does not end":              {content: bytes.Repeat([]byte{0x0b}, million), want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(tc.content)}, &hubv1.AgentMessage{})
			switch {
			case strings.HasPrefix(name, "a group"):
				if err == nil {
					t.Error("no error")
				}
			case tc.want == "" && err != nil:
				t.Errorf("error %v, want none", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestWhatNobodyKnowsIsNotKept(t *testing.T) {
	ballast := wrapped(99, bytes.Repeat([]byte("x"), 1<<20))
	m := &hubv1.AgentMessage{}
	err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(wrapped(2, wrapped(4, ballast)))}, m)
	if err != nil {
		t.Fatal(err)
	}
	if unmet := m.GetReport().GetUnmet(); len(unmet) != 1 || len(unmet[0].ProtoReflect().GetUnknown()) > 0 {
		t.Errorf("decoded %d unmet, of which the first keeps %d bytes", len(unmet), len(unmet[0].ProtoReflect().GetUnknown()))
	}
}

func FuzzCodec(f *testing.F) {
	f.Add(wrapped(2, repeated(4, 2)), 3000)
	f.Add(wrapped(3, wrapped(3, repeated(7, 2))), 3000)
	f.Add([]byte{0x0b}, 9000)
	f.Fuzz(func(t *testing.T, content []byte, times int) {
		content = bytes.Repeat(content, max(min(times, 1<<16/max(len(content), 1)), 1))
		var got, want hubv1.AgentMessage
		err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(content)}, &got)
		plain := proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(content, &want)
		switch {
		case plain != nil && err == nil:
			t.Errorf("decoded what protobuf does not: %v", plain)
		case plain == nil && err == nil && !proto.Equal(&got, &want):
			t.Errorf("decoded %v, protobuf %v", &got, &want)
		case plain == nil && err != nil && !strings.Contains(err.Error(), "parts"):
			t.Errorf("error %v, want none", err)
		}
	})
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// uncounted is the size in bytes up to which a message is decoded as it is:
	// two bytes can make a part, which takes 200 bytes in memory at most.
	uncounted = 4 << 10
	// maxParts bounds the parts of a larger one: the largest, a trace result of
	// four hops with 128 steps and 16 near misses, has less than 5,000 fields.
	maxParts = 8 << 10
)

// codec decodes what agents send. A message of 2 MiB can have a million empty
// parts, which would take hundreds of times as much memory as on the wire, and
// fields that nobody knows, which would be kept with what is. The first is an
// error, the second is dropped.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(encodingproto.Name)} }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	message, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("decode %T: want a protobuf message", v)
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	content := buffer.ReadOnlyData()
	if len(content) > uncounted {
		if _, err := partsLeft(content, message.ProtoReflect().Descriptor(), maxParts); err != nil {
			return err
		}
	}
	return proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(content, message)
}

// partsLeft returns how many parts of those allowed are left behind a message:
// its fields and the elements of packed ones, and those of messages in it. It
// returns an error if they do not suffice, and allocates nothing otherwise.
func partsLeft(content []byte, d protoreflect.MessageDescriptor, allowed int) (int, error) {
	for len(content) > 0 {
		number, kind, n := protowire.ConsumeTag(content)
		if n < 0 {
			return 0, protowire.ParseError(n)
		}
		size := protowire.ConsumeFieldValue(number, kind, content[n:])
		if size < 0 {
			return 0, protowire.ParseError(size)
		}
		value := content[n : n+size]
		content = content[n+size:]
		allowed--
		if kind == protowire.BytesType {
			var err error
			if allowed, err = partsLeftIn(value, d.Fields().ByNumber(number), allowed); err != nil {
				return 0, err
			}
		}
		if allowed < 0 {
			return 0, fmt.Errorf("the message has more than %d parts", maxParts)
		}
	}
	return allowed, nil
}

// partsLeftIn counts the parts in one value with its length before it.
func partsLeftIn(value []byte, field protoreflect.FieldDescriptor, allowed int) (int, error) {
	inner, _ := protowire.ConsumeBytes(value)
	switch {
	case field == nil || field.Kind() == protoreflect.StringKind || field.Kind() == protoreflect.BytesKind:
		return allowed, nil
	case field.Kind() == protoreflect.MessageKind:
		return partsLeft(inner, field.Message(), allowed)
	}
	// Packed numbers take a byte each at least.
	return allowed - len(inner), nil
}

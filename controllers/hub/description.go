// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"fmt"
	"unicode/utf8"
	"unique"

	"google.golang.org/protobuf/proto"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// maxContent is the largest description in bytes, well below the 4 MiB that an
// agent receives in one message. 256 flows with as many whys of the longest
// names take less than 200 KiB.
const maxContent = 1 << 20

// Description is what one node must confirm, without what differs from one
// subject to the next. It is a value: equal contents are equal, share their
// memory, and travel to an agent once. The zero Description asks for nothing.
type Description struct {
	encoded unique.Handle[encoded]
}

// encoded is a description as it travels. The counts follow from the content;
// they are there so that nobody decodes it to check a report.
type encoded struct {
	content      string
	expectations int
	whys         int
}

// Describe returns the Description that holds d, whose flows have the
// subject's own address left out. It keeps nothing of d. It encodes d each
// time: whoever has many subjects with one description keeps the result. The
// error says what cannot be sent to an agent.
func Describe(d *hubv1.Description) (Description, error) {
	for i, why := range d.GetWhys() {
		if !utf8.ValidString(why) {
			return Description{}, fmt.Errorf("description: whys[%d] is %q: want valid UTF-8", i, why)
		}
	}
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(d)
	if err != nil {
		return Description{}, fmt.Errorf("encode description: %w", err)
	}
	if len(content) == 0 {
		return Description{}, nil
	}
	if len(content) > maxContent {
		return Description{}, fmt.Errorf("description of %d expectations has %d bytes: want at most %d",
			len(d.GetExpectations()), len(content), maxContent)
	}
	return Description{encoded: unique.Make(encoded{
		content:      string(content),
		expectations: len(d.GetExpectations()),
		whys:         len(d.GetWhys()),
	})}, nil
}

// Message returns what is described, decoded anew each time. The error would
// be one of Describe's.
func (d Description) Message() (*hubv1.Description, error) {
	message := &hubv1.Description{}
	if err := proto.Unmarshal([]byte(d.value().content), message); err != nil {
		return nil, fmt.Errorf("decode description: %w", err)
	}
	return message, nil
}

// value returns what is encoded, which is nothing for the zero Description.
func (d Description) value() encoded {
	if d == (Description{}) {
		return encoded{}
	}
	return d.encoded.Value()
}

// size returns the size of the description in bytes as it travels.
func (d Description) size() int { return len(d.value().content) }

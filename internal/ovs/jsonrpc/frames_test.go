// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package jsonrpc

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

func TestFrames(t *testing.T) {
	for name, test := range map[string]struct {
		stream string
		want   []string
		err    string // "" for the end of the stream
	}{
		"objects follow each other with and without space between": {
			stream: " {\"a\":1}{\"b\":{\"c\":[]}}\n\t{}\r\n",
			want:   []string{`{"a":1}`, `{"b":{"c":[]}}`, `{}`},
		},
		"braces and quotes within strings end nothing": {
			stream: `{"a}":"{\"}\\"}{"b":"\\\""}`,
			want:   []string{`{"a}":"{\"}\\"}`, `{"b":"\\\""}`},
		},
		"an array is no message": {
			stream: `{}[1]`,
			want:   []string{`{}`},
			err:    "begins with '['",
		},
		"a stream that ends within a message says so": {
			stream: `{"a":"`,
			err:    "ends within a message",
		},
		"a message of the largest size is read": {
			stream: `{"a":"` + strings.Repeat("x", 100-8) + `"}`,
			want:   []string{`{"a":"` + strings.Repeat("x", 100-8) + `"}`},
		},
		"a larger one is not": {
			stream: `{}{"a":"` + strings.Repeat("x", 100-7) + `"}`,
			want:   []string{`{}`},
			err:    "larger than 100 bytes",
		},
		"one without end is not read for ever": {
			stream: `{` + strings.Repeat(" ", 1000),
			err:    "larger than 100 bytes",
		},
	} {
		t.Run(name, func(t *testing.T) {
			for how, reader := range map[string]io.Reader{
				"at once":        strings.NewReader(test.stream),
				"byte after one": iotest.OneByteReader(strings.NewReader(test.stream)),
			} {
				got, err := readAll(newFrames(reader, 100))
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("read %s (-want +got):\n%s", how, diff)
				}
				if test.err == "" && !errors.Is(err, io.EOF) || test.err != "" && !strings.Contains(err.Error(), test.err) {
					t.Errorf("read %s: error %v, want %q", how, err, test.err)
				}
			}
		})
	}
}

func TestFramesForgetALargeBuffer(t *testing.T) {
	stream := `{"a":"` + strings.Repeat("x", 3*keepSize) + `"}{}`
	f := newFrames(strings.NewReader(stream), 4*keepSize)
	for range 2 {
		if _, err := f.next(); err != nil {
			t.Fatal(err)
		}
	}
	if cap(f.buf) > keepSize {
		t.Errorf("%d bytes are kept after a large message, want %d at most", cap(f.buf), keepSize)
	}
}

func readAll(f *frames) ([]string, error) {
	var all []string
	for {
		raw, err := f.next()
		if err != nil {
			return all, err
		}
		all = append(all, string(raw))
	}
}

// FuzzStream holds that no stream panics, that its parts do not depend on how it
// arrives, and that what is taken for a message is one.
func FuzzStream(f *testing.F) {
	f.Add([]byte(`{"id":1,"result":[{"count":1}],"error":null} {"id":null,"method":"update3","params":["a","b",{}]}`))
	f.Add([]byte(`{"id":"echo","method":"echo","params":[]}`))
	f.Add([]byte(`{"id":1,"error":{"error":"unknown database","details":"\u0000{}"}}`))
	f.Add([]byte("{\"method\":1}\x00{{{"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		whole, err := readAll(newFrames(bytes.NewReader(stream), 1<<16))
		parts, errParts := readAll(newFrames(iotest.OneByteReader(bytes.NewReader(stream)), 1<<16))
		if diff := cmp.Diff(whole, parts); diff != "" {
			t.Errorf("read at once and in parts (-at once +in parts):\n%s", diff)
		}
		if err.Error() != errParts.Error() {
			t.Errorf("read at once: %v, in parts: %v", err, errParts)
		}
		for _, raw := range whole {
			m, err := parseMessage([]byte(raw))
			if err != nil {
				continue
			}
			if m.Method == nil && !m.hasID() {
				t.Errorf("%q is taken for a message", raw)
			}
			for _, c := range callError("method", m.Error).Error() {
				if c < ' ' || c > '~' {
					t.Errorf("the error of %q has the character %q", raw, c)
				}
			}
		}
	})
}

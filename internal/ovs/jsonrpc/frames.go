// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package jsonrpc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

const (
	// readSize is how much is asked of the connection at a time.
	readSize = 64 << 10
	// keepSize is the largest buffer that is kept for the next message: the
	// first contents of a database are large, what follows is not.
	keepSize = 1 << 20
)

// frames cuts a stream into the JSON objects that it consists of. It finds
// where they end and no more: what is between the braces may be no JSON.
type frames struct {
	in  *bufio.Reader
	max int
	buf []byte
}

func newFrames(in io.Reader, limit int) *frames {
	return &frames{in: bufio.NewReaderSize(in, readSize), max: limit}
}

// next returns the next object, which is valid until next is called again. It
// returns io.EOF if the stream ends between two objects.
func (f *frames) next() ([]byte, error) {
	if cap(f.buf) > keepSize {
		f.buf = nil
	}
	f.buf = f.buf[:0]
	var end scan
	for {
		if _, err := f.in.Peek(1); err != nil {
			if errors.Is(err, io.EOF) && len(f.buf) > 0 {
				return nil, fmt.Errorf("the stream ends within a message: %w", io.ErrUnexpectedEOF)
			}
			return nil, err
		}
		chunk, _ := f.in.Peek(f.in.Buffered())
		if len(f.buf) == 0 {
			blank, err := leadingBlank(chunk)
			if err != nil {
				return nil, err
			}
			if blank > 0 {
				_, _ = f.in.Discard(blank)
				continue
			}
		}
		n, ended := end.advance(chunk)
		if len(f.buf)+n > f.max {
			return nil, fmt.Errorf("a message is larger than %d bytes", f.max)
		}
		f.buf = append(f.buf, chunk[:n]...)
		_, _ = f.in.Discard(n)
		if ended {
			return f.buf, nil
		}
	}
}

// leadingBlank returns how many bytes of white space precede an object.
func leadingBlank(chunk []byte) (int, error) {
	for i, c := range chunk {
		switch c {
		case ' ', '\t', '\r', '\n':
		case '{':
			return i, nil
		default:
			return 0, fmt.Errorf("a message begins with %q where an object should", c)
		}
	}
	return len(chunk), nil
}

// scan finds the brace that ends an object.
type scan struct {
	depth           int
	inString, slash bool
}

// advance returns how many bytes of the chunk belong to the object, and whether
// it ends with them.
func (s *scan) advance(chunk []byte) (n int, ended bool) {
	for i, c := range chunk {
		switch {
		case s.slash:
			s.slash = false
		case s.inString:
			s.slash = c == '\\'
			s.inString = c != '"'
		case c == '"':
			s.inString = true
		case c == '{':
			s.depth++
		case c == '}':
			if s.depth--; s.depth == 0 {
				return i + 1, true
			}
		}
	}
	return len(chunk), false
}

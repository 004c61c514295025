// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package jsonrpc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// message is a request, a notification or a response.
type message struct {
	Method *string         `json:"method"`
	Params json.RawMessage `json:"params"`
	ID     json.RawMessage `json:"id"`
	Result json.RawMessage `json:"result"`
	Error  json.RawMessage `json:"error"`
}

// parseMessage reads one and says what is wrong with it.
func parseMessage(raw []byte) (*message, error) {
	var m message
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("malformed message: %w", err)
	}
	switch {
	case m.Method == nil && !m.hasID():
		return nil, fmt.Errorf("malformed message: neither method nor id in %s", excerpt(raw))
	case m.Method != nil && (len(m.Params) == 0 || m.Params[0] != '['):
		return nil, fmt.Errorf("malformed message: params of method %.40q are no array", *m.Method)
	}
	return &m, nil
}

func (m *message) hasID() bool { return isSet(m.ID) }

// isSet returns whether a member of a message is there and not null.
func isSet(raw json.RawMessage) bool {
	return len(raw) > 0 && !bytes.Equal(raw, []byte("null"))
}

// CallError is what the server answered instead of a result.
type CallError struct {
	Method string
	// Text is what the server said: the string, or the members "error" and
	// "details" of the object. It is printable and bounded.
	Text string
}

func (e *CallError) Error() string {
	return fmt.Sprintf("%s: the server says: %s", e.Method, e.Text)
}

// callError reads the error of a response.
func callError(method string, raw json.RawMessage) *CallError {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return &CallError{Method: method, Text: excerpt([]byte(text))}
	}
	var full struct {
		Error   string `json:"error"`
		Details string `json:"details"`
	}
	if json.Unmarshal(raw, &full) == nil && full.Error != "" {
		text = full.Error
		if full.Details != "" {
			text += " (" + full.Details + ")"
		}
		return &CallError{Method: method, Text: excerpt([]byte(text))}
	}
	return &CallError{Method: method, Text: excerpt(raw)}
}

// maxExcerpt is how much of what a server said is quoted.
const maxExcerpt = 300

// excerpt returns the beginning of the text in printable ASCII, on one line.
func excerpt(raw []byte) string {
	long := len(raw) > maxExcerpt
	if long {
		raw = raw[:maxExcerpt]
	}
	text := strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r == '\r' {
			return ' '
		}
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, string(raw)))
	if long {
		text += "..."
	}
	return text
}

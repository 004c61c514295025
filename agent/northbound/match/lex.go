// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package match

import (
	"encoding/json"
	"fmt"
	"strings"
)

// kind is what sort of token it is.
type kind uint8

const (
	end      kind = iota
	symbol        // a field, a predicate or a function: ip4.src
	constant      // a number or an address, without its mask: 80, 10.0.0.0
	quoted        // a string, without its quotes
	setName       // the name of an address set, without the $
	group         // the name of a port group, without the @
	operator      // all others: ==, &&, (
)

type token struct {
	kind kind
	text string
	// at is where it begins.
	at int
}

// operators are tried in this order, the longer before its beginning.
//
//nolint:gochecknoglobals // A constant.
var operators = [...]string{"==", "!=", "<=", ">=", "&&", "||", "..", "<", ">", "!", "(", ")", "{", "}", "[", "]", ",", "/"}

// lexer takes tokens off a text.
type lexer struct {
	text string
	at   int
}

// next returns the next token, or an error that says where there is none.
func (l *lexer) next() (token, error) {
	for l.at < len(l.text) && strings.IndexByte(" \t\n\r", l.text[l.at]) >= 0 {
		l.at++
	}
	t := token{at: l.at}
	if l.at == len(l.text) {
		return t, nil
	}
	switch c := l.text[l.at]; {
	case c == '"':
		return l.quoted(t)
	case c == '$' || c == '@':
		l.at++
		if l.at == len(l.text) || !beginsName(l.text[l.at]) {
			return t, fmt.Errorf("at %d: %c without a name", t.at, c)
		}
		t.kind, t.text = group, l.run(inName)
		if c == '$' {
			t.kind = setName
		}
		return t, nil
	// An IPv6 address may begin like a name: fd00::1.
	case inName(c) || c == ':':
		t.kind, t.text = symbol, l.run(func(c byte) bool { return inName(c) || c == ':' })
		if strings.IndexByte(t.text, ':') >= 0 || isDigit(c) {
			t.kind = constant
		}
		return t, nil
	}
	for _, o := range operators {
		if strings.HasPrefix(l.text[l.at:], o) {
			l.at += len(o)
			t.kind, t.text = operator, o
			return t, nil
		}
	}
	return t, fmt.Errorf("at %d: unexpected %q", t.at, l.text[l.at:min(l.at+8, len(l.text))])
}

// quoted takes a string as JSON has them.
func (l *lexer) quoted(t token) (token, error) {
	for i := l.at + 1; i < len(l.text); i++ {
		switch l.text[i] {
		case '\\':
			i++
		case '"':
			if err := json.Unmarshal([]byte(l.text[l.at:i+1]), &t.text); err != nil {
				return t, fmt.Errorf("at %d: string: %w", t.at, err)
			}
			t.kind, l.at = quoted, i+1
			return t, nil
		}
	}
	return t, fmt.Errorf("at %d: a string without an end", t.at)
}

// run takes the bytes for which of holds.
func (l *lexer) run(of func(byte) bool) string {
	from := l.at
	for l.at < len(l.text) && of(l.text[l.at]) {
		l.at++
	}
	return l.text[from:l.at]
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func beginsName(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || c == '.'
}

func inName(c byte) bool { return beginsName(c) || isDigit(c) }

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ipset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/kernel/xtblob"
)

const (
	// ipsetByIndex and the protocol that it needs are new in Linux 4.20.
	ipsetByIndex         = 15
	ipsetByIndexProtocol = 7

	ipsetAttrIndex = 11
)

// Names resolves the indices by which rules refer to ipsets, each once. A
// set that a rule refers to can be neither destroyed nor renamed, and a swap
// moves the contents only, so a name holds as long as the rule does. It is
// safe for concurrent use.
type Names struct {
	conn Conn

	mu    sync.Mutex // guards names
	names map[uint16]resolved
}

// resolved is what an index was resolved to: a name, or the reason for which
// there is none.
type resolved struct{ name, problem string }

// NewNames returns names of which none is resolved yet, asked for over c.
func NewNames(c Conn) *Names {
	return &Names{conn: c, names: map[uint16]resolved{}}
}

var _ xtblob.Sets = (*Names)(nil)

// SetName implements xtblob.Sets.
func (s *Names) SetName(index uint16) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.names[index]
	if !ok {
		r = resolve(s.conn, index)
		s.names[index] = r
	}
	if r.problem != "" {
		return "", errors.New(r.problem)
	}
	return r.name, nil
}

// Same reports whether every index asked for so far is resolved now as it was
// then; for one that could not be resolved, that it still cannot.
func (s *Names) Same() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for index, r := range s.names {
		if resolve(s.conn, index) != r {
			return false
		}
	}
	return true
}

// Failed reports whether an index could not be resolved.
func (s *Names) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.names {
		if r.problem != "" {
			return true
		}
	}
	return false
}

// Asked counts the indices asked for so far.
func (s *Names) Asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.names)
}

// resolve asks for the name of one set, which pins nothing.
func resolve(c Conn, index uint16) resolved {
	request := nlconn.NFGenMsg(unix.AF_INET, 0)
	request = nlconn.Attribute(request, ipsetAttrProtocol, []byte{ipsetByIndexProtocol})
	request = nlconn.Attribute(request, ipsetAttrIndex|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint16(nil, index))
	name := ""
	err := c.Ask(subsysIPSet|ipsetByIndex, 0, request, func(body []byte) (err error) {
		name, err = named(body)
		return err
	})
	if err == nil && name == "" {
		err = errors.New("answer without a name")
	}
	if err != nil {
		return resolved{problem: fmt.Sprintf("name of set %d: %v", index, err)}
	}
	return resolved{name: name}
}

// named reads the answer to GET_BYINDEX.
func named(body []byte) (name string, err error) {
	if len(body) < nlconn.NFGenMsgLen {
		return "", errors.New("answer without header")
	}
	err = nlconn.Attributes(body[nlconn.NFGenMsgLen:], func(kind uint16, value []byte) {
		if kind == ipsetAttrSetName {
			name = nlconn.Text(value)
		}
	})
	return name, err
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ipset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
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

	// requestSpace holds a request for a name.
	requestSpace = 20
)

// BulkConn asks the kernel many things of one kind, as nlconn.Conn does.
type BulkConn interface {
	AskEach(kind uint16, requests [][]byte, each func(i int, body []byte, refusal error)) error
}

// Names resolves the indices by which rules refer to ipsets, each once. A
// set that a rule refers to can be neither destroyed nor renamed, and a swap
// moves the contents only, so a name holds as long as the rule does. It is
// safe for concurrent use.
type Names struct {
	conn BulkConn

	mu    sync.Mutex // guards names
	names map[uint16]resolved
}

// resolved is what an index was resolved to: a name, or the reason for which
// there is none.
type resolved struct{ name, problem string }

// NewNames returns names of which none is resolved yet, asked for over c.
func NewNames(c BulkConn) *Names {
	return &Names{conn: c, names: map[uint16]resolved{}}
}

var _ xtblob.Sets = (*Names)(nil)

// SetName implements xtblob.Sets.
func (s *Names) SetName(index uint16) (string, error) {
	s.Resolve([]uint16{index})
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.names[index]
	if r.problem != "" {
		return "", errors.New(r.problem)
	}
	return r.name, nil
}

// Resolve resolves indices at once, which is cheaper than one by one.
func (s *Names) Resolve(indices []uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var unknown []uint16
	for _, index := range indices {
		if _, ok := s.names[index]; !ok {
			unknown = append(unknown, index)
		}
	}
	if len(unknown) == 0 {
		return
	}
	for i, r := range resolve(s.conn, unknown) {
		s.names[unknown[i]] = r
	}
}

// Same reports whether every index asked for so far is resolved now as it was
// then; for one that could not be resolved, that it still cannot.
func (s *Names) Same() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	indices := slices.Collect(maps.Keys(s.names))
	for i, r := range resolve(s.conn, indices) {
		if r != s.names[indices[i]] {
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

// resolve asks for the names of sets, which pins nothing.
func resolve(c BulkConn, indices []uint16) []resolved {
	all, requests := make([]resolved, len(indices)), make([][]byte, len(indices))
	for i, index := range indices {
		request := append(make([]byte, 0, requestSpace), nlconn.NFGenMsg(unix.AF_INET, 0)...)
		request = nlconn.Attribute(request, ipsetAttrProtocol, []byte{ipsetByIndexProtocol})
		requests[i] = nlconn.Attribute(request, ipsetAttrIndex|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint16(nil, index))
		all[i].problem = fmt.Sprintf("name of set %d: no answer", index)
	}
	err := c.AskEach(subsysIPSet|ipsetByIndex, requests, func(i int, body []byte, refusal error) {
		name, err := "", refusal
		if err == nil {
			name, err = named(body)
		}
		if err != nil {
			all[i] = resolved{problem: fmt.Sprintf("name of set %d: %v", indices[i], err)}
			return
		}
		all[i] = resolved{name: name}
	})
	if err != nil {
		for i, index := range indices {
			all[i] = resolved{problem: fmt.Sprintf("name of set %d: %v", index, err)}
		}
	}
	return all
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
	if err == nil && name == "" {
		err = errors.New("answer without a name")
	}
	return name, err
}

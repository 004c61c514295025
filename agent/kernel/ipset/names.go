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

	mu    sync.Mutex // guards the following fields
	names map[uint16]string
	// failed is set once an index could not be resolved.
	failed bool
}

// NewNames returns names of which none is resolved yet, asked for over c.
func NewNames(c Conn) *Names {
	return &Names{conn: c, names: map[uint16]string{}}
}

var _ xtblob.Sets = (*Names)(nil)

// SetName implements xtblob.Sets.
func (s *Names) SetName(index uint16) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name, ok := s.names[index]; ok {
		return name, nil
	}
	name, err := setName(s.conn, index)
	if err != nil {
		s.failed = true
		return "", err
	}
	s.names[index] = name
	return name, nil
}

// Hold reports whether every index asked for so far was resolved and still has
// its name.
func (s *Names) Hold() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed {
		return false
	}
	for index, name := range s.names {
		if now, err := setName(s.conn, index); err != nil || now != name {
			return false
		}
	}
	return true
}

// Failed reports whether an index could not be resolved.
func (s *Names) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Resolved counts the indices that have been resolved.
func (s *Names) Resolved() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.names)
}

// String returns the names with their indices, the same for the same names.
func (s *Names) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint(s.names)
}

// setName asks for the name of one set, which pins nothing.
func setName(c Conn, index uint16) (string, error) {
	request := nlconn.NFGenMsg(unix.AF_INET, 0)
	request = nlconn.Attribute(request, ipsetAttrProtocol, []byte{ipsetByIndexProtocol})
	request = nlconn.Attribute(request, ipsetAttrIndex|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint16(nil, index))
	name := ""
	err := c.Ask(subsysIPSet|ipsetByIndex, 0, request, func(body []byte) error {
		if len(body) < nlconn.NFGenMsgLen {
			return errors.New("answer without header")
		}
		return nlconn.Attributes(body[nlconn.NFGenMsgLen:], func(kind uint16, value []byte) {
			if kind == ipsetAttrSetName {
				name = nlconn.Text(value)
			}
		})
	})
	if err == nil && name == "" {
		err = errors.New("answer without a name")
	}
	if err != nil {
		return "", fmt.Errorf("name of set %d: %w", index, err)
	}
	return name, nil
}

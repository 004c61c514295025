// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/xtblob"
)

const (
	// ipsetByIndex and the protocol that it needs are new in Linux 4.20.
	ipsetByIndex         = 15
	ipsetByIndexProtocol = 7

	ipsetAttrIndex = 11
)

// setNames resolves the indices by which rules refer to ipsets, each once. A
// set that a rule refers to can be neither destroyed nor renamed, and a swap
// moves the contents only, so a name holds as long as the rule does. It is
// not safe for concurrent use.
type setNames struct {
	conn  *conn
	names map[uint16]string
	// failed is set once an index could not be resolved.
	failed bool
}

func newSetNames(c *conn) *setNames {
	return &setNames{conn: c, names: map[uint16]string{}}
}

var _ xtblob.Sets = (*setNames)(nil)

// SetName implements xtblob.Sets.
func (s *setNames) SetName(index uint16) (string, error) {
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

// hold reports whether every index asked for so far was resolved and still has
// its name.
func (s *setNames) hold() bool {
	if s.failed {
		return false
	}
	now := newSetNames(s.conn)
	for index := range s.names {
		if _, err := now.SetName(index); err != nil {
			return false
		}
	}
	return maps.Equal(s.names, now.names)
}

// setName asks for the name of one set, which pins nothing.
func setName(c *conn, index uint16) (string, error) {
	request := nfgenmsg(unix.AF_INET, 0)
	request = attribute(request, ipsetAttrProtocol, []byte{ipsetByIndexProtocol})
	request = attribute(request, ipsetAttrIndex|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint16(nil, index))
	name := ""
	err := c.ask(subsysIPSet|ipsetByIndex, 0, request, func(body []byte) error {
		if len(body) < nfgenmsgLen {
			return errors.New("answer without header")
		}
		return attributes(body[nfgenmsgLen:], func(kind uint16, value []byte) {
			if kind == ipsetAttrSetName {
				name = text(value)
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

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
)

// search finds the element that a key falls into among all that a
// concatenation of intervals has. In nf_tables listing a set pins nothing.
func (s *set) search(key []byte) (found element, ok bool, err error) {
	all, err := s.list()
	if err != nil {
		s.view.of.fail()
		return element{}, false, err
	}
	for _, e := range all {
		if !s.header.contains(e, key) {
			continue
		}
		if ok {
			// Which the packets' path meets first depends on how they were put
			// in. A set without anything else to its elements does not care.
			if len(found.expressions)+len(e.expressions) > 0 || s.plain.Verdicts {
				found.doubtful = "elements that overlap"
			}
			continue
		}
		found, ok = e, true
	}
	return found, ok, nil
}

// list returns the elements of the set.
func (s *set) list() ([]element, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listed != nil {
		return s.listed, nil
	}
	request := nlconn.NFGenMsg(s.view.key.family, 0)
	request = nlconn.Attribute(request, unix.NFTA_SET_ELEM_LIST_TABLE, terminated(s.view.key.name))
	request = nlconn.Attribute(request, unix.NFTA_SET_ELEM_LIST_SET, terminated(s.name))
	all := []element{}
	err := s.view.of.conn.Ask(subsysNFTables|unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, request, func(body []byte) error {
		add, err := readElements(body)
		all = append(all, add...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list set %s of nf_tables table %s: %w", s.name, s.view.key, err)
	}
	if !s.plain.Volatile {
		s.listed = all
	}
	return all, nil
}

// contains reports whether each field of the key lies in the element's
// interval. Fields begin at multiples of 4 bytes, and what is between them is
// not compared. The catch-all element has no key.
func (h setHeader) contains(e element, key []byte) bool {
	end := e.end
	if end == nil {
		end = e.key
	}
	if len(e.key) != len(key) || e.flags&(elementCatchall|unix.NFT_SET_ELEM_INTERVAL_END) != 0 {
		return false
	}
	at := 0
	for _, length := range h.fields {
		if length == 0 {
			break
		}
		next := at + int(length)
		if next > len(key) || bytes.Compare(key[at:next], e.key[at:next]) < 0 || bytes.Compare(key[at:next], end[at:next]) > 0 {
			return false
		}
		at = words(next)
	}
	return true
}

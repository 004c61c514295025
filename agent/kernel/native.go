// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sys/unix"
)

// bitwiseOperation is NFTA_BITWISE_OP, new in Linux 5.6.
const bitwiseOperation = 6

// tableKey names a table of one nf_tables family.
type tableKey struct {
	family uint8
	name   string
}

// alienTables returns the tables of iptables that hold a rule which the
// iptables-nft tools would not have written, with the reason.
//
// iptables-nft-save prints such rules wrongly: with 1.8.9 "ip saddr { 10.0.0.1,
// 10.0.0.2 } drop" reads "-j DROP", "ip saddr 10.0.0.1-10.0.0.9 drop" reads
// "-s 10.0.0.9/32 -j DROP" and "udp length 8 drop" reads "-p udp -j DROP". So
// its text counts only if every expression is one that it writes itself.
func alienTables(c *conn) (map[tableKey]string, error) {
	alien := map[tableKey]string{}
	for _, family := range []uint8{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		found, err := alienRules(c, family)
		if err != nil {
			return nil, fmt.Errorf("list nf_tables rules: %w", err)
		}
		maps.Copy(alien, found)
	}
	return alien, nil
}

func alienRules(c *conn, family uint8) (map[tableKey]string, error) {
	alien := map[tableKey]string{}
	err := c.ask(subsysNFTables|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, nfgenmsg(family, 0), func(body []byte) error {
		if len(body) < nfgenmsgLen {
			return errors.New("answer without header")
		}
		table, chain, why := "", "", ""
		var nested error
		err := attributes(body[nfgenmsgLen:], func(kind uint16, value []byte) {
			switch kind {
			case unix.NFTA_RULE_TABLE:
				table = text(value)
			case unix.NFTA_RULE_CHAIN:
				chain = text(value)
			case unix.NFTA_RULE_EXPRESSIONS:
				why, nested = alienRule(value, family)
			}
		})
		if why != "" {
			alien[tableKey{family, table}] = "chain " + chain + " has a rule that iptables cannot show (" + why + ")"
		}
		return errors.Join(err, nested)
	})
	return alien, err
}

// loaded is what a rule's expressions have loaded so far. Two loads of one
// field are two conditions of which iptables-nft-save prints the last.
type loaded struct {
	family uint8
	seen   map[string]bool
	// transport: the last load was a port.
	transport bool
}

// alienRule returns why a rule cannot be iptables-nft's own, or "".
func alienRule(expressions []byte, family uint8) (string, error) {
	state := loaded{family: family, seen: map[string]bool{}}
	why := ""
	var nested error
	err := attributes(expressions, func(_ uint16, element []byte) {
		name, data := "", []byte(nil)
		err := attributes(element, func(kind uint16, value []byte) {
			switch kind {
			case unix.NFTA_EXPR_NAME:
				name = text(value)
			case unix.NFTA_EXPR_DATA:
				data = value
			}
		})
		reason, err2 := state.alien(name, data)
		if why == "" {
			why = reason
		}
		nested = errors.Join(nested, err, err2)
	})
	return why, errors.Join(err, nested)
}

func (l *loaded) alien(name string, data []byte) (string, error) {
	fields := map[uint16][]byte{}
	if err := attributes(data, func(kind uint16, value []byte) { fields[kind] = value }); err != nil {
		return "", err
	}
	switch name {
	case "match", "target", "counter", "immediate", "log", "limit":
		return "", nil
	case "bitwise":
		// Any operation but mask and xor (0) shifts.
		if be32(fields[bitwiseOperation]) != 0 {
			return "bitwise operation", nil
		}
		return "", nil
	case "meta":
		key := fields[unix.NFTA_META_KEY]
		// Each mark match is printed by itself, so two of them are two.
		if fields[unix.NFTA_META_SREG] == nil && be32(key) != unix.NFT_META_MARK && l.twice("meta", key) {
			return "meta loaded twice", nil
		}
		l.transport = false
		return "", nil
	case "payload":
		return l.payload(fields), nil
	case "cmp":
		if op := be32(fields[unix.NFTA_CMP_OP]); op != unix.NFT_CMP_EQ && op != unix.NFT_CMP_NEQ {
			return "relation", nil
		}
		return "", nil
	case "range":
		if !l.transport {
			return "range", nil
		}
		return "", nil
	}
	return name, nil
}

func (l *loaded) twice(kind string, field []byte) bool {
	key := kind + string(field)
	if l.seen[key] {
		return true
	}
	l.seen[key] = true
	return false
}

// payload knows the header fields that iptables-nft loads.
func (l *loaded) payload(fields map[uint16][]byte) string {
	if fields[unix.NFTA_PAYLOAD_SREG] != nil {
		return "payload written"
	}
	base, offset, length := be32(fields[unix.NFTA_PAYLOAD_BASE]), be32(fields[unix.NFTA_PAYLOAD_OFFSET]), be32(fields[unix.NFTA_PAYLOAD_LEN])
	key := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, base), offset)
	if l.twice("payload", key) {
		return "payload loaded twice"
	}
	l.transport = false
	switch base {
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		if known := networkField(l.family, offset, length); !known {
			return fmt.Sprintf("network header field at %d", offset)
		}
		return ""
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		l.transport = length == 2 && (offset == 0 || offset == 2)
		// Ports, the flags of TCP, type and code of ICMP.
		if l.transport || (length == 1 && offset == 13) || (length <= 2 && offset == 0) {
			return ""
		}
		return fmt.Sprintf("transport header field at %d", offset)
	}
	return "link layer header"
}

func networkField(family uint8, offset, length uint32) bool {
	if family == unix.NFPROTO_IPV4 {
		switch offset {
		case 12, 16: // addresses, or their leading bytes
			return length <= 4
		case 6: // fragment offset
			return length == 2
		case 8, 9: // ttl, protocol
			return length == 1
		}
		return false
	}
	switch offset {
	case 8, 24: // addresses, or their leading bytes
		return length <= 16
	case 6, 7: // next header, hop limit
		return length == 1
	}
	return false
}

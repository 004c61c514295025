// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/ruleset"
)

// linux/netfilter_ipv4/ip_tables.h and linux/netfilter_ipv6/ip6_tables.h have
// the same numbers and structs for both families.
const (
	getInfo    = 64 // IPT_SO_GET_INFO
	getEntries = 65 // IPT_SO_GET_ENTRIES

	// XT_TABLE_MAXNAMELEN, with the NUL.
	tableNameSize = 32
	// The size of struct ipt_getinfo, and where struct ipt_get_entries has
	// the entries.
	infoSize    = 84
	entriesFrom = 40
	// mostBytes bounds what is read of one table: 500 times what a node of
	// 110 pods with a hundred policies has.
	mostBytes = 1 << 30
)

// errGone means that a table that was listed is no longer there.
var errGone = errors.New("the table is gone")

// socket asks for the legacy tables of one family. One for datagrams does: the
// kernel wants CAP_NET_ADMIN, whatever the socket is.
type socket struct {
	family    ruleset.Family
	fd, level int
}

func dial(family ruleset.Family) (source, error) {
	s, domain := socket{family: family, level: unix.IPPROTO_IP}, unix.AF_INET
	if family == ruleset.IPv6 {
		s.level, domain = unix.IPPROTO_IPV6, unix.AF_INET6
	}
	var err error
	if s.fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return s, fmt.Errorf("open socket: %w", err)
	}
	return s, nil
}

func (s socket) close() { _ = unix.Close(s.fd) }

// read reads one table in one piece, into buffer if that is large enough, or
// returns errGone.
//
// The kernel makes a table that it does not have when it is asked about it: of
// a module that is loaded anew for that (GET_INFO), or that is loaded but not
// used in this namespace (both calls). A table that was there just now can only
// have gone with its module. So it is asked for its entries first, in vain, as
// that loads no module. What is left is the microsecond between this and
// GET_INFO. A table made then is empty and lets everything pass.
func (s socket) read(name string, buffer []byte) (*table, error) {
	if len(name) >= tableNameSize {
		return nil, fmt.Errorf("name of %d bytes, want %d at most", len(name), tableNameSize-1)
	}
	if err := s.entries(name, make([]byte, entriesFrom)); errors.Is(err, unix.ENOENT) {
		return nil, errGone
	}
	for range attempts {
		before, err := s.info(name)
		if err != nil {
			return nil, err
		}
		length := entriesFrom + int(before.size)
		if cap(buffer) < length {
			buffer = make([]byte, length)
		}
		err = s.entries(name, buffer[:length])
		if errors.Is(err, unix.EAGAIN) {
			// The table's size is another one by now.
			continue
		}
		if err != nil {
			return nil, err
		}
		// Chains may begin elsewhere in another table of the same size.
		after, err := s.info(name)
		if err != nil {
			return nil, err
		}
		if after == before {
			return &table{family: s.family, name: name, info: after, data: buffer[entriesFrom:length], buffer: buffer}, nil
		}
	}
	return nil, ErrUnsettled
}

func (s socket) info(name string) (info, error) {
	buf := make([]byte, infoSize)
	copy(buf, name)
	if err := s.getsockopt(getInfo, buf); err != nil {
		return info{}, fmt.Errorf("read info: %w", err)
	}
	number := func(i int) uint32 { return binary.NativeEndian.Uint32(buf[tableNameSize+4*i:]) }
	i := info{hooks: number(0), count: number(1 + 2*hooks), size: number(2 + 2*hooks)}
	for hook := range hooks {
		i.entry[hook], i.underflow[hook] = number(1+hook), number(1+hooks+hook)
	}
	if i.size > mostBytes {
		return info{}, fmt.Errorf("%d bytes of rules, want %d at most", i.size, mostBytes)
	}
	return i, nil
}

// entries fills buf with as many entries as have room. The kernel refuses with
// EAGAIN if that is not the table's size.
func (s socket) entries(name string, buf []byte) error {
	clear(buf[:entriesFrom])
	copy(buf, name)
	binary.NativeEndian.PutUint32(buf[tableNameSize:], uint32(len(buf)-entriesFrom)) //nolint:gosec // Bounded by mostBytes.
	if err := s.getsockopt(getEntries, buf); err != nil {
		return fmt.Errorf("read entries: %w", err)
	}
	return nil
}

// getsockopt hands buf to the kernel, which reads it and fills it.
func (s socket) getsockopt(option int, buf []byte) error {
	length := uint32(len(buf)) //nolint:gosec // Bounded by mostBytes.
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), uintptr(s.level), uintptr(option),
		uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(unsafe.Pointer(&length)), 0) //nolint:gosec // x/sys has no call that also hands a buffer in.
	if errno != 0 {
		return errno
	}
	if int(length) != len(buf) {
		return fmt.Errorf("answer of %d bytes, want %d", length, len(buf))
	}
	return nil
}

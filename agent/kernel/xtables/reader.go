// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package xtables reads the rules of the legacy tables, iptables and
// ip6tables, by getsockopt.
//
// It takes no lock of iptables and reads no table that does not exist, for
// that would create it. It decides nothing: agent/trace evaluates the rules.
package xtables

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/ipset"
	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// attempts bounds how often a read is begun again because the rules changed
// under it. An engine commits in bursts, but each read takes milliseconds and
// the next look comes soon.
const attempts = 5

// ErrUnsettled means that the rules changed during every attempt.
var ErrUnsettled = errors.New("the legacy tables kept changing while they were read")

// linux/netfilter_ipv4/ip_tables.h and linux/netfilter_ipv6/ip6_tables.h have
// the same numbers and structs for both families.
const (
	xtGetInfo    = 64 // IPT_SO_GET_INFO
	xtGetEntries = 65 // IPT_SO_GET_ENTRIES

	// XT_TABLE_MAXNAMELEN, with the NUL.
	xtTableName = 32
	// The size of struct ipt_getinfo, and where struct ipt_get_entries has
	// the entries.
	xtInfoSize    = 84
	xtEntriesFrom = 40
	// xtMostBytes bounds what is read of one table: 500 times what a node of
	// 110 pods with a hundred policies has.
	xtMostBytes = 1 << 30
)

// Reader reads the legacy tables, and only those that exist: to read
// another would create it. Each table is read in one piece.
type Reader struct {
	conn *nlconn.Conn
	// proc is the directory with ip_tables_names.
	proc string
	// buffers are what the kernel fills, by family and name of a table.
	buffers map[string][]byte

	// What was read last: its hash, the names of its sets, what they made.
	sum    [sha256.Size]byte
	names  *ipset.Names
	stamp  string
	tables []ruleset.Table
}

// New returns a Reader that takes the names of the tables from proc and those
// of the sets from the kernel over c.
func New(c *nlconn.Conn, proc string) *Reader {
	return &Reader{conn: c, proc: proc, buffers: map[string][]byte{}}
}

// Read returns the rules that are loaded now, whole or an error, and a stamp:
// equal stamps mean equal rules.
func (r *Reader) Read(ctx context.Context) ([]ruleset.Table, string, error) {
	for range attempts {
		if err := ctx.Err(); err != nil {
			return nil, "", err
		}
		before, sum, err := r.dump()
		if err != nil {
			return nil, "", err
		}
		if r.names != nil && sum == r.sum && r.names.Hold() {
			return r.tables, r.stamp, nil
		}
		names := ipset.NewNames(r.conn)
		tables, parseErr := parseTables(before, names)
		// A set's name is what the rules mean only as long as they refer to it.
		_, after, err := r.dump()
		if err != nil {
			return nil, "", err
		}
		if after != sum {
			continue
		}
		if parseErr != nil {
			return nil, "", parseErr
		}
		r.sum, r.names, r.tables = sum, names, tables
		r.stamp = fmt.Sprintf("legacy %x %v", sum, names)
		return r.tables, r.stamp, nil
	}
	return nil, "", ErrUnsettled
}

// Holds reports whether nothing has changed since the last Read, so that what
// was read is of one moment.
func (r *Reader) Holds(context.Context) (bool, error) { return true, nil }

func parseTables(dump []xtTable, names *ipset.Names) ([]ruleset.Table, error) {
	tables := make([]ruleset.Table, 0, len(dump))
	for i := range dump {
		table, err := dump[i].parse(names)
		if err != nil {
			return nil, fmt.Errorf("legacy %s table %s: %w", dump[i].family, dump[i].name, err)
		}
		tables = append(tables, table)
	}
	return tables, nil
}

// dump reads all tables, without what changes under the same rules, and
// returns their hash. The tables are valid until the next dump.
func (r *Reader) dump() ([]xtTable, [sha256.Size]byte, error) {
	var tables []xtTable
	hash := sha256.New()
	for _, of := range []struct {
		family ruleset.Family
		file   string
	}{{ruleset.IPv4, "ip_tables_names"}, {ruleset.IPv6, "ip6_tables_names"}} {
		names, err := os.ReadFile(filepath.Join(r.proc, of.file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, [sha256.Size]byte{}, fmt.Errorf("list legacy tables: %w", err)
		}
		for name := range strings.FieldsSeq(string(names)) {
			key := of.family.String() + " " + name
			t, err := readTable(of.family, name, r.buffers[key])
			if err == nil {
				err = t.wipe()
			}
			if err != nil {
				return nil, [sha256.Size]byte{}, fmt.Errorf("legacy %s table %s: %w", of.family, name, err)
			}
			r.buffers[key] = t.buffer
			tables = append(tables, t)
			_, _ = fmt.Fprintf(hash, "%s %s %v\n", t.family, t.name, t.info)
			_, _ = hash.Write(t.data)
		}
	}
	return tables, [sha256.Size]byte(hash.Sum(nil)), nil
}

// readTable reads one table that exists. A socket for datagrams does: the
// kernel asks for CAP_NET_ADMIN, whatever the socket is. The table is read
// into buffer if it is large enough.
func readTable(family ruleset.Family, name string, buffer []byte) (xtTable, error) {
	t := xtTable{family: family, name: name, buffer: buffer}
	domain, level := unix.AF_INET, unix.IPPROTO_IP
	if family == ruleset.IPv6 {
		domain, level = unix.AF_INET6, unix.IPPROTO_IPV6
	}
	if len(name) >= xtTableName {
		return t, fmt.Errorf("name of %d bytes", len(name))
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return t, fmt.Errorf("open socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	for range attempts {
		if t.info, err = readInfo(fd, level, name); err != nil {
			return t, err
		}
		err = t.readEntries(fd, level)
		if errors.Is(err, unix.EAGAIN) {
			// The table's size is another one by now.
			continue
		}
		if err != nil {
			return t, err
		}
		// Chains may begin elsewhere in another table of the same size.
		after, err := readInfo(fd, level, name)
		if err != nil {
			return t, err
		}
		if after == t.info {
			return t, nil
		}
	}
	return t, ErrUnsettled
}

func readInfo(fd, level int, name string) (xtInfo, error) {
	buf := make([]byte, xtInfoSize)
	copy(buf, name)
	if err := getsockopt(fd, level, xtGetInfo, buf); err != nil {
		return xtInfo{}, fmt.Errorf("read info: %w", err)
	}
	number := func(i int) uint32 { return binary.NativeEndian.Uint32(buf[xtTableName+4*i:]) }
	info := xtInfo{hooks: number(0), count: number(1 + 2*xtHooks), size: number(2 + 2*xtHooks)}
	for hook := range xtHooks {
		info.entry[hook], info.underflow[hook] = number(1+hook), number(1+xtHooks+hook)
	}
	if info.size > xtMostBytes {
		return xtInfo{}, fmt.Errorf("%d bytes of rules, want %d at most", info.size, xtMostBytes)
	}
	return info, nil
}

// readEntries asks for as many bytes as the table's info says.
func (t *xtTable) readEntries(fd, level int) error {
	length := xtEntriesFrom + int(t.info.size)
	if cap(t.buffer) < length {
		t.buffer = make([]byte, length)
	}
	t.buffer = t.buffer[:length]
	clear(t.buffer[:xtEntriesFrom])
	copy(t.buffer, t.name)
	binary.NativeEndian.PutUint32(t.buffer[xtTableName:], t.info.size)
	if err := getsockopt(fd, level, xtGetEntries, t.buffer); err != nil {
		return fmt.Errorf("read entries: %w", err)
	}
	t.data = t.buffer[xtEntriesFrom:]
	return nil
}

// getsockopt hands buf to the kernel, which reads it and fills it.
func getsockopt(fd, level, option int, buf []byte) error {
	length := uint32(len(buf)) //nolint:gosec // Bounded by xtMostBytes.
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(unsafe.Pointer(&length)), 0) //nolint:gosec // x/sys has no call that also hands a buffer in.
	if errno != 0 {
		return errno
	}
	if int(length) != len(buf) {
		return fmt.Errorf("answer of %d bytes, want %d", length, len(buf))
	}
	return nil
}

// hookNumber is the kernel's number of a hook of IP.
func hookNumber(h ruleset.Hook) int {
	switch h {
	case ruleset.Prerouting:
		return unix.NF_INET_PRE_ROUTING
	case ruleset.Input:
		return unix.NF_INET_LOCAL_IN
	case ruleset.Forward:
		return unix.NF_INET_FORWARD
	case ruleset.Output:
		return unix.NF_INET_LOCAL_OUT
	case ruleset.Postrouting:
		return unix.NF_INET_POST_ROUTING
	case ruleset.Ingress:
	}
	return -1
}

// legacyBase returns the base chain that a legacy table has at a hook, with
// the priority that its module registers it with.
func legacyBase(table string, number int) (base ruleset.Base, name string, ok bool) {
	for _, c := range []struct {
		hook ruleset.Hook
		name string
	}{
		{ruleset.Prerouting, "PREROUTING"}, {ruleset.Input, "INPUT"}, {ruleset.Forward, "FORWARD"},
		{ruleset.Output, "OUTPUT"}, {ruleset.Postrouting, "POSTROUTING"},
	} {
		if hookNumber(c.hook) == number {
			base.Hook, name = c.hook, c.name
		}
	}
	switch table {
	case "raw":
		base.Priority = -300
	case "mangle":
		base.Priority = -150
	case "nat":
		base.NAT = true
		base.Priority = -100
		if base.Hook == ruleset.Input || base.Hook == ruleset.Postrouting {
			base.Priority = 100
		}
	case "filter":
	case "security":
		base.Priority = 50
	default:
		return ruleset.Base{}, "", false
	}
	return base, name, base.Hook != 0
}

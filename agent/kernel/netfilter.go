// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kernel reads what a node's kernel enforces by netfilter and answers
// for flows.
//
// It has the edges that agent/ruleset and agent/trace do without: nf_tables
// over netlink, the legacy tables by getsockopt, membership of ipsets by single
// TESTs, interfaces, addresses and routes. It runs no program and decides
// nothing about policies.
//
// # A look
//
// A look is whole or an error, and what it answers in one batch is of one
// moment: rules, native sets, interfaces and routes did not change from the
// first question to the last, or all of them are asked again. Questions to
// ipsets are asked at most once for a moment, and can be newer than the rules,
// as nothing tells when a set changes: who confirms by looks has to take two
// of them. Batches of one look may be of different moments.
//
// # What is remembered
//
// A verdict is a function of the rules, the path and the answers of sets. Each
// is kept with the path and the answers that it rests on, and stands in a later
// look if the rules are the same by both readers' stamps, the path is the same,
// and the sets answer the same: then only these are asked. An Inconclusive one
// is always found anew, since what could not be read may be readable now.
//
// What cannot be read stays in the answer: chains of nf_tables' other families
// than ip, ip6 and inet as opaque, conditions that are not understood as
// unknown. A flow that meets one is Inconclusive.
//
// # What is never done to the node
//
// No set is listed, no lock of iptables is held, no legacy table is read that
// does not exist, for that would create it. CAP_NET_ADMIN is enough; the user
// has to be root for /proc/net/ip_tables_names to be readable.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/ipset"
	"github.com/policygate/policygate/agent/kernel/nftables"
	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/kernel/route"
	"github.com/policygate/policygate/agent/kernel/xtables"
	"github.com/policygate/policygate/agent/ruleset"
)

// Options are the seams of a Netfilter. The zero value is right for an agent
// in the node's network namespace.
type Options struct {
	// ProcNet is the directory of ip_tables_names and ip_vs; empty means
	// /proc/thread-self/net, the namespace of the calling thread.
	ProcNet string
}

func (o Options) withDefaults() Options {
	if o.ProcNet == "" {
		o.ProcNet = "/proc/thread-self/net"
	}
	return o
}

// backend reads the rules of one of the kernel's two engines for them.
type backend interface {
	// Read returns the rules that are loaded now, whole or an error, and a
	// stamp: equal stamps mean equal rules. Chains may be read later, when
	// they are asked for.
	Read(ctx context.Context) (tables []ruleset.Table, stamp string, err error)
	// Holds reports whether nothing has changed since the last Read, so that
	// it and all that its chains and native sets have answered since are of
	// one moment.
	Holds(ctx context.Context) (bool, error)
}

// Netfilter is the dataplane of iptables, ip6tables and ipset on one node. It
// is safe for concurrent use.
type Netfilter struct {
	conn   *nlconn.Conn
	route  *route.Reader
	legacy *xtables.Reader

	mu       sync.Mutex // guards the following fields and serializes batches
	backends []backend
	stamps   []string
	rewrites uint64
	// newest is what was read last, nil if it does not hold.
	newest *reading
	// readings counts them.
	readings uint64
	memory   memory
}

// New opens the node's netfilter in the network namespace of the calling
// thread. Close frees it.
func New(options Options) (*Netfilter, error) {
	if err := xtables.CheckArchitecture(); err != nil {
		return nil, err
	}
	options = options.withDefaults()
	conn, err := nlconn.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	topology, err := route.New(options.ProcNet)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	legacy := xtables.New(conn, options.ProcNet)
	return &Netfilter{
		conn: conn, route: topology, legacy: legacy,
		backends: []backend{nftables.New(conn), legacy},
		memory:   newMemory(),
	}, nil
}

// Close frees the sockets and files. Looks taken before answer Inconclusive from then on.
func (n *Netfilter) Close() error {
	return errors.Join(n.conn.Close(), n.route.Close(), n.legacy.Close())
}

// Unsupported returns why the node's dataplane cannot be seen, or "" if
// nothing was found that decides before or beside netfilter.
func (n *Netfilter) Unsupported(ctx context.Context) string { return n.route.Unsupported(ctx) }

// Audit is Unsupported, and has the next look read interfaces, addresses and
// routing rules even if the kernel told of no change.
func (n *Netfilter) Audit(ctx context.Context) string {
	n.route.Forget()
	return n.Unsupported(ctx)
}

// Look reads the rules, or finds them unchanged. It returns an error rather
// than a part of them.
func (n *Netfilter) Look(ctx context.Context) (*Look, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r, err := n.read(ctx)
	if err != nil {
		return nil, err
	}
	n.memory.nextLook()
	return &Look{netfilter: n, reading: r}, nil
}

// reading is what was read at one moment, with chains that are read later.
type reading struct {
	// number tells readings apart.
	number   uint64
	tables   []ruleset.Table
	stamps   []string
	topology *route.Topology
	sets     *ipset.Sets
	rewrites uint64
}

// read makes a new reading the newest.
func (n *Netfilter) read(ctx context.Context) (*reading, error) {
	n.newest = nil
	n.readings++
	r := &reading{number: n.readings, stamps: make([]string, 0, len(n.backends)), sets: ipset.New(n.conn)}
	for _, b := range n.backends {
		read, stamp, err := b.Read(ctx)
		if err != nil {
			n.memory.forget()
			return nil, fmt.Errorf("read rules: %w", err)
		}
		r.tables = append(r.tables, read...)
		r.stamps = append(r.stamps, stamp)
	}
	topology, err := n.route.Read()
	if err != nil {
		return nil, fmt.Errorf("read topology: %w", err)
	}
	r.topology = topology
	if !slices.Equal(n.stamps, r.stamps) {
		n.memory.forget()
	}
	for i := range n.stamps {
		if n.stamps[i] != r.stamps[i] {
			n.rewrites++
		}
	}
	n.stamps, r.rewrites, n.newest = r.stamps, n.rewrites, r
	return r, nil
}

// holds reports whether everything since the newest reading is of one moment.
// If it is not, nothing of it is used again.
func (n *Netfilter) holds(ctx context.Context) (bool, error) {
	holds, err := n.route.Holds()
	for _, b := range n.backends {
		if err != nil || !holds {
			break
		}
		holds, err = b.Holds(ctx)
	}
	if err != nil || !holds {
		n.newest = nil
		n.memory.forget()
	}
	if err != nil {
		return false, fmt.Errorf("see whether the rules have changed: %w", err)
	}
	return holds, nil
}

// BootID returns the id of the kernel's boot.
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

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
// A look is whole or an error. For nf_tables all rules are of one generation
// of which nothing was still being committed; each legacy table is read in
// one piece. Sets and routes are asked for when a flow needs them, at most
// once per look, and can be newer than the rules: who confirms by looks has
// to take two of them.
//
// What cannot be read stays in the answer: chains of nf_tables' other families
// than ip and ip6 as opaque, conditions that are not understood as unknown. A
// flow that meets one is Inconclusive.
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
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
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

// attempts bounds how often a read is begun again because the rules changed
// under it. An engine commits in bursts, but each read takes milliseconds and
// the next look comes soon.
const attempts = 5

// errUnsettled means that the rules changed during every attempt.
var errUnsettled = errors.New("the rules kept changing while they were read")

// reader reads the rules of one backend. It returns them whole or an error,
// and a stamp that changes if and only if they may have.
type reader interface {
	read(ctx context.Context) (tables []ruleset.Table, stamp string, err error)
}

// Netfilter is the dataplane of iptables, ip6tables and ipset on one node. It
// is safe for concurrent use.
type Netfilter struct {
	netfilter, route *conn
	handle           *netlink.Handle
	proc             string

	mu       sync.Mutex // guards the following fields and serializes looks
	readers  []reader
	stamps   []string
	rewrites uint64
}

// New opens the node's netfilter in the network namespace of the calling
// thread. Close frees it.
func New(options Options) (*Netfilter, error) {
	options = options.withDefaults()
	nf, err := dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	route, err := dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(err, nf.close())
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open route netlink: %w", err), nf.close(), route.close())
	}
	return &Netfilter{
		netfilter: nf, route: route, handle: handle, proc: options.ProcNet,
		readers: []reader{
			&nftReader{conn: nf},
			newLegacyReader(nf, options.ProcNet),
		},
	}, nil
}

// Close frees the sockets. Looks taken before answer Inconclusive from then on.
func (n *Netfilter) Close() error {
	n.handle.Close()
	return errors.Join(n.netfilter.close(), n.route.close())
}

// Look reads the rules, or finds them unchanged. It returns an error rather
// than a part of them.
func (n *Netfilter) Look(ctx context.Context) (*Look, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var tables []ruleset.Table
	stamps := make([]string, 0, len(n.readers))
	for _, r := range n.readers {
		read, stamp, err := r.read(ctx)
		if err != nil {
			return nil, fmt.Errorf("read rules: %w", err)
		}
		tables = append(tables, read...)
		stamps = append(stamps, stamp)
	}
	topology, err := readTopology(n.handle, n.route, n.proc)
	if err != nil {
		return nil, fmt.Errorf("read topology: %w", err)
	}
	for i := range n.stamps {
		if n.stamps[i] != stamps[i] {
			n.rewrites++
		}
	}
	n.stamps = stamps
	return &Look{
		tables: tables, topology: topology, sets: newSets(n.netfilter), rewrites: n.rewrites,
		verdicts: map[flow.Flow]answer{},
	}, nil
}

// Look is the state of the node at one moment. It is safe for concurrent use.
type Look struct {
	tables   []ruleset.Table
	topology *topology
	sets     *sets
	rewrites uint64

	mu       sync.Mutex // guards verdicts
	verdicts map[flow.Flow]answer
}

type answer struct {
	verdict flow.Verdict
	routed  bool
}

// Tables returns the rules of the look. They are shared with other looks and
// must not be changed.
func (l *Look) Tables() []ruleset.Table { return l.tables }

// Rewrites counts the changes of the node's rules that looks have found since
// New: per look at most one for nf_tables, where each commit is a change
// whatever it did, and one for the legacy tables. It never shrinks.
func (l *Look) Rewrites() uint64 { return l.rewrites }

// Verdict returns what the node does with the flow; a second time it returns
// the same. A flow that is not valid or not carried is Inconclusive.
func (l *Look) Verdict(f flow.Flow) flow.Verdict { return l.ask(f).verdict }

// Routed reports whether the node has routes for the flow, there and back. It
// is false only if the kernel said so.
func (l *Look) Routed(f flow.Flow) bool { return l.ask(f).routed }

func (l *Look) ask(f flow.Flow) answer {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a, ok := l.verdicts[f]; ok {
		return a
	}
	a := l.decide(f)
	l.verdicts[f] = a
	return a
}

func (l *Look) decide(f flow.Flow) answer {
	if err := f.Validate(); err != nil {
		return answer{inconclusive(err.Error()), true}
	}
	paths, err := l.topology.paths(f)
	if err != nil {
		return answer{inconclusive(err.Error()), !errors.Is(err, ErrNoRoute)}
	}
	verdict := trace.Trace(l.tables, paths[0], f, l.sets)
	for _, p := range paths[1:] {
		other := trace.Trace(l.tables, p, f, l.sets)
		if other.Answer == flow.Inconclusive {
			verdict = other
		}
		if verdict.Answer != other.Answer {
			verdict = inconclusive("virtual servers: forwarded " + verdict.String() + ", sent " + other.String())
		}
	}
	return answer{verdict, true}
}

func inconclusive(reason string) flow.Verdict {
	return flow.Verdict{Answer: flow.Inconclusive, Reason: trace.Clean(reason)}
}

// BootID returns the id of the kernel's boot.
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/ruleset"
)

// Runner runs a program and returns what it prints. It returns an error unless
// the program ends with status 0.
type Runner interface {
	Run(ctx context.Context, name string, args ...string) ([]byte, error)
}

// execRunner runs programs of the agent's image.
type execRunner struct{}

func (execRunner) Run(ctx context.Context, name string, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // The program is the operator's option.
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("run %s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// attempts bounds how often a read is begun again because the rules changed
// under it. An engine commits in bursts, but each read takes tens of
// milliseconds and the next look comes soon.
const attempts = 5

// errUnsettled means that the rules changed during every attempt.
var errUnsettled = errors.New("the rules kept changing while they were read")

// reader reads the rules of one backend. It returns them whole or an error,
// and a stamp that changes if and only if they may have.
type reader interface {
	read(ctx context.Context) (tables []ruleset.Table, stamp string, err error)
}

// nftReader reads nf_tables: the tables of iptables through the text of the
// save tools, all others as opaque chains.
type nftReader struct {
	conn     *conn
	runner   Runner
	programs map[ruleset.Family]string

	// What was read last, and at which generation. Only settled generations
	// are kept.
	generation uint32
	tables     []ruleset.Table
	known      bool
}

func (r *nftReader) read(ctx context.Context) ([]ruleset.Table, string, error) {
	for range attempts {
		gen, err := settled(r.conn)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			// nfnetlink does not know nf_tables and could not load it, so
			// there is nothing in it.
			return nil, "none", nil
		}
		if err != nil {
			return nil, "", err
		}
		stamp := fmt.Sprintf("generation %d", gen)
		if r.known && r.generation == gen {
			return r.tables, stamp, nil
		}
		r.known = false
		tables, err := r.readAll(ctx)
		if err != nil && !errors.Is(err, errInterrupted) {
			// A change in the middle can be the cause of any error.
			if now, genErr := generation(r.conn); genErr == nil && now != gen && ctx.Err() == nil {
				continue
			}
			return nil, "", err
		}
		now, genErr := generation(r.conn)
		if genErr != nil {
			return nil, "", genErr
		}
		if err == nil && now == gen {
			r.generation, r.tables, r.known = gen, tables, true
			return tables, stamp, nil
		}
	}
	return nil, "", errUnsettled
}

func (r *nftReader) readAll(ctx context.Context) ([]ruleset.Table, error) {
	bases, err := nftBases(r.conn)
	if err != nil {
		return nil, err
	}
	alien, err := alienTables(r.conn)
	if err != nil {
		return nil, err
	}
	var tables []ruleset.Table
	for _, of := range []struct {
		nf     uint8
		family ruleset.Family
	}{{unix.NFPROTO_IPV4, ruleset.IPv4}, {unix.NFPROTO_IPV6, ruleset.IPv6}} {
		if !slices.ContainsFunc(bases, func(b nftBase) bool { return b.family == of.nf && !b.idle() }) {
			continue
		}
		out, err := r.runner.Run(ctx, r.programs[of.family])
		if err != nil && alienFamily(alien, of.nf) && ctx.Err() == nil {
			// The tool gives up at such a rule. The family's chains stay
			// opaque, and the others can still be judged.
			continue
		}
		if err != nil {
			return nil, err
		}
		parsed, err := ruleset.Parse(of.family, ruleset.NFT, string(out))
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", r.programs[of.family], err)
		}
		for _, t := range parsed {
			if alien[tableKey{of.nf, t.Name}] == "" {
				tables = append(tables, t)
			}
		}
	}
	return complete(tables, bases, alien)
}

func alienFamily(alien map[tableKey]string, family uint8) bool {
	for key := range alien {
		if key.family == family {
			return true
		}
	}
	return false
}

// complete adds an opaque chain for every base chain that the text does not
// hold. It returns an error if the two contradict each other.
func complete(tables []ruleset.Table, bases []nftBase, alien map[tableKey]string) ([]ruleset.Table, error) {
	printed := slices.Clone(tables)
	for _, b := range bases {
		if b.idle() {
			continue
		}
		chain := find(printed, b)
		if chain == nil {
			why := alien[tableKey{b.family, b.table}]
			if why == "" {
				why = "its rules are native to nftables"
			}
			tables = append(tables, b.opaque(why)...)
			continue
		}
		if chain.Base.Drop != b.drop {
			return nil, fmt.Errorf("chain %s of table %s has another policy in the kernel than in the text", b.chain, b.table)
		}
	}
	return tables, nil
}

// find returns the chain of the text that is the kernel's b, or nil.
func find(tables []ruleset.Table, b nftBase) *ruleset.Chain {
	for _, t := range tables {
		families := b.families()
		if len(families) != 1 || families[0] != t.Family || t.Name != b.table {
			continue
		}
		for _, c := range t.Chains {
			if c.Name == b.chain && c.Base != nil && c.Base.Hook == b.place() && c.Base.Priority == b.priority && c.Base.NAT == (b.kind == "nat") {
				return c
			}
		}
	}
	return nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nftables reads the rules of nf_tables over netlink, whoever wrote
// them: nft or iptables' nft variant.
//
// Tables and chains are listed, the rules of a chain are read when somebody
// asks for them, and sets are never listed but asked for one key. All of it is
// of one generation of which nothing was still being committed, or Holds says
// that it is not. What is not understood stays in the rules as an unknown
// condition or target. The package decides nothing: agent/trace evaluates the
// rules.
package nftables

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// attempts bounds how often a read is begun again because the rules changed
// under it. An engine commits in bursts, but each read takes milliseconds and
// the next look comes soon.
const attempts = 5

// ErrUnsettled means that the rules changed during every attempt.
var ErrUnsettled = errors.New("nf_tables kept changing while it was read")

const subsysNFTables = unix.NFNL_SUBSYS_NFTABLES << 8

// tableKey names a table of one nf_tables family.
type tableKey struct {
	family uint8
	name   string
}

// String returns the table's family, as a number, and name.
func (k tableKey) String() string { return fmt.Sprintf("%d %s", k.family, k.name) }

// nftChain is a chain as nf_tables lists it.
type nftChain struct {
	family uint8
	table  string
	chain  string
	// hooked is set for a base chain. Only that has a kind, hook, priority
	// and policy.
	hooked   bool
	kind     string
	hook     uint32
	priority int
	drop     bool
}

// key returns the table that the chain is in.
func (c nftChain) key() tableKey { return tableKey{c.family, c.table} }

// unreadable returns why the chain's rules are not read, or "".
func (c nftChain) unreadable(dormant bool) string {
	switch {
	case c.family != unix.NFPROTO_IPV4 && c.family != unix.NFPROTO_IPV6 && c.family != unix.NFPROTO_INET,
		c.atDevice():
		return "its rules are not read: they see packets at the link layer"
	case dormant:
		// The flag changes before the commit that changes it is through, so
		// the chains may be at work.
		return "its table is dormant, or about to be"
	}
	return ""
}

// inetIngress is NF_INET_INGRESS, the inet family's hook at a device, new in
// Linux 5.10.
const inetIngress = 5

// atDevice reports whether the chain of family inet sees all packets of a
// device.
func (c nftChain) atDevice() bool {
	return c.hooked && c.family == unix.NFPROTO_INET && c.hook == inetIngress
}

// generation returns the number of the last commit to nf_tables in this
// namespace.
func generation(c *nlconn.Conn) (uint32, error) {
	var gen uint32
	err := c.Ask(subsysNFTables|unix.NFT_MSG_GETGEN, 0, nlconn.NFGenMsg(unix.AF_UNSPEC, 0), func(body []byte) error {
		if len(body) < nlconn.NFGenMsgLen {
			return errors.New("answer without header")
		}
		return nlconn.Attributes(body[nlconn.NFGenMsgLen:], func(kind uint16, value []byte) {
			if kind == unix.NFTA_GEN_ID {
				gen = nlconn.BE32(value)
			}
		})
	})
	if err != nil {
		return 0, fmt.Errorf("read nf_tables generation: %w", err)
	}
	return gen, nil
}

// settled returns a generation of which nothing is still being committed.
//
// The kernel bumps the generation before a commit's last steps (policies,
// interval sets). An empty batch waits for the mutex that a commit holds and
// bumps nothing, so a generation that is the same before and after it is
// complete.
func settled(c *nlconn.Conn) (uint32, error) {
	for range attempts {
		before, err := generation(c)
		if err != nil {
			return 0, err
		}
		err = c.Barrier(
			nlconn.Message(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, 0, nlconn.NFGenMsg(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)),
			nlconn.Message(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, 0, nlconn.NFGenMsg(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)),
		)
		if err != nil {
			return 0, fmt.Errorf("wait for the nf_tables commit: %w", err)
		}
		after, err := generation(c)
		if err != nil {
			return 0, err
		}
		if before == after {
			return after, nil
		}
	}
	return 0, ErrUnsettled
}

// nftDormant lists the tables whose chains are taken out of their hooks.
func nftDormant(c *nlconn.Conn) (map[tableKey]bool, error) {
	dormant := map[tableKey]bool{}
	err := c.Ask(subsysNFTables|unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, nlconn.NFGenMsg(unix.AF_UNSPEC, 0), func(body []byte) error {
		if len(body) < nlconn.NFGenMsgLen {
			return errors.New("answer without header")
		}
		key, flags := tableKey{family: body[0]}, uint32(0)
		err := nlconn.Attributes(body[nlconn.NFGenMsgLen:], func(kind uint16, value []byte) {
			switch kind {
			case unix.NFTA_TABLE_NAME:
				key.name = nlconn.Text(value)
			case unix.NFTA_TABLE_FLAGS:
				flags = nlconn.BE32(value)
			}
		})
		if flags&unix.NFT_TABLE_F_DORMANT != 0 {
			dormant[key] = true
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list nf_tables tables: %w", err)
	}
	return dormant, nil
}

// nftChains lists the chains of all families.
func nftChains(c *nlconn.Conn) ([]nftChain, error) {
	var chains []nftChain
	err := c.Ask(subsysNFTables|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, nlconn.NFGenMsg(unix.AF_UNSPEC, 0), func(body []byte) error {
		chain, err := readChain(body)
		chains = append(chains, chain)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list nf_tables chains: %w", err)
	}
	return chains, nil
}

// readChain reads one message of the list.
func readChain(body []byte) (nftChain, error) {
	if len(body) < nlconn.NFGenMsgLen {
		return nftChain{}, errors.New("answer without header")
	}
	c := nftChain{family: body[0]}
	var nested error
	err := nlconn.Attributes(body[nlconn.NFGenMsgLen:], func(kind uint16, value []byte) {
		switch kind {
		case unix.NFTA_CHAIN_TABLE:
			c.table = nlconn.Text(value)
		case unix.NFTA_CHAIN_NAME:
			c.chain = nlconn.Text(value)
		case unix.NFTA_CHAIN_TYPE:
			c.kind = nlconn.Text(value)
		case unix.NFTA_CHAIN_POLICY:
			c.drop = nlconn.BE32(value) == 0 // NF_DROP
		case unix.NFTA_CHAIN_HOOK:
			c.hooked = true
			nested = nlconn.Attributes(value, func(kind uint16, value []byte) {
				switch kind {
				case unix.NFTA_HOOK_HOOKNUM:
					c.hook = nlconn.BE32(value)
				case unix.NFTA_HOOK_PRIORITY:
					c.priority = int(int32(nlconn.BE32(value))) //nolint:gosec // A signed number by definition.
				}
			})
		}
	})
	if c.table == "" || c.chain == "" {
		err = errors.Join(err, errors.New("chain without name or table"))
	}
	return c, errors.Join(err, nested)
}

// base returns what ties a chain of family ip, ip6 or inet to its hook.
func (c nftChain) base() (*ruleset.Base, error) {
	if c.hook > unix.NF_INET_POST_ROUTING {
		return nil, fmt.Errorf("chain %s of table %s is at hook %d: want at most %d", c.chain, c.table, c.hook, unix.NF_INET_POST_ROUTING)
	}
	return &ruleset.Base{Hook: c.place(), Priority: c.priority, Drop: c.drop, NAT: c.kind == "nat"}, nil
}

// families returns the families whose packets the chain sees; none for arp.
func (c nftChain) families() []ruleset.Family {
	switch c.family {
	case unix.NFPROTO_IPV4:
		return []ruleset.Family{ruleset.IPv4}
	case unix.NFPROTO_IPV6:
		return []ruleset.Family{ruleset.IPv6}
	case unix.NFPROTO_INET:
		return []ruleset.Family{ruleset.IPv4, ruleset.IPv6}
	case unix.NFPROTO_BRIDGE:
		return []ruleset.Family{ruleset.Bridge}
	case unix.NFPROTO_ARP:
		return nil
	}
	// netdev, and whatever a later kernel brings, may see everything.
	return []ruleset.Family{ruleset.Netdev}
}

// place returns the chain's hook as the model has it.
func (c nftChain) place() ruleset.Hook {
	switch c.hook {
	case unix.NF_INET_PRE_ROUTING:
		return ruleset.Prerouting
	case unix.NF_INET_LOCAL_IN:
		return ruleset.Input
	case unix.NF_INET_FORWARD:
		return ruleset.Forward
	case unix.NF_INET_LOCAL_OUT:
		return ruleset.Output
	case unix.NF_INET_POST_ROUTING:
		return ruleset.Postrouting
	}
	return ruleset.Ingress
}

// opaque returns the chain as tables of the model that say why it cannot be
// read. The inet family's ingress hook sees every packet of a device, so it
// counts as netdev.
func (c nftChain) opaque(why string) []ruleset.Table {
	families := c.families()
	if c.atDevice() {
		families = []ruleset.Family{ruleset.Netdev}
	}
	tables := make([]ruleset.Table, 0, len(families))
	for _, f := range families {
		tables = append(tables, ruleset.Table{
			Family: f, Backend: ruleset.NFT, Name: c.table,
			Chains: []*ruleset.Chain{{
				Name: c.chain, Opaque: why,
				Base: &ruleset.Base{Hook: c.place(), Priority: c.priority, Drop: c.drop, NAT: c.kind == "nat"},
			}},
		})
	}
	return tables
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/ruleset"
)

const subsysNFTables = unix.NFNL_SUBSYS_NFTABLES << 8

// nftBase is a base chain as nf_tables lists it.
type nftBase struct {
	family   uint8
	table    string
	chain    string
	kind     string
	hook     uint32
	priority int
	drop     bool
	// used counts the chain's rules: nothing else can refer to a base chain.
	used uint32
}

// idle reports whether the chain lets every packet pass untouched, as the
// chains of a distribution's empty /etc/nftables.conf do.
func (b nftBase) idle() bool { return b.used == 0 && !b.drop }

// generation returns the number of the last commit to nf_tables in this
// namespace.
func generation(c *conn) (uint32, error) {
	var gen uint32
	err := c.ask(subsysNFTables|unix.NFT_MSG_GETGEN, 0, nfgenmsg(unix.AF_UNSPEC, 0), func(body []byte) error {
		if len(body) < nfgenmsgLen {
			return errors.New("answer without header")
		}
		return attributes(body[nfgenmsgLen:], func(kind uint16, value []byte) {
			if kind == unix.NFTA_GEN_ID {
				gen = be32(value)
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
func settled(c *conn) (uint32, error) {
	for range attempts {
		before, err := generation(c)
		if err != nil {
			return 0, err
		}
		err = c.barrier(
			message(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, 0, nfgenmsg(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)),
			message(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, 0, nfgenmsg(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)),
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
	return 0, errUnsettled
}

// nftBases lists the base chains of all families.
func nftBases(c *conn) ([]nftBase, error) {
	var bases []nftBase
	err := c.ask(subsysNFTables|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, nfgenmsg(unix.AF_UNSPEC, 0), func(body []byte) error {
		if len(body) < nfgenmsgLen {
			return errors.New("answer without header")
		}
		b, hooked := nftBase{family: body[0]}, false
		var nested error
		err := attributes(body[nfgenmsgLen:], func(kind uint16, value []byte) {
			switch kind {
			case unix.NFTA_CHAIN_TABLE:
				b.table = text(value)
			case unix.NFTA_CHAIN_NAME:
				b.chain = text(value)
			case unix.NFTA_CHAIN_TYPE:
				b.kind = text(value)
			case unix.NFTA_CHAIN_POLICY:
				b.drop = be32(value) == 0 // NF_DROP
			case unix.NFTA_CHAIN_USE:
				b.used = be32(value)
			case unix.NFTA_CHAIN_HOOK:
				hooked = true
				nested = attributes(value, func(kind uint16, value []byte) {
					switch kind {
					case unix.NFTA_HOOK_HOOKNUM:
						b.hook = be32(value)
					case unix.NFTA_HOOK_PRIORITY:
						b.priority = int(int32(be32(value))) //nolint:gosec // A signed number by definition.
					}
				})
			}
		})
		if hooked {
			bases = append(bases, b)
		}
		return errors.Join(err, nested)
	})
	if err != nil {
		return nil, fmt.Errorf("list nf_tables chains: %w", err)
	}
	return bases, nil
}

// families returns the families whose packets the chain sees; none for arp.
func (b nftBase) families() []ruleset.Family {
	switch b.family {
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
	// netdev, and whatever a later kernel brings.
	return []ruleset.Family{ruleset.Netdev}
}

// place returns the chain's hook as the model has it.
func (b nftBase) place() ruleset.Hook {
	switch b.hook {
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
func (b nftBase) opaque(why string) []ruleset.Table {
	families := b.families()
	if len(families) == 2 && b.place() == ruleset.Ingress {
		families = []ruleset.Family{ruleset.Netdev}
	}
	tables := make([]ruleset.Table, 0, len(families))
	for _, f := range families {
		tables = append(tables, ruleset.Table{
			Family: f, Backend: ruleset.NFT, Name: b.table,
			Chains: []*ruleset.Chain{{
				Name: b.chain, Opaque: why,
				Base: &ruleset.Base{Hook: b.place(), Priority: b.priority, Drop: b.drop, NAT: b.kind == "nat"},
			}},
		})
	}
	return tables
}

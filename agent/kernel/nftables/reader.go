// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/ipset"
	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/kernel/xtblob"
	"github.com/policygate/policygate/agent/ruleset"
)

// Reader reads nf_tables. The tables of the families ip and ip6, whoever
// made them, are read rule by rule; base chains of the others are opaque.
type Reader struct {
	conn *nlconn.Conn

	// What was read last, and at which generation. Only settled generations
	// are kept.
	generation uint32
	tables     []ruleset.Table
	known      bool
}

// New returns a Reader that asks over c.
func New(c *nlconn.Conn) *Reader { return &Reader{conn: c} }

// Read returns the rules that are loaded now, whole or an error, and a stamp:
// equal stamps mean equal rules.
func (r *Reader) Read(ctx context.Context) ([]ruleset.Table, string, error) {
	for range attempts {
		if err := ctx.Err(); err != nil {
			return nil, "", err
		}
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
		names := ipset.NewNames(r.conn)
		tables, err := nftRead(r.conn, names)
		if err != nil && !errors.Is(err, nlconn.ErrInterrupted) {
			// A change in the middle can be the cause of any error.
			if now, genErr := generation(r.conn); genErr == nil && now != gen {
				continue
			}
			return nil, "", err
		}
		now, genErr := generation(r.conn)
		if genErr != nil {
			return nil, "", genErr
		}
		if err == nil && now == gen {
			// A name that could not be had this time may be had the next: the
			// generation says nothing of sets.
			r.generation, r.tables, r.known = gen, tables, !names.Failed()
			return tables, stamp, nil
		}
	}
	return nil, "", ErrUnsettled
}

// Holds reports whether nothing has changed since the last Read, so that what
// was read is of one moment.
func (r *Reader) Holds(context.Context) (bool, error) { return true, nil }

// nftRead reads everything once.
func nftRead(c *nlconn.Conn, names *ipset.Names) ([]ruleset.Table, error) {
	dormant, err := nftDormant(c)
	if err != nil {
		return nil, err
	}
	chains, err := nftChains(c)
	if err != nil {
		return nil, err
	}
	var rules []nftRule
	for _, family := range []uint8{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		of, err := nftRules(c, family)
		if err != nil {
			return nil, err
		}
		rules = append(rules, of...)
	}
	return nftTables(dormant, chains, rules, names)
}

// nftRule is a rule as nf_tables lists it.
type nftRule struct {
	table tableKey
	chain string
	// expressions and userdata are the attributes' values.
	expressions, userdata []byte
}

// nftRules lists the rules of a family, chain by chain and in their order.
func nftRules(c *nlconn.Conn, family uint8) ([]nftRule, error) {
	var rules []nftRule
	err := c.Ask(subsysNFTables|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, nlconn.NFGenMsg(family, 0), func(body []byte) error {
		rule, err := readRule(body)
		if err != nil {
			return err
		}
		rules = append(rules, rule)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list nf_tables rules: %w", err)
	}
	return rules, nil
}

// readRule reads one message of the list. Its expressions are decoded later:
// that can need further questions to the kernel.
func readRule(body []byte) (nftRule, error) {
	if len(body) < nlconn.NFGenMsgLen {
		return nftRule{}, errors.New("answer without header")
	}
	rule := nftRule{table: tableKey{family: body[0]}}
	err := nlconn.Attributes(body[nlconn.NFGenMsgLen:], func(kind uint16, value []byte) {
		switch kind {
		case unix.NFTA_RULE_TABLE:
			rule.table.name = nlconn.Text(value)
		case unix.NFTA_RULE_CHAIN:
			rule.chain = nlconn.Text(value)
		case unix.NFTA_RULE_EXPRESSIONS:
			rule.expressions = append([]byte{}, value...)
		case unix.NFTA_RULE_USERDATA:
			rule.userdata = bytes.Clone(value)
		}
	})
	if err == nil && (rule.table.name == "" || rule.chain == "" || rule.expressions == nil) {
		err = errors.New("rule without table, chain or expressions")
	}
	return rule, err
}

// nftTables builds the model. It returns an error if a rule or a jump is for a
// chain that was not listed, or if a rule is malformed.
func nftTables(dormant map[tableKey]bool, chains []nftChain, rules []nftRule, sets xtblob.Sets) ([]ruleset.Table, error) {
	var opaque []ruleset.Table
	var order []tableKey
	tables := map[tableKey]*ruleset.Table{}
	byName := map[chainKey]*ruleset.Chain{}
	for _, c := range chains {
		key := tableKey{c.family, c.table}
		if why := c.unreadable(dormant[key]); why != "" {
			if c.hooked && !c.idle() {
				opaque = append(opaque, c.opaque(why)...)
			}
			continue
		}
		table := tables[key]
		if table == nil {
			table = &ruleset.Table{Family: c.families()[0], Backend: ruleset.NFT, Name: c.table}
			tables[key] = table
			order = append(order, key)
		}
		chain := &ruleset.Chain{Name: c.chain}
		if c.hooked {
			base, err := c.base()
			if err != nil {
				return nil, err
			}
			chain.Base = base
		}
		table.Chains = append(table.Chains, chain)
		byName[chainKey{key, c.chain}] = chain
	}
	for _, r := range rules {
		if dormant[r.table] {
			continue
		}
		chain := byName[chainKey{r.table, r.chain}]
		if chain == nil {
			return nil, fmt.Errorf("rule of chain %s in table %s, which was not listed", r.chain, r.table)
		}
		rule, err := decodeRule(tables[r.table].Family, r.chain, r.expressions, r.userdata, sets)
		if err != nil {
			return nil, fmt.Errorf("rule of chain %s in table %s: %w", r.chain, r.table, err)
		}
		if kind := rule.Target.Kind; kind == ruleset.Jump || kind == ruleset.Goto {
			to := byName[chainKey{r.table, rule.Target.Name}]
			if to == nil || to.Base != nil {
				return nil, fmt.Errorf("rule %q leads to chain %q, which table %s does not have", rule.Raw, rule.Target.Name, r.table)
			}
			rule.Target.Chain = to
		}
		chain.Rules = append(chain.Rules, rule)
	}
	all := make([]ruleset.Table, 0, len(order)+len(opaque))
	for _, key := range order {
		all = append(all, *tables[key])
	}
	return append(all, opaque...), nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/ipset"
	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// view is a table as the packets of one family see it. A table of family inet
// has two, which share nothing: what a rule's expressions load depends on the
// packet's family.
type view struct {
	of     *snapshot
	key    tableKey
	family ruleset.Family
	table  ruleset.Table
	chains map[string]*ruleset.Chain

	mu   sync.Mutex // guards the following fields
	sets map[string]*set
	// headers are those of all sets of the table; nil as long as nobody has
	// asked for one.
	headers map[string]setHeader
	// readSets are the sets that rules look something up in; nil as long as
	// nobody has asked.
	readSets map[string]bool
}

func newView(s *snapshot, key tableKey, family ruleset.Family) *view {
	return &view{
		of: s, key: key, family: family, table: ruleset.Table{Family: family, Backend: ruleset.NFT, Name: key.name},
		chains: map[string]*ruleset.Chain{}, sets: map[string]*set{},
	}
}

// add adds a chain whose rules are read when they are asked for, once.
func (v *view) add(c nftChain) error {
	chain := &ruleset.Chain{Name: c.chain}
	if c.hooked {
		base, err := c.base()
		if err != nil {
			return err
		}
		chain.Base = base
	}
	chain.Read = sync.OnceValues(func() ([]ruleset.Rule, error) { return v.read(c.chain) })
	v.table.Chains = append(v.table.Chains, chain)
	v.chains[c.chain] = chain
	return nil
}

// read reads the rules of a chain. The kernel lists none for a chain that was
// deleted meanwhile; then the generation is another as well.
func (v *view) read(chain string) ([]ruleset.Rule, error) {
	read, err := nftRules(v.of.conn, v.key, chain)
	if err != nil {
		v.of.fail()
		return nil, err
	}
	rules := make([]ruleset.Rule, 0, len(read))
	for _, r := range read {
		rule, err := decodeRule(v.family, chain, r.expressions, r.userdata, v)
		if err != nil {
			return nil, fmt.Errorf("rule of chain %s in table %s: %w", chain, v.key, err)
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

// SetName implements xtblob.Sets.
func (v *view) SetName(index uint16) (string, error) { return v.of.names.SetName(index) }

// chain implements surroundings.
func (v *view) chain(name string) *ruleset.Chain {
	if c := v.chains[name]; c != nil && c.Base == nil {
		return c
	}
	return nil
}

// set implements surroundings.
func (v *view) set(name string) (*set, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := v.sets[name]; s != nil {
		return s, nil
	}
	if v.headers == nil {
		headers, err := nftSets(v.of.conn, v.key)
		if err != nil {
			v.of.fail()
			return nil, err
		}
		v.headers = headers
	}
	header, ok := v.headers[name]
	if !ok {
		// It was deleted meanwhile; then the generation is another as well.
		v.of.fail()
		return nil, fmt.Errorf("nf_tables table %s has no set %s", v.key, name)
	}
	s := newSet(v, name, header)
	v.sets[name] = s
	return s, nil
}

// nftRule is a rule as nf_tables lists it.
type nftRule struct {
	table tableKey
	chain string
	// expressions and userdata are the attributes' values.
	expressions, userdata []byte
}

// nftRules lists the rules of a chain in their order.
func nftRules(c *nlconn.Conn, table tableKey, chain string) ([]nftRule, error) {
	request := nlconn.NFGenMsg(table.family, 0)
	request = nlconn.Attribute(request, unix.NFTA_RULE_TABLE, terminated(table.name))
	request = nlconn.Attribute(request, unix.NFTA_RULE_CHAIN, terminated(chain))
	var rules []nftRule
	err := c.Ask(subsysNFTables|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, request, func(body []byte) error {
		rule, err := readRule(body)
		if err != nil {
			return err
		}
		if rule.table == table && rule.chain == chain {
			rules = append(rules, rule)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the rules of chain %s in nf_tables table %s: %w", chain, table, err)
	}
	return rules, nil
}

// terminated returns a name as an attribute has it.
func terminated(name string) []byte { return append([]byte(name), 0) }

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

// ipsetNames makes ipset.Names safe for concurrent use.
type ipsetNames struct {
	mu    sync.Mutex // guards names
	names *ipset.Names
}

func newIPSetNames(c *nlconn.Conn) *ipsetNames { return &ipsetNames{names: ipset.NewNames(c)} }

// SetName implements xtblob.Sets.
func (n *ipsetNames) SetName(index uint16) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.names.SetName(index)
}

func (n *ipsetNames) failed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.names.Failed()
}

// isRead implements surroundings. It reads all rules of the table once; tables
// whose rules change sets are few.
func (v *view) isRead(set string) (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.readSets == nil {
		names, err := nftLookups(v.of.conn, v.key)
		if err != nil {
			v.of.fail()
			return false, err
		}
		v.readSets = names
	}
	return v.readSets[set], nil
}

// nftLookups returns the names of the sets that rules of a table look
// something up in.
func nftLookups(c *nlconn.Conn, table tableKey) (map[string]bool, error) {
	names := map[string]bool{}
	request := nlconn.Attribute(nlconn.NFGenMsg(table.family, 0), unix.NFTA_RULE_TABLE, terminated(table.name))
	err := c.Ask(subsysNFTables|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, request, func(body []byte) error {
		rule, err := readRule(body)
		if err != nil || rule.table != table {
			return err
		}
		return addLookups(rule.expressions, names)
	})
	if err != nil {
		return nil, fmt.Errorf("list the rules of nf_tables table %s: %w", table, err)
	}
	return names, nil
}

// addLookups adds the names of the sets that a list of expressions looks
// something up in.
func addLookups(expressions []byte, names map[string]bool) error {
	var nested error
	err := nlconn.Attributes(expressions, func(_ uint16, value []byte) {
		expression, err := parseAttrs(value)
		a, err2 := parseAttrs(expression.values[unix.NFTA_EXPR_DATA])
		nested = errors.Join(nested, err, err2)
		switch nlconn.Text(expression.values[unix.NFTA_EXPR_NAME]) {
		case "lookup":
			names[nlconn.Text(a.values[unix.NFTA_LOOKUP_SET])] = true
		case "objref":
			names[nlconn.Text(a.values[unix.NFTA_OBJREF_SET_NAME])] = true
		}
	})
	return errors.Join(err, nested)
}

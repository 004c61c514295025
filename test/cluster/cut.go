// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Cut cuts the network: from its return until mend's, no packet passes between nodes a and b,
// of their own or of their Pods, in either direction, of new connections or of old ones; both
// still reach everything else. If b is nil, nothing passes between a and anything outside it.
//
// Several cuts can be in force at once, also of the same nodes; each needs its own mend. A cut
// outlasts a reboot of its nodes, and ends with Stop. mend may be called again after an error,
// and not after a success.
//
// It is made in the switch: what the nodes themselves have of rules, routes and links does not
// change.
func (c *Cluster) Cut(ctx context.Context, a, b *Node) (mend func(context.Context) error, err error) {
	c.mu.Lock()
	c.cuts++
	// A cluster can have been loaded by several processes.
	table := fmt.Sprintf("cut-%d-%d", os.Getpid(), c.cuts)
	c.mu.Unlock()
	if err := c.nft(ctx, cutRules(table, a, b)); err != nil {
		// ctx may have ended the command after its work was done.
		_ = c.nft(context.WithoutCancel(ctx), []string{"delete table bridge " + table})
		return nil, fmt.Errorf("cut the network: %w", err)
	}
	return func(ctx context.Context) error {
		if err := c.nft(ctx, []string{"delete table bridge " + table}); err != nil {
			return fmt.Errorf("mend the network: %w", err)
		}
		return nil
	}, nil
}

// cutRules returns the nftables commands that make a table of the bridge family which drops
// what goes between the ports of two nodes, or through the one if b is nil. Ports are called
// as their nodes.
func cutRules(table string, a, b *Node) []string {
	chain := "bridge " + table + " forward"
	rules := []string{
		"add table bridge " + table,
		"add chain " + chain + " { type filter hook forward priority 0 ; }",
	}
	if b == nil {
		return append(rules,
			fmt.Sprintf("add rule %s iifname %q drop", chain, a.Name),
			fmt.Sprintf("add rule %s oifname %q drop", chain, a.Name))
	}
	return append(rules,
		fmt.Sprintf("add rule %s iifname %q oifname %q drop", chain, a.Name, b.Name),
		fmt.Sprintf("add rule %s iifname %q oifname %q drop", chain, b.Name, a.Name))
}

// nft runs commands of the nft tool in the switch, all or none of them.
func (c *Cluster) nft(ctx context.Context, commands []string) error {
	cmd := exec.CommandContext(ctx, "nsenter", "--net="+netnsPath(c.network().switchNS()), "--", "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft %q: %w: %s", commands, err, output)
	}
	return nil
}

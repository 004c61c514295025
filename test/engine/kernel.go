// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/policygate/policygate/test/engine/rules"
)

// Mode is the variant of iptables.
type Mode string

// The variants.
const (
	NFT    Mode = "nft"
	Legacy Mode = "legacy"
)

// ParseMode reads a mode.
func ParseMode(text string) (Mode, error) {
	switch m := Mode(text); m {
	case NFT, Legacy:
		return m, nil
	}
	return "", fmt.Errorf("mode %q, want nft or legacy", text)
}

// Tools is the Kernel that runs the iptables and ipset binaries of the host,
// in the network namespace of the thread that calls it. They honour
// XTABLES_LOCKFILE.
type Tools struct {
	Mode Mode
}

var _ Kernel = Tools{}

// Apply implements Kernel.
func (t Tools) Apply(ctx context.Context, program rules.Program, between func() error) error {
	saved := make([]string, len(program.Tables))
	for i, table := range program.Tables {
		text, err := t.save(ctx, table.Family)
		if err != nil {
			return err
		}
		saved[i] = text
	}
	for _, table := range program.Tables {
		if _, err := run(ctx, table.SetRestore(), "ipset", "restore", "-exist"); err != nil {
			return fmt.Errorf("%s sets: %w", table.Family, err)
		}
	}
	if err := between(); err != nil {
		return err
	}
	for i, table := range program.Tables {
		if err := t.restore(ctx, table, saved[i]); err != nil {
			return err
		}
	}
	for _, table := range program.Tables {
		if err := destroyStale(ctx, table); err != nil {
			return err
		}
	}
	return nil
}

// Remove implements Kernel.
func (t Tools) Remove(ctx context.Context, family rules.Family) error {
	saved, err := t.save(ctx, family)
	if err != nil {
		return err
	}
	nothing := rules.Table{Family: family}
	if saved != "" {
		if err := t.restore(ctx, nothing, saved); err != nil {
			return err
		}
	}
	return destroyStale(ctx, nothing)
}

func (t Tools) save(ctx context.Context, family rules.Family) (string, error) {
	saved, err := run(ctx, "", t.command(family, "save"), "-t", "filter")
	if err != nil {
		return "", fmt.Errorf("%s rules: %w", family, err)
	}
	return saved, nil
}

func (t Tools) restore(ctx context.Context, table rules.Table, saved string) error {
	text, err := table.FilterRestore(saved)
	if err != nil {
		return fmt.Errorf("%s rules: %w", table.Family, err)
	}
	if _, err := run(ctx, text, t.command(table.Family, "restore"), "--wait", "-T", "filter"); err != nil {
		return fmt.Errorf("%s rules: %w", table.Family, err)
	}
	return nil
}

func (t Tools) command(family rules.Family, action string) string {
	name := "iptables"
	if family == rules.IPv6 {
		name = "ip6tables"
	}
	return name + "-" + string(t.Mode) + "-" + action
}

// destroyStale destroys the engine's sets of a family that the table does not
// have. One that is still in use stays until the next sync, as in the
// original.
func destroyStale(ctx context.Context, table rules.Table) error {
	names, err := run(ctx, "", "ipset", "list", "-name")
	if err != nil {
		return fmt.Errorf("list sets: %w", err)
	}
	wanted := map[string]bool{}
	for _, s := range table.Sets {
		wanted[s.Name] = true
	}
	for name := range strings.Lines(names) {
		name = strings.TrimSpace(name)
		if !rules.OwnsSet(table.Family, name) || wanted[name] {
			continue
		}
		if _, err := run(ctx, "", "ipset", "destroy", name); err != nil && !strings.Contains(err.Error(), "in use by a kernel component") {
			return fmt.Errorf("destroy set: %w", err)
		}
	}
	return nil
}

// run runs a tool to its end. The error holds what it wrote to stderr.
func run(ctx context.Context, input, name string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, name, args...)
	command.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

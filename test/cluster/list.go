// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"path/filepath"
)

// Summary is what List tells of a cluster.
type Summary struct {
	Name  string
	Dir   string
	Nodes int
	Slot  int
	// Condition is "kept", "owned" by the process that started it, or "leftover" of one that
	// has ended, which the next Start with this Dir removes; and, in brackets, the names of
	// processes that have ended.
	Condition string
}

// List returns the clusters of this machine.
func List() ([]Summary, error) {
	all, err := readRegistry()
	if err != nil {
		return nil, fmt.Errorf("list clusters: %w", err)
	}
	var summaries []Summary
	for _, s := range all {
		condition := "owned"
		switch {
		case s.Options.Keep:
			condition = "kept"
		case s.leftover():
			condition = "leftover"
		}
		var ended []string
		for name, identity := range s.Processes {
			if !identity.alive() {
				ended = append(ended, name)
			}
		}
		if len(ended) > 0 {
			condition += fmt.Sprintf(" %v", ended)
		}
		summaries = append(summaries, Summary{
			Name: s.Options.Name, Dir: s.Options.Dir, Nodes: s.Options.Nodes, Slot: s.Slot, Condition: condition,
		})
	}
	return summaries, nil
}

// Remove is Stop for a cluster that another process started, even if Load fails because part
// of it is gone. Name and dir are as for Load.
func Remove(ctx context.Context, name, dir string) error {
	o, err := Options{Name: name, Dir: dir}.withDefaults()
	if err != nil {
		return err
	}
	s, err := lookup(o.Name, o.Dir)
	if err != nil {
		return fmt.Errorf("remove cluster: %w", err)
	}
	c, err := newCluster(s)
	if err != nil {
		return fmt.Errorf("remove cluster: %w", err)
	}
	return c.Stop(ctx)
}

// DefaultBuildDir returns where Build puts its files by convention: build/kube at the root of
// the repository, which version control ignores.
func DefaultBuildDir(ctx context.Context) (string, error) {
	dir, err := moduleDir(ctx)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "..", "..", "build", "kube"), nil
}

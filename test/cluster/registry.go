// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// registryDir holds one file per cluster of this machine. Below /run, a reboot empties it at
// the moment at which it ends all that the files describe.
const registryDir = "/run/policygate-cluster"

// errNotRegistered is the error for a cluster that the registry does not have.
var errNotRegistered = errors.New("no such cluster")

// state is what the registry records of a cluster: what another process needs in order to
// attach to it or to remove it.
type state struct {
	Options Options
	Slot    int
	// Owner is the process that started the cluster, and whose end makes it a leftover
	// unless Options.Keep is set.
	Owner identity
	// Processes is the cluster's own processes by name.
	Processes map[string]identity
}

// leftover says whether nobody is there any more to stop the cluster.
func (s state) leftover() bool { return !s.Options.Keep && !s.Owner.alive() }

// dir returns the directory of the cluster's files.
func (s state) dir() string { return filepath.Join(s.Options.Dir, s.Options.Name) }

// plan returns the cluster's addresses.
func (s state) plan() Plan { return Plan{Slot: s.Slot, DualStack: s.Options.DualStack} }

// path returns the path of the state's file in the registry.
func (s state) path() string { return filepath.Join(registryDir, s.Options.Name+".json") }

// save writes the state to the registry, in one step for readers.
func (s state) save() error {
	content, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return fmt.Errorf("record cluster: %w", err)
	}
	temporary := s.path() + ".new"
	if err := os.WriteFile(temporary, content, 0o600); err != nil {
		return fmt.Errorf("record cluster: %w", err)
	}
	if err := os.Rename(temporary, s.path()); err != nil {
		return fmt.Errorf("record cluster: %w", err)
	}
	return nil
}

// claim enters s, which has no slot yet, with the lowest slot that no other cluster has and
// that usable accepts.
func claim(s state, usable func(Plan) error) (state, error) {
	unlock, err := lockRegistry()
	if err != nil {
		return s, err
	}
	defer unlock()
	others, err := readRegistry()
	if err != nil {
		return s, err
	}
	taken := map[int]bool{}
	for _, other := range others {
		if other.Options.Name == s.Options.Name {
			return s, fmt.Errorf("claim a slot: a cluster %q runs already, started by process %d", s.Options.Name, other.Owner.PID)
		}
		taken[other.Slot] = true
	}
	refused := errors.New("all are taken")
	for s.Slot = range maxSlots {
		if taken[s.Slot] {
			continue
		}
		if err := usable(s.plan()); err != nil {
			refused = err
			continue
		}
		return s, s.save()
	}
	return s, fmt.Errorf("claim a slot: %w", refused)
}

// release removes the cluster from the registry.
func release(s state) error {
	unlock, err := lockRegistry()
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.Remove(s.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release slot: %w", err)
	}
	_ = os.Remove(registryDir) // if this was the last cluster; not empty otherwise
	return nil
}

// lookup returns the state of the cluster with the given name and directory. The error is
// errNotRegistered if there is none.
func lookup(name, dir string) (state, error) {
	all, err := readRegistry()
	if err != nil {
		return state{}, err
	}
	for _, s := range all {
		if s.Options.Name == name && s.Options.Dir == dir {
			return s, nil
		}
	}
	return state{}, fmt.Errorf("%w: %q in %s", errNotRegistered, name, dir)
}

// readRegistry returns all clusters of the machine.
func readRegistry() ([]state, error) {
	entries, err := os.ReadDir(registryDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read registry: %w", err)
	}
	var all []state
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".json") {
			continue
		}
		path := filepath.Join(registryDir, entry.Name())
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // stopped meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read registry: %w", err)
		}
		var s state
		if err := json.Unmarshal(content, &s); err != nil {
			return nil, fmt.Errorf("read registry: %s: %w", path, err)
		}
		all = append(all, s)
	}
	return all, nil
}

// lockRegistry keeps other processes from claiming and releasing slots until unlock is
// called. The lock is on the directory itself, so that no lock file is left behind.
func lockRegistry() (unlock func(), err error) {
	for {
		if err := os.MkdirAll(registryDir, 0o755); err != nil {
			return nil, fmt.Errorf("lock registry: %w", err)
		}
		d, err := os.Open(registryDir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed between the two calls
		}
		if err != nil {
			return nil, fmt.Errorf("lock registry: %w", err)
		}
		if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
			d.Close()
			return nil, fmt.Errorf("lock registry: %w", err)
		}
		// The last cluster to stop may have removed the directory that this one waited for.
		held, err1 := d.Stat()
		present, err2 := os.Stat(registryDir)
		if err1 == nil && err2 == nil && os.SameFile(held, present) {
			return func() { d.Close() }, nil
		}
		d.Close()
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// moment finds the moment between an engine's sets and its rules, from the tools
// that it runs.
type moment struct {
	sets bool // they were being written at the last look
}

// between says whether the moment is now, given the commands of the engine's
// children, each with its arguments. An engine that writes both in one
// transaction of nft has no such moment: it is the transaction's then.
func (m *moment) between(commands [][]string) bool {
	sets := slices.ContainsFunc(commands, func(argv []string) bool { return runs(argv, "ipset", "restore") })
	if m.sets && !sets {
		return true
	}
	m.sets = sets
	return slices.ContainsFunc(commands, func(argv []string) bool { return runs(argv, "nft", "-f") })
}

// runs says whether a command is the named tool with that argument.
func runs(argv []string, tool, argument string) bool {
	return len(argv) > 0 && filepath.Base(argv[0]) == tool && slices.Contains(argv[1:], argument)
}

// children returns the commands of a process' children that run.
func children(pid int) ([][]string, error) {
	// Of each thread: a child is that of the thread that made it.
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	if len(lists) == 0 {
		return nil, fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	var all [][]string
	for _, list := range lists {
		content, err := os.ReadFile(list)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for child := range strings.FieldsSeq(string(content)) {
			line, err := os.ReadFile("/proc/" + child + "/cmdline")
			if gone(err) || err == nil && len(line) == 0 { // a zombie's is empty
				continue
			}
			if err != nil {
				return nil, err
			}
			all = append(all, strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00"))
		}
	}
	return all, nil
}

// gone says whether an error of reading /proc is that the process has ended.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupParent is the cgroup below which every cluster has one of its own.
const cgroupParent = "policygate"

// cgroups is the cgroup hierarchies of the machine. Membership of a cluster's cgroup is how a
// cluster knows its processes: it is inherited, also by what a container runtime detaches, and
// unlike a recorded process ID it cannot come to mean another process.
type cgroups struct {
	// tracking is the mount point of the hierarchy that processes are put into and found
	// by: the unified one, or with cgroup v1 that of a controller that containers join too.
	tracking string
	// all is the mount points of all hierarchies; container runtimes make cgroups in each.
	all []string
}

// findCgroups reads the machine's hierarchies from /proc/self/mountinfo.
func findCgroups() (cgroups, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return cgroups{}, fmt.Errorf("find cgroups: %w", err)
	}
	defer f.Close()
	var found cgroups
	byController := map[string]string{}
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		// 36 35 98:0 /root /mount/point options [tags] - type source super-options
		before, after, ok := strings.Cut(scanner.Text(), " - ")
		fields, super := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(super) < 3 {
			continue
		}
		point := fields[4]
		switch super[0] {
		case "cgroup2":
			found.all = append(found.all, point)
			byController["cgroup2:"+point] = point
		case "cgroup":
			found.all = append(found.all, point)
			for controller := range strings.SplitSeq(super[2], ",") {
				byController[controller] = point
			}
		}
	}
	if err := scanner.Err(); err != nil {
		return cgroups{}, fmt.Errorf("find cgroups: %w", err)
	}
	// In a hybrid layout containers are not moved in the unified hierarchy, hence the order.
	for _, key := range []string{"cgroup2:/sys/fs/cgroup", "pids", "freezer", "name=systemd"} {
		if point := byController[key]; point != "" {
			found.tracking = point
			return found, nil
		}
	}
	return cgroups{}, errors.New("find cgroups: neither cgroup v2 at /sys/fs/cgroup nor a v1 hierarchy with pids or freezer is mounted")
}

// create makes a cgroup in the tracking hierarchy and returns the path of the file that a
// process joins it by.
func (c cgroups) create(name string) (procs string, err error) {
	dir := filepath.Join(c.tracking, name)
	err = os.MkdirAll(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.MkdirAll(dir, 0o755) // the last cluster to stop just removed the parent
	}
	if err != nil {
		return "", fmt.Errorf("create cgroup: %w", err)
	}
	return filepath.Join(dir, "cgroup.procs"), nil
}

// createEverywhere makes a cgroup in every hierarchy.
func (c cgroups) createEverywhere(name string) error {
	for _, mount := range c.all {
		if err := os.MkdirAll(filepath.Join(mount, name), 0o755); err != nil {
			return fmt.Errorf("create cgroup: %w", err)
		}
	}
	return nil
}

// members returns the IDs of the processes in the cgroup name and below it; none if it does
// not exist.
func (c cgroups) members(name string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(filepath.Join(c.tracking, name), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if d.IsDir() || d.Name() != "cgroup.procs" {
			return nil
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		for field := range strings.FieldsSeq(string(content)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return fmt.Errorf("parse %s: %w", path, err)
			}
			if pid > 0 { // 0 is a process of another PID namespace
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list cgroup %s: %w", name, err)
	}
	return pids, nil
}

// killAll kills every process in the cgroup name and below it, and returns when there is
// none left.
func (c cgroups) killAll(ctx context.Context, name string) error {
	for {
		pids, err := c.members(name)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := c.kill(name, pid); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill processes of cgroup %s: %d left, %v: %w", name, len(pids), pids, ctx.Err())
		case <-time.After(10 * time.Millisecond): // a killed process needs about 1 ms to go
		}
	}
}

// kill kills one process if it is in the cgroup name or below it. Between a look at the
// cgroup and the signal the process can end and its ID be given away, so the signal goes to a
// descriptor, and the membership is checked once that is held.
func (c cgroups) kill(name string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	if !namesCgroup(string(content), name) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}

// namesCgroup says whether the content of a /proc/PID/cgroup names the cgroup name, or one
// below it, in any hierarchy.
func namesCgroup(content, name string) bool {
	for line := range strings.Lines(content) {
		if strings.Contains(strings.TrimRight(line, "\n")+"/", "/"+name+"/") {
			return true
		}
	}
	return false
}

// remove removes the cgroup name and all below it from every hierarchy. Processes must have
// been killed before.
func (c cgroups) remove(ctx context.Context, name string) error {
	for _, mount := range c.all {
		for {
			err := removeCgroupTree(filepath.Join(mount, name))
			if err == nil {
				break
			}
			// The kernel lets go of an ended process' cgroup a moment after it is gone.
			select {
			case <-ctx.Done():
				return fmt.Errorf("remove cgroup %s: %w", name, err)
			case <-time.After(10 * time.Millisecond):
			}
		}
		// The parent goes with the last in it; it is not empty otherwise.
		_ = os.Remove(filepath.Dir(filepath.Join(mount, name)))
	}
	return nil
}

// removeCgroupTree removes a cgroup directory and its subdirectories, the deepest first. It
// cannot be os.RemoveAll: a cgroup's files cannot be removed, and need not be.
func removeCgroupTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeCgroupTree(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

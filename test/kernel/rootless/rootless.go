// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rootless lets programs that need root in namespaces of their own be
// run by anybody: as root of a user namespace.
package rootless

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// environment tells a process that it is root of a user namespace that its
// parent made, and of nothing else.
const environment = "POLICYGATE_TEST_ROOTLESS"

// Root makes main run as root: it calls it if the process is root and else
// runs the program again, with the same arguments, as root of new user and
// mount namespaces. It returns main's exit code, 1 if there is no way to run
// it.
func Root(main func() int) int {
	code, err := root(main)
	if err != nil {
		fmt.Fprintf(os.Stderr, "this makes network namespaces: run it as root, or where users may make user namespaces "+
			"(user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns): %v\n", err)
		return 1
	}
	return code
}

func root(main func() int) (int, error) {
	switch {
	case os.Geteuid() != 0:
		return again()
	case os.Getenv(environment) != "":
		if err := privateMounts(); err != nil {
			return 1, err
		}
	}
	return main(), nil
}

// again runs this program again in new user and mount namespaces. The network
// namespaces are made afterwards, when the user's id is mapped: otherwise
// their /proc/net belongs to nobody, and the names of the legacy tables cannot
// be read.
func again() (int, error) {
	// The child is to end with this process, which means: with this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), environment+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// privateMounts gives the process a /run of its own, where iptables has its
// lock file.
func privateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	return nil
}

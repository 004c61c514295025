// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// rootlessEnv tells a test process that it is root of a user namespace that
// its parent made, and of nothing else.
const rootlessEnv = "POLICYGATE_TEST_ROOTLESS"

// TestMain runs the tests as root: as the machine's, or else as root of a user
// namespace. There is no third way, and no test is left out in either.
func TestMain(m *testing.M) {
	var err error
	switch {
	case os.Geteuid() != 0:
		var code int
		if code, err = runAsRootOfNamespace(); err == nil {
			os.Exit(code)
		}
	case rootless():
		err = privateMounts()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "kernel tests make network namespaces: run them as root, or where users may make user namespaces "+
			"(user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns): %v\n", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// rootless reports whether the tests run without the machine's root.
func rootless() bool { return os.Getenv(rootlessEnv) != "" }

// runAsRootOfNamespace runs this program again in new user and mount
// namespaces, and returns its exit code. The network namespaces are made
// afterwards, when the user's id is mapped: otherwise their /proc/net belongs
// to nobody, and the names of the legacy tables cannot be read.
func runAsRootOfNamespace() (code int, err error) {
	// The child is to end with this process, which means: with this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), rootlessEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	err = cmd.Run()
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

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtables

import (
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
)

// CheckArchitecture returns an error if this program cannot make sense of the
// kernel's structs: they are decoded as those of a 64-bit kernel, and to a
// 32-bit program even a 64-bit kernel shows some in its 32-bit layout, and
// others not.
func CheckArchitecture() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("read the kernel's architecture: %w", err)
	}
	return checkArchitecture(bits.UintSize, nlconn.Text(name.Machine[:]))
}

// checkArchitecture decides for a program of so many bits on a kernel for the
// machine.
func checkArchitecture(programBits int, machine string) error {
	if programBits == 64 {
		return nil
	}
	return fmt.Errorf("a %d-bit program cannot read the rules of the kernel for %s: want a 64-bit program on a 64-bit kernel", programBits, machine)
}

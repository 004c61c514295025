// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"
)

// Inside calls f on a thread that is in the network namespace at path, or in
// the caller's if path is empty. Sockets that f opens stay there. f must start
// no goroutine that opens others.
func Inside(path string, f func() error) error {
	if path == "" {
		return f()
	}
	result := make(chan error, 1)
	go func() { result <- inside(path, f) }()
	return <-result
}

func inside(path string, f func() error) (err error) {
	runtime.LockOSThread() // unlocked only when the thread is as it was
	before, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the present network namespace: %w", err)
	}
	defer unix.Close(before) //nolint:errcheck // read only
	there, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer unix.Close(there) //nolint:errcheck // read only
	if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	defer func() {
		if back := unix.Setns(before, unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, fmt.Errorf("leave network namespace %s: %w", path, back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// Addresses returns the addresses of the network namespace at path, those of
// the loopback interface left out.
func Addresses(path string) ([]netip.Addr, error) {
	var found []netip.Addr
	err := Inside(path, func() error {
		all, err := net.InterfaceAddrs()
		if err != nil {
			return err
		}
		for _, a := range all {
			prefix, err := netip.ParsePrefix(a.String())
			if err == nil && !prefix.Addr().IsLoopback() {
				found = append(found, prefix.Addr())
			}
		}
		return nil
	})
	return found, err
}

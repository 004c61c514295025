// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// holdBPF has an XDP program on an interface, as an eBPF dataplane has one, until
// ctx ends: the kernel takes it off with the last descriptor. The program leaves
// every packet to what comes next.
func holdBPF(ctx context.Context, name string) int {
	link, err := attachBPF(name)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer link.Close()
	if err := json.NewEncoder(os.Stdout).Encode(Event{OK: true, Addr: name}); err != nil {
		return 1
	}
	<-ctx.Done()
	return 0
}

func attachBPF(name string) (*os.File, error) {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	// struct bpf_insn of linux/bpf.h: r0 = XDP_PASS; exit.
	program := [2]struct {
		code, registers byte
		offset          int16
		immediate       int32
	}{{code: unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K, immediate: 2}, {code: unix.BPF_JMP | unix.BPF_EXIT}}
	licence := [...]byte{'G', 'P', 'L', 0}
	// The part of union bpf_attr for BPF_PROG_LOAD.
	load := struct {
		kind, count       uint32
		program, licence  uint64
		logLevel, logSize uint32
		log               uint64
		version, flags    uint32
	}{
		kind: unix.BPF_PROG_TYPE_XDP, count: uint32(len(program)),
		program: address(&program), licence: address(&licence),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	runtime.KeepAlive(&program)
	runtime.KeepAlive(&licence)
	if err != nil {
		return nil, fmt.Errorf("load the program: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // the link has it
	// The part for BPF_LINK_CREATE.
	create := struct{ program, target, attach, flags uint32 }{
		program: uint32(fd), target: uint32(iface.Index), attach: unix.BPF_XDP,
		flags: unix.XDP_FLAGS_SKB_MODE, // any interface can have it
	}
	link, err := bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&create), unsafe.Sizeof(create))
	if err != nil {
		return nil, fmt.Errorf("attach the program to %s: %w", name, err)
	}
	return os.NewFile(uintptr(link), "bpf link"), nil
}

func address[T any](of *T) uint64 {
	return uint64(uintptr(unsafe.Pointer(of)))
}

func bpf(command uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attr), size)
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}

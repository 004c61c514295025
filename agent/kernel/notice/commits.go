// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package notice

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Generations is a socket that receives one message for each commit to
// nf_tables, whatever its size: NFT_MSG_NEWGEN, which the kernel sends at the
// end of a commit. As long as it is open, the kernel also builds the messages
// of all that the commit changed, and drops them at the socket's filter.
type Generations struct {
	file *os.File
	raw  syscall.RawConn
}

// Join opens the socket in the network namespace of the calling thread, with a
// receive buffer of so many bytes; 0 is the system's default.
func Join(buffer int) (*Generations, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := join(fd, buffer); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	g := &Generations{file: os.NewFile(uintptr(fd), "nf_tables generations")}
	if g.raw, err = g.file.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for nf_tables: %w", err), g.file.Close())
	}
	return g, nil
}

func join(fd, buffer int) error {
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind netlink socket: %w", err)
	}
	if buffer > 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer); err != nil {
			return fmt.Errorf("set receive buffer: %w", err)
		}
	}
	// Before the group is joined: the messages of one large commit are more
	// than a buffer holds.
	filter := onlyNewGen()
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]} //nolint:gosec // Four instructions.
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("join the group of nf_tables: %w", err)
	}
	return nil
}

// onlyNewGen returns a classic BPF program that lets a netlink message pass if
// its type is NFT_MSG_NEWGEN. The type is at byte 4 (struct nlmsghdr), in host
// order, and the program loads it in network order.
func onlyNewGen() []unix.SockFilter {
	kind := binary.NativeEndian.AppendUint16(nil, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN)
	const everything = 0xffffffff
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: uint32(binary.BigEndian.Uint16(kind))},
		{Code: unix.BPF_RET | unix.BPF_K, K: everything},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}

// Wait returns Commits after a commit, or Lost if the kernel had more to tell
// than the buffer holds: the socket goes on in both cases. It fails after
// Close. Only one may wait at a time.
func (g *Generations) Wait() (string, error) {
	// The messages are not read, only noticed.
	var buf [1]byte
	what, problem := "", error(nil)
	err := g.raw.Read(func(fd uintptr) bool {
		for {
			_, _, err := unix.Recvfrom(int(fd), buf[:], unix.MSG_DONTWAIT)
			switch {
			case err == nil:
				if what == "" {
					what = Commits
				}
			case errors.Is(err, unix.ENOBUFS):
				what = Lost
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				return what != ""
			default:
				problem = err
				return true
			}
		}
	})
	if err == nil && problem != nil {
		err = fmt.Errorf("receive from nf_tables: %w", problem)
	}
	return what, err
}

// Close ends the socket and a Wait.
func (g *Generations) Close() error { return g.file.Close() }

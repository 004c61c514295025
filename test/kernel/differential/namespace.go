// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/api/flow"
)

// namespace is a network namespace without a name: it ends with the last
// thing that refers to it.
type namespace int

// newNamespace makes a namespace and leaves the calling thread, which has to be
// locked, in it. Who is not the machine's root cannot go back to its namespace.
func newNamespace() (namespace, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return -1, fmt.Errorf("make a network namespace: %w", err)
	}
	return here()
}

func here() (namespace, error) {
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the network namespace: %w", err)
	}
	return namespace(fd), nil
}

func (ns namespace) enter() error {
	if err := unix.Setns(int(ns), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	return nil
}

func (ns namespace) close() error { return unix.Close(int(ns)) }

// do calls f in the namespace and returns to where the thread was.
func (ns namespace) do(f func() error) (err error) {
	home, err := here()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, home.enter(), home.close()) }()
	if err := ns.enter(); err != nil {
		return err
	}
	return f()
}

// run runs a program in the namespace of the calling thread.
func run(ctx context.Context, env []string, input, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(cmd.Environ(), env...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s\n%s", name, strings.Join(args, " "), err, out, input)
	}
	return nil
}

// pin ties the calling thread, which has to be locked, and the programs that
// it starts to one processor, counted among those that it may use. What a
// thread sends from one processor to interfaces that are pairs within the
// machine is handled in the order in which it was sent.
func pin(number int) error {
	var may, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return fmt.Errorf("read the thread's processors: %w", err)
	}
	number %= may.Count()
	for cpu := range runtime.NumCPU() * 64 {
		if !may.IsSet(cpu) {
			continue
		}
		if number--; number < 0 {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("tie the thread to a processor: %w", err)
	}
	return nil
}

// socket is a file descriptor of a raw socket that does not block.
type socket int

// receiveBuffer is what the kernel grants without a privilege; it doubles it
// and counts about 800 bytes for a small packet.
const receiveBuffer = 212992

func newSocket(domain, protocol int) (socket, error) {
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
		return -1, errors.Join(fmt.Errorf("set a receive buffer: %w", err), unix.Close(fd))
	}
	return socket(fd), nil
}

// newTap opens a socket that sends and receives whole frames of an interface
// of the namespace that the thread is in.
func newTap(index int) (socket, error) {
	s, err := newSocket(unix.AF_PACKET, 0)
	if err != nil {
		return -1, err
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(int(s), &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		return -1, errors.Join(fmt.Errorf("bind to interface %d: %w", index, err), s.close())
	}
	return s, nil
}

func (s socket) close() error { return unix.Close(int(s)) }

// drain calls f with all that has been received. Outgoing frames are not.
func (s socket) drain(buf []byte, f func([]byte)) error {
	for {
		n, from, err := unix.Recvfrom(int(s), buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("receive: %w", err)
		}
		if link, ok := from.(*unix.SockaddrLinklayer); ok && link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		f(buf[:n])
	}
}

// ears are raw sockets, which get a copy of whatever is delivered locally,
// that is after the input hook. For IPv6 that is without the header.
type ear struct {
	socket
	protocol flow.Protocol
	ipv6     bool
}

func newEars() ([]ear, error) {
	var all []ear
	for _, protocol := range []flow.Protocol{flow.TCP, flow.UDP, flow.SCTP} {
		for _, domain := range []int{unix.AF_INET, unix.AF_INET6} {
			s, err := newSocket(domain, int(protocol))
			if err != nil {
				return all, err
			}
			all = append(all, ear{s, protocol, domain == unix.AF_INET6})
			if domain == unix.AF_INET6 {
				// The destination is told beside the packet.
				if err := unix.SetsockoptInt(int(s), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1); err != nil {
					return all, fmt.Errorf("ask for destinations: %w", err)
				}
			}
		}
	}
	return all, nil
}

// listen calls f with all that has been delivered.
func (e ear) listen(buf []byte, f func(arrival)) error {
	if !e.ipv6 {
		return e.drain(buf, func(b []byte) {
			if a, ok := parse(b); ok {
				f(a)
			}
		})
	}
	beside := make([]byte, 256)
	for {
		n, m, _, from, err := unix.Recvmsg(int(e.socket), buf, beside, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("receive: %w", err)
		}
		number, port, ok := parseTransport(e.protocol, buf[:n])
		sender, isIPv6 := from.(*unix.SockaddrInet6)
		messages, err := unix.ParseSocketControlMessage(beside[:m])
		if !ok || !isIPv6 || err != nil {
			continue
		}
		for _, message := range messages {
			if message.Header.Type == unix.IPV6_PKTINFO && len(message.Data) >= 16 {
				f(arrival{number, netip.AddrFrom16(sender.Addr), netip.AddrFrom16([16]byte(message.Data[:16])), port})
			}
		}
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Verdict is what became of a SYN.
type Verdict int

const (
	// Silent: nothing came back in time. A rule that drops does that, and one
	// that rejects: after six ICMP errors per destination the kernel says
	// nothing for a second.
	Silent Verdict = iota
	// Admitted: the destination itself answered, with a SYN-ACK or, if nobody
	// listens, with an RST.
	Admitted
	// Refused: somebody on the way answered with an ICMP error.
	Refused
)

// String returns the verdict's word.
func (v Verdict) String() string {
	switch v {
	case Admitted:
		return "let in"
	case Refused:
		return "refused"
	case Silent:
	}
	return "not answered"
}

// Answer is what came back for a SYN.
type Answer struct {
	Verdict Verdict
	// Detail names the packet that came back, empty if none did.
	Detail string
}

// Source ports of SYNs: outside of the range that the kernel takes ports from
// by itself, so that no connection of the Pod's own is met.
const (
	firstPort = 10000
	lastPort  = 29999
)

// Vantage is a network namespace and an address in it that SYNs are sent from.
// Its methods may be called concurrently.
type Vantage struct {
	local     netip.Addr
	tcp, icmp *net.IPConn

	mu      sync.Mutex // guards what follows
	next    uint16
	waiting map[connection]chan Answer
}

// Open returns the vantage of an IPv4 address in the network namespace at path;
// an empty path is the caller's own. It stays usable, if useless, when the
// namespace's interfaces are gone. Close it.
func Open(path string, local netip.Addr) (*Vantage, error) {
	if !local.Is4() {
		return nil, fmt.Errorf("open %s in network namespace %q: want an IPv4 address", local, path)
	}
	v := &Vantage{local: local, next: firstPort + uint16(rand.N(lastPort-firstPort)), waiting: map[connection]chan Answer{}}
	err := Inside(path, func() error {
		var err error
		if v.tcp, err = net.ListenIP("ip4:tcp", &net.IPAddr{IP: local.AsSlice()}); err != nil {
			return err
		}
		if err = own(v.tcp); err == nil {
			v.icmp, err = net.ListenIP("ip4:icmp", &net.IPAddr{IP: local.AsSlice()})
		}
		if err != nil {
			return errors.Join(err, v.tcp.Close())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open %s in network namespace %q: %w", local, path, err)
	}
	go v.read(v.tcp, answerOf)
	go v.read(v.icmp, refusalOf)
	return v, nil
}

// own leaves a socket nothing but segments to a vantage's ports: the caller's
// own namespace has other traffic.
func own(conn *net.IPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	// The offset of the TCP header to X, its destination port to A.
	program := []unix.SockFilter{
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 2},
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 2, K: firstPort},
		{Code: unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, Jt: 1, K: lastPort},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
	return errors.Join(err, set)
}

// Close ends what still waits with Silent.
func (v *Vantage) Close() {
	// Nothing is left to be written.
	_, _ = v.tcp.Close(), v.icmp.Close()
}

// Local returns the vantage's address.
func (v *Vantage) Local() netip.Addr { return v.local }

// Ask sends one SYN, from a port of its own, and waits that long for what
// comes back. An error says that it could not be sent, to no IPv4 address for
// one.
func (v *Vantage) Ask(ctx context.Context, to netip.AddrPort, wait time.Duration) (Answer, error) {
	if !to.Addr().Is4() {
		return Answer{}, fmt.Errorf("send a SYN from %s to %s: want an IPv4 address", v.local, to)
	}
	c, answers := v.expect(to)
	defer v.forget(c)
	segment := syn(netip.AddrPortFrom(v.local, c.port), to, rand.Uint32())
	if _, err := v.tcp.WriteToIP(segment, &net.IPAddr{IP: to.Addr().AsSlice()}); err != nil {
		return Answer{}, fmt.Errorf("send a SYN from %s to %s: %w", v.local, to, err)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case a := <-answers:
		return a, nil
	case <-timer.C:
		return Answer{}, nil
	case <-ctx.Done():
		return Answer{}, ctx.Err()
	}
}

func (v *Vantage) expect(to netip.AddrPort) (connection, <-chan Answer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.next++; v.next > lastPort {
		v.next = firstPort
	}
	c := connection{to: to, port: v.next}
	answers := make(chan Answer, 1)
	v.waiting[c] = answers
	return c, answers
}

func (v *Vantage) forget(c connection) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.waiting, c)
}

// read hands on what comes back until the socket is closed.
func (v *Vantage) read(conn *net.IPConn, parse func(netip.Addr, []byte) (connection, Answer, bool)) {
	buffer := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromIP(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// An error of the socket is one of a packet: the next read is new.
			continue
		}
		addr, _ := netip.AddrFromSlice(from.IP)
		c, answer, ok := parse(addr.Unmap(), buffer[:n])
		if !ok {
			continue
		}
		v.mu.Lock()
		waiting := v.waiting[c]
		v.mu.Unlock()
		select {
		case waiting <- answer:
		default: // nobody waits, or has an answer
		}
	}
}

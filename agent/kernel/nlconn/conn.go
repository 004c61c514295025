// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nlconn is one netlink socket: a request and its answers, and the
// attributes that both are made of. It knows no subsystem of the kernel.
package nlconn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// receiveSize holds the largest message that the kernel builds for a dump
// (NLMSG_GOODSIZE and, for nf_tables, up to 32 KiB of rule).
const receiveSize = 64 << 10

// ErrInterrupted means that the dumped objects changed during the dump.
var ErrInterrupted = errors.New("the dump was interrupted by a change")

// Conn is one netlink socket. It is safe for concurrent use: a request and its
// answer hold the lock.
type Conn struct {
	mu  sync.Mutex // guards the following fields
	fd  int
	seq uint32
	buf []byte
}

// Dial opens a socket in the network namespace of the calling thread.
func Dial(protocol int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("bind netlink socket: %w", err)
	}
	// The kernel answers within the call that asks; a second without an
	// answer means that there will be none.
	timeout := unix.Timeval{Sec: 1}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	return &Conn{fd: fd, buf: make([]byte, receiveSize)}, nil
}

// Close ends the socket. Requests fail from then on; a second Close does nothing.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	fd := c.fd
	c.fd = -1
	if fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// Message returns one netlink message.
func Message(kind, flags uint16, seq uint32, body []byte) []byte {
	b := make([]byte, 0, unix.NLMSG_HDRLEN+len(body))
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+len(body))) //nolint:gosec // Requests are a few hundred bytes.
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	return append(b, body...)
}

// Ask sends one request and calls each with the body of every answer, which
// is valid during the call only. A refusal is a unix.Errno. With NLM_F_DUMP
// in flags it reads the whole dump and returns ErrInterrupted if the objects
// changed meanwhile; else it reads up to the acknowledgement.
func (c *Conn) Ask(kind, flags uint16, body []byte, each func([]byte) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	flags |= unix.NLM_F_REQUEST
	if flags&unix.NLM_F_DUMP == 0 {
		flags |= unix.NLM_F_ACK
	}
	if err := unix.Sendto(c.fd, Message(kind, flags, c.seq, body), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send netlink request: %w", err)
	}
	var problem error
	for {
		done, err := c.receive(each, &problem)
		if err != nil {
			return err
		}
		if done {
			return problem
		}
	}
}

// receive reads one datagram and reports whether the answer is complete.
func (c *Conn) receive(each func([]byte) error, problem *error) (done bool, err error) {
	n, _, flags, _, err := unix.Recvmsg(c.fd, c.buf, nil, 0)
	if err != nil {
		if errors.Is(err, unix.EINTR) {
			return false, nil
		}
		return false, fmt.Errorf("receive netlink answer: %w", err)
	}
	if flags&unix.MSG_TRUNC != 0 {
		return false, fmt.Errorf("netlink answer is larger than %d bytes", receiveSize)
	}
	for data := c.buf[:n]; len(data) >= unix.NLMSG_HDRLEN; {
		length := int(binary.NativeEndian.Uint32(data))
		if length < unix.NLMSG_HDRLEN || length > len(data) {
			return false, fmt.Errorf("netlink message of %d bytes in an answer of %d", length, len(data))
		}
		kind, flags := binary.NativeEndian.Uint16(data[4:]), binary.NativeEndian.Uint16(data[6:])
		mine := binary.NativeEndian.Uint32(data[8:]) == c.seq
		body := data[unix.NLMSG_HDRLEN:length]
		data = data[min((length+3)&^3, len(data)):]
		if !mine {
			// A late answer to an earlier request.
			continue
		}
		if flags&unix.NLM_F_DUMP_INTR != 0 && *problem == nil {
			*problem = ErrInterrupted
		}
		switch kind {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if errno := int32(binary.NativeEndian.Uint32(body)); errno < 0 && *problem == nil { //nolint:gosec // The kernel puts a signed number there.
					*problem = unix.Errno(-errno)
				}
			}
			return true, nil
		default:
			if err := each(body); err != nil && *problem == nil {
				*problem = err
			}
		}
	}
	return false, nil
}

// Barrier sends messages that are not answered on success and returns the
// error that the kernel queued while it worked on them, if any.
func (c *Conn) Barrier(messages ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []byte
	for _, m := range messages {
		all = append(all, m...)
	}
	if err := unix.Sendto(c.fd, all, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send netlink batch: %w", err)
	}
	// The kernel handles a batch within sendto, so an error is here already.
	n, _, err := unix.Recvfrom(c.fd, c.buf, unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EAGAIN) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("receive netlink answer: %w", err)
	}
	if n >= unix.NLMSG_HDRLEN+4 && binary.NativeEndian.Uint16(c.buf[4:]) == unix.NLMSG_ERROR {
		if errno := int32(binary.NativeEndian.Uint32(c.buf[unix.NLMSG_HDRLEN:])); errno < 0 { //nolint:gosec // The kernel puts a signed number there.
			return unix.Errno(-errno)
		}
	}
	return nil
}

// NFGenMsg begins every nfnetlink message.
func NFGenMsg(family uint8, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
}

// NFGenMsgLen is the length of what NFGenMsg returns.
const NFGenMsgLen = 4

// Attribute appends one attribute with its padding.
func Attribute(b []byte, kind uint16, value []byte) []byte {
	length := unix.SizeofRtAttr + len(value)
	b = binary.NativeEndian.AppendUint16(b, uint16(length)) //nolint:gosec // Values are names and addresses.
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for length%4 != 0 {
		b = append(b, 0)
		length++
	}
	return b
}

// Attributes calls each with the number, without flags, and the value of
// every attribute in b. It returns an error if b is malformed.
func Attributes(b []byte, each func(kind uint16, value []byte)) error {
	for len(b) >= unix.SizeofRtAttr {
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofRtAttr || length > len(b) {
			return fmt.Errorf("netlink attribute of %d bytes in %d", length, len(b))
		}
		each(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofRtAttr:length])
		b = b[min((length+3)&^3, len(b)):]
	}
	return nil
}

// Text returns a NUL terminated value as a string.
func Text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// BE32 returns a big endian number, 0 if b is too short.
func BE32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

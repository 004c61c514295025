// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nlconn

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// inFlight is how many requests are sent at once: their answers have to fit
// into the socket's receive buffer, of 208 KiB by default, where each takes
// 1 to 5 KiB.
const inFlight = 32

// AskEach sends requests of one kind and calls each with the number of every
// request and its answer, in their order: the body, which is valid during the
// call only, or the refusal, a unix.Errno. It is for requests that are answered
// by exactly one message, and costs a third of asking one by one.
func (c *Conn) AskEach(kind uint16, requests [][]byte, each func(i int, body []byte, refusal error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for from := 0; from < len(requests); from += inFlight {
		some := requests[from:min(from+inFlight, len(requests))]
		var all []byte
		first := c.seq + 1
		for _, r := range some {
			c.seq++
			all = append(all, Message(kind, unix.NLM_F_REQUEST, c.seq, r)...)
			for len(all)%unix.NLMSG_ALIGNTO != 0 {
				all = append(all, 0)
			}
		}
		if err := unix.Sendto(c.fd, all, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return fmt.Errorf("send netlink requests: %w", err)
		}
		for i := range some {
			body, refusal, err := c.answer(first + uint32(i))
			if err != nil {
				return err
			}
			each(from+i, body, refusal)
		}
	}
	return nil
}

// answer receives the one message that answers the request of that number.
func (c *Conn) answer(seq uint32) (body []byte, refusal, err error) {
	for {
		n, err := unix.Read(c.fd, c.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("receive netlink answer: %w", err)
		}
		body, refusal, mine, err := oneAnswer(c.buf[:n], seq)
		if err != nil || mine {
			return body, refusal, err
		}
	}
}

// oneAnswer reads a datagram of one message. mine is false for a late answer to
// another request.
func oneAnswer(data []byte, seq uint32) (body []byte, refusal error, mine bool, err error) {
	if len(data) < unix.NLMSG_HDRLEN {
		return nil, nil, false, fmt.Errorf("netlink answer of %d bytes", len(data))
	}
	length := int(binary.NativeEndian.Uint32(data))
	if length < unix.NLMSG_HDRLEN || length > len(data) {
		return nil, nil, false, fmt.Errorf("netlink message of %d bytes in an answer of %d", length, len(data))
	}
	if binary.NativeEndian.Uint32(data[8:]) != seq {
		return nil, nil, false, nil
	}
	body = data[unix.NLMSG_HDRLEN:length]
	if binary.NativeEndian.Uint16(data[4:]) != unix.NLMSG_ERROR {
		return body, nil, true, nil
	}
	if len(body) < 4 {
		return nil, nil, false, fmt.Errorf("netlink error of %d bytes", len(body))
	}
	errno := int32(binary.NativeEndian.Uint32(body)) //nolint:gosec // The kernel puts a signed number there.
	if errno >= 0 {
		return nil, nil, false, errors.New("netlink acknowledgement in place of an answer")
	}
	return nil, unix.Errno(-errno), true, nil
}

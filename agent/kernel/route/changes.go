// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package route

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// changes tells whether anything has changed that the topology is made of. The
// kernel queues its messages within the call that makes a change, so a change
// that was over before drain began is never missed.
type changes struct {
	fd  int
	buf []byte
}

// groups are the multicast groups of whatever a route or an address type can
// depend on. The netconf groups tell of forwarding and rp_filter.
var groups = [...]int{
	unix.RTNLGRP_LINK,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
	unix.RTNLGRP_NEXTHOP,
}

// subscribe begins to collect messages, in the network namespace of the
// calling thread.
func subscribe() (*changes, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// The messages are not read, only noticed.
	c := &changes{fd: fd, buf: make([]byte, 1)}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind netlink socket: %w", err), c.close())
	}
	for _, group := range groups {
		err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
		if errors.Is(err, unix.EINVAL) && group == unix.RTNLGRP_NEXTHOP {
			// Before Linux 5.3 there are no nexthop objects.
			continue
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("join group %d of route netlink: %w", group, err), c.close())
		}
	}
	return c, nil
}

// mostMessages bounds one drain. The default buffer holds fewer.
const mostMessages = 10_000

// drain takes all messages and reports whether there were any, or any were
// lost.
func (c *changes) drain() (bool, error) {
	for n := range mostMessages {
		_, _, err := unix.Recvfrom(c.fd, c.buf, unix.MSG_DONTWAIT)
		switch {
		case err == nil, errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EINTR):
			// ENOBUFS: there were more than the buffer holds.
		case errors.Is(err, unix.EAGAIN):
			return n > 0, nil
		default:
			return true, fmt.Errorf("receive changes of the topology: %w", err)
		}
	}
	return true, nil
}

// close ends the subscription. It is not called twice.
func (c *changes) close() error { return unix.Close(c.fd) }

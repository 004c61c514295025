// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/kernel/procfile"
)

// attempts bounds how often a read is begun again because something changed
// under it. Interfaces come and go with Pods, and a read takes a millisecond.
const attempts = 5

// ErrUnsettled means that the topology changed during every attempt.
var ErrUnsettled = errors.New("interfaces and routes kept changing while they were read")

// Reader reads the node's topology, anew only after something has changed. It
// is safe for concurrent use.
type Reader struct {
	conn   *nlconn.Conn
	handle *netlink.Handle
	files  *files

	mu      sync.Mutex // guards the following fields
	changes *changes
	// known is what was read last, nil if that may have changed.
	known *known
}

// New opens the topology of the network namespace of the calling thread. Close
// frees it.
func New(proc string) (*Reader, error) {
	conn, err := nlconn.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open route netlink: %w", err), conn.Close())
	}
	changes, err := subscribe()
	if err != nil {
		handle.Close()
		return nil, errors.Join(err, conn.Close())
	}
	return &Reader{conn: conn, handle: handle, files: newFiles(proc), changes: changes}, nil
}

// files are what is read in each look that needs it.
type files struct {
	// virtual lists the virtual servers (IPVS).
	virtual *procfile.File
	// callIPTables and callIP6Tables are the switches of all bridges.
	callIPTables, callIP6Tables *procfile.File
}

// newFiles returns the files, of which ip_vs is in the directory proc.
func newFiles(proc string) *files {
	return &files{
		virtual:       procfile.New(filepath.Join(proc, "ip_vs")),
		callIPTables:  procfile.New("/proc/sys/net/bridge/bridge-nf-call-iptables"),
		callIP6Tables: procfile.New("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
	}
}

func (f *files) close() error {
	return errors.Join(f.virtual.Close(), f.callIPTables.Close(), f.callIP6Tables.Close())
}

// Close frees the sockets.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handle.Close()
	return errors.Join(r.conn.Close(), r.changes.close(), r.files.close())
}

// Read returns the topology as it is now, whole or an error.
func (r *Reader) Read() (*Topology, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for range attempts {
		changed, err := r.changes.drain()
		if err != nil {
			return nil, err
		}
		if r.known != nil && !changed {
			return &Topology{known: r.known, conn: r.conn, files: r.files}, nil
		}
		r.known = nil
		if err := r.settle(); err != nil {
			return nil, err
		}
		// What was queued by changes that are over by now.
		if _, err := r.changes.drain(); err != nil {
			return nil, err
		}
		if r.known, err = r.read(); err != nil {
			return nil, err
		}
		// The next turn returns it, unless something changed meanwhile.
	}
	r.known = nil
	return nil, ErrUnsettled
}

// Holds reports whether nothing has changed since the last Read, so that it
// and the routes that were asked for since are of one moment.
func (r *Reader) Holds() (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed, err := r.changes.drain()
	if err != nil || changed {
		r.known = nil
	}
	return r.known != nil, err
}

// Forget makes the next Read read everything, for what changes without a
// message.
func (r *Reader) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known = nil
}

// settle waits until the change that is being made, if any, is over.
//
// The kernel tells of some changes before it makes them: of an interface that
// goes down before its routes are taken out (__dev_notify_flags), of an IPv4
// route before it is unlinked (fib_table_delete). It holds the rtnl mutex all
// that time, and so does the question for one interface.
func (r *Reader) settle() error {
	request := make([]byte, unix.SizeofIfInfomsg)
	// The loopback interface of every namespace has index 1 (LOOPBACK_IFINDEX).
	binary.NativeEndian.PutUint32(request[4:], 1)
	if err := r.conn.Ask(unix.RTM_GETLINK, 0, request, func([]byte) error { return nil }); err != nil {
		return fmt.Errorf("wait for a change of the interfaces: %w", err)
	}
	return nil
}

func (r *Reader) read() (*known, error) {
	links, err := readLinks(r.conn)
	if err != nil {
		return nil, err
	}
	addresses, err := readAddresses(r.handle)
	if err != nil {
		return nil, err
	}
	rules, err := readRules(r.conn)
	if err != nil {
		return nil, err
	}
	return &known{links: links, addresses: addresses, rules: rules, routes: map[routeKey]routeAnswer{}, ways: map[wayKey]ways{}}, nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package route

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/trace"
)

// Unsupported returns why the node's dataplane cannot be seen, or "" if
// nothing was found that decides before or beside netfilter: XDP programs,
// BPF programs of tc and tcx, netkit devices and the interfaces of Cilium and
// of Calico's eBPF mode. It cannot find BPF programs that hang elsewhere (at
// sockets, cgroups, netfilter links). Not to be able to look is a reason, too.
func (r *Reader) Unsupported(ctx context.Context) string {
	links, err := readLinks(r.conn)
	if err != nil {
		return trace.Clean(err.Error())
	}
	for _, index := range slices.Sorted(maps.Keys(links)) {
		if ctx.Err() != nil {
			return trace.Clean(ctx.Err().Error())
		}
		l := links[index]
		if why := l.beyond(); why != "" {
			return trace.Clean(why)
		}
		why, err := r.classifier(l)
		if err != nil {
			return trace.Clean(err.Error())
		}
		if why != "" {
			return trace.Clean(why)
		}
	}
	return ""
}

// beyond returns what an interface by itself says of a dataplane that is not
// netfilter's, or "".
func (l link) beyond() string {
	switch {
	case l.xdp:
		return "an XDP program decides on interface " + l.name
	case l.kind == "netkit":
		return "interface " + l.name + " is a netkit, where BPF programs decide"
	case l.name == "cilium_host" || l.name == "cilium_net":
		return "interface " + l.name + " is Cilium's, whose BPF programs decide"
	case l.name == "bpfin.cali" || l.name == "bpfout.cali":
		return "interface " + l.name + " is of Calico's eBPF mode, whose BPF programs decide"
	}
	return ""
}

// classifier returns which BPF program of tc or tcx decides on an interface,
// or "".
func (r *Reader) classifier(l link) (string, error) {
	for _, attach := range []uint32{unix.BPF_TCX_INGRESS, unix.BPF_TCX_EGRESS} {
		if tcxPrograms(l.index, attach) > 0 {
			return "a tcx program decides on interface " + l.name, nil
		}
	}
	device := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: l.index, Name: l.name}}
	qdiscs, err := r.handle.QdiscList(device)
	if err != nil {
		return "", fmt.Errorf("list qdiscs of interface %s: %w", l.name, err)
	}
	for _, q := range qdiscs {
		if kind := q.Type(); kind != "clsact" && kind != "ingress" {
			continue
		}
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			filters, err := r.handle.FilterList(device, parent)
			if err != nil {
				return "", fmt.Errorf("list filters of interface %s: %w", l.name, err)
			}
			for _, f := range filters {
				if strings.HasPrefix(f.Type(), "bpf") {
					return "a tc BPF program decides on interface " + l.name, nil
				}
			}
		}
	}
	return "", nil
}

// tcxPrograms returns how many programs hang at an interface, 0 also where the
// kernel has no tcx (before 6.6) or nobody tells: a runtime's default seccomp
// profile keeps bpf(2) from containers without CAP_BPF or CAP_SYS_ADMIN, the
// shipped agent's among them, and tcx shows nowhere else.
func tcxPrograms(index int, attach uint32) uint32 {
	// The query part of union bpf_attr.
	query := struct {
		target, attach, queryFlags, attachFlags uint32
		programs                                uint64
		count, pad                              uint32
		flags, linkIDs, linkFlags               uint64
		revision                                uint64
	}{target: uint32(index), attach: attach} //nolint:gosec // Interface indices are positive.
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(&query)), unsafe.Sizeof(query)) //nolint:gosec // The kernel fills the structure.
	if errno != 0 {
		return 0
	}
	return query.count
}

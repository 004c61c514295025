// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kernel_test holds agent/kernel and agent/trace against the kernel:
// rules are loaded into a network namespace, packets are sent through it, and
// what arrives must be what the verdicts say. So are internal/apiclient's
// connections, which meet rules that come late.
//
// The namespaces have no names and end with the test's process, so nothing can
// be left behind. The tests need root, or the right to be root of a user
// namespace: see TestMain.
package kernel_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/api/flow"
)

// namespace is a network namespace without a name.
type namespace struct {
	fd int
	// raw sockets, which get a copy of whatever is delivered locally, that is
	// after the input hook.
	raw []rawSocket
}

type rawSocket struct {
	fd    int
	proto flow.Protocol
	ipv4  bool
}

// newNamespace makes a namespace and the sockets that listen in it.
func newNamespace(t testing.TB) *namespace {
	t.Helper()
	ns := &namespace{}
	made := make(chan error)
	go func() {
		// The thread is never unlocked: it ends with this goroutine.
		runtime.LockOSThread()
		made <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			// Link-local addresses, too, have to be usable at once.
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o600); err != nil {
				return err
			}
			var err error
			if ns.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
				return err
			}
			for _, proto := range []flow.Protocol{flow.TCP, flow.UDP} {
				for _, domain := range []int{unix.AF_INET, unix.AF_INET6} {
					fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(proto))
					if err != nil {
						return err
					}
					ns.raw = append(ns.raw, rawSocket{fd, proto, domain == unix.AF_INET})
				}
			}
			return nil
		}()
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range ns.raw {
			_ = unix.Close(s.fd)
		}
		_ = unix.Close(ns.fd)
	})
	return ns
}

// do calls f on a thread that is in the namespace.
func (ns *namespace) do(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(ns.fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// begin calls f on a thread of its own that is in the namespace, and does not
// wait for it.
func (ns *namespace) begin(t *testing.T, f func()) {
	go func() {
		// The thread is never unlocked: it ends with this goroutine.
		runtime.LockOSThread()
		if err := unix.Setns(ns.fd, unix.CLONE_NEWNET); err != nil {
			t.Errorf("enter the namespace: %v", err)
		}
		f()
	}()
}

// run runs a program in the namespace with the given input.
func (ns *namespace) run(t testing.TB, input, name string, args ...string) {
	t.Helper()
	ns.do(t, func() error {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Stdin = strings.NewReader(input)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w\n%s\n%s", name, strings.Join(args, " "), err, out, input)
		}
		return nil
	})
}

func (ns *namespace) sysctl(t testing.TB, key, value string) {
	t.Helper()
	ns.do(t, func() error {
		return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o600)
	})
}

// rig is a node with pods behind one bridge, and everything else behind its
// uplink.
type rig struct {
	node *namespace
	// at is where an address lives.
	at map[netip.Addr]*namespace
	// all namespaces, the node first.
	all []*namespace
	// port is the last source port: each probe of a rig has its own, so that
	// none is a connection that the kernel still remembers.
	port uint16
}

// The node's addresses and those of what is behind its uplink.
var (
	nodeAddresses = []string{"192.168.100.10/24", "fd00:192:168:100::10/64"}
	peerAddresses = []string{"192.168.100.11/24", "fd00:192:168:100::11/64"}
	bridgeGateway = []string{"10.244.1.1/24", "fd00:10:244:1::1/64"}
)

// Neighbours are known beforehand and for ever, so that no rule can be in the
// way of their discovery.
const (
	bridgeMAC  = "02:00:00:00:01:01"
	uplinkMAC  = "02:00:00:00:01:02"
	outsideMAC = "02:00:00:00:01:03"
)

func podMAC(i int) string { return fmt.Sprintf("02:00:00:00:00:%02x", i+1) }

func neighbour(addrs [2]string, mac, dev string) string {
	return "neigh add " + addrs[0] + " lladdr " + mac + " dev " + dev + "\nneigh add " + addrs[1] + " lladdr " + mac + " dev " + dev + "\n"
}

// others returns the neighbours of the pod number i on the bridge.
func others(pods [][2]string, i int) string {
	var b strings.Builder
	for j, pod := range pods {
		if i != j {
			b.WriteString(neighbour(pod, podMAC(j), "eth0"))
		}
	}
	return b.String()
}

// newRig builds the rig: a pod per entry of pods, each with an IPv4 and an
// IPv6 address, and all remote addresses in one namespace.
func newRig(t testing.TB, pods [][2]string, remote []string) *rig {
	t.Helper()
	// Legacy tools share a lock file with the host's unless told otherwise.
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "xtables.lock"))
	r := &rig{node: newNamespace(t), at: map[netip.Addr]*namespace{}, port: 10000}
	outside := newNamespace(t)
	r.all = append(r.all, r.node, outside)
	r.node.run(t, `link set lo up
link add kube-bridge address `+bridgeMAC+` type bridge
link set kube-bridge up
addr add `+bridgeGateway[0]+` dev kube-bridge
addr add `+bridgeGateway[1]+` dev kube-bridge nodad
`, "ip", "-batch", "-")
	r.plug(t, outside, "eth0", uplinkMAC, outsideMAC)
	r.node.run(t, `addr add `+nodeAddresses[0]+` dev eth0
addr add `+nodeAddresses[1]+` dev eth0 nodad
route add default via 192.168.100.11
route add default via fd00:192:168:100::11
route add 10.244.2.0/24 via 192.168.100.11
route add fd00:10:244:2::/64 via fd00:192:168:100::11
neigh add 192.168.100.11 lladdr `+outsideMAC+` dev eth0
neigh add fd00:192:168:100::11 lladdr `+outsideMAC+` dev eth0
`, "ip", "-batch", "-")
	var b strings.Builder
	b.WriteString("link set lo up\naddr add " + peerAddresses[0] + " dev eth0\naddr add " + peerAddresses[1] + " dev eth0 nodad\n" +
		"route add 10.244.1.0/24 via 192.168.100.10\nroute add fd00:10:244:1::/64 via fd00:192:168:100::10\n" +
		"neigh add 192.168.100.10 lladdr " + uplinkMAC + " dev eth0\nneigh add fd00:192:168:100::10 lladdr " + uplinkMAC + " dev eth0\n")
	for _, a := range remote {
		fmt.Fprintf(&b, "addr add %s dev lo\n", a)
		r.at[netip.MustParseAddr(a)] = outside
	}
	outside.run(t, b.String(), "ip", "-batch", "-")
	for _, a := range nodeAddresses {
		r.at[netip.MustParsePrefix(a).Addr()] = r.node
	}
	for i, pod := range pods {
		ns := newNamespace(t)
		r.all = append(r.all, ns)
		port := fmt.Sprintf("veth%d", i)
		r.plug(t, ns, port, "", podMAC(i))
		r.node.run(t, "link set "+port+" master kube-bridge\n"+neighbour(pod, podMAC(i), "kube-bridge"), "ip", "-batch", "-")
		ns.run(t, "link set lo up\naddr add "+pod[0]+"/24 dev eth0\naddr add "+pod[1]+"/64 dev eth0 nodad\n"+
			"route add default via 10.244.1.1\nroute add default via fd00:10:244:1::1\n"+
			neighbour([2]string{"10.244.1.1", "fd00:10:244:1::1"}, bridgeMAC, "eth0")+others(pods, i), "ip", "-batch", "-")
		r.at[netip.MustParseAddr(pod[0])], r.at[netip.MustParseAddr(pod[1])] = ns, ns
	}
	r.node.sysctl(t, "net/ipv4/ip_forward", "1")
	r.node.sysctl(t, "net/ipv6/conf/all/forwarding", "1")
	r.bridgeCalls(t, "1")
	return r
}

func (r *rig) bridgeCalls(t testing.TB, value string) {
	t.Helper()
	r.node.sysctl(t, "net/bridge/bridge-nf-call-iptables", value)
	r.node.sysctl(t, "net/bridge/bridge-nf-call-ip6tables", value)
}

// plug connects a namespace's eth0 with an interface of the node. An empty
// MAC is any.
func (r *rig) plug(t testing.TB, ns *namespace, name, mac, peerMAC string) {
	t.Helper()
	r.node.do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		attrs.HardwareAddr, _ = net.ParseMAC(mac)
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.fd)}
		veth.PeerHardwareAddr, _ = net.ParseMAC(peerMAC)
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add %s: %w", name, err)
		}
		return netlink.LinkSetUp(veth)
	})
	ns.run(t, "link set eth0 up\n", "ip", "-batch", "-")
}

// probe is a flow and the source port that it got.
type probe struct {
	flow flow.Flow
	port uint16
}

// arrival identifies a probe where it arrives.
type arrival struct {
	proto    flow.Protocol
	src      netip.Addr
	from, to uint16
}

// untilDrained is how many probes are sent until what arrived is read: few
// enough for the receive buffer that a user may have (net.core.rmem_default,
// about 160 packets), many enough to be quick.
const untilDrained = 50

// send sends the first packet of every flow and returns which arrived.
func (r *rig) send(t testing.TB, flows []flow.Flow) map[flow.Flow]bool {
	t.Helper()
	bySource := map[*namespace][]flow.Flow{}
	for _, f := range flows {
		ns := r.at[f.Src]
		if ns == nil || r.at[f.Dst] == nil {
			t.Fatalf("nobody has an address of %s", f)
		}
		bySource[ns] = append(bySource[ns], f)
	}
	r.drain()
	seen := map[arrival]bool{}
	collect := func() { maps.Copy(seen, r.drain()) }
	probes := make([]probe, 0, len(flows))
	// The sockets stay open until all have arrived: one that is closed would
	// not send again what waits in a queue.
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for ns, flows := range bySource {
		ns.do(t, func() error {
			for _, f := range flows {
				if r.port++; r.port == 0 {
					return errors.New("the rig has no more ports")
				}
				fd, err := dial(f, r.port)
				fds = append(fds, fd)
				if err != nil {
					return fmt.Errorf("send %s: %w", f, err)
				}
				probes = append(probes, probe{f, r.port})
				if len(probes)%untilDrained == 0 {
					collect()
				}
			}
			return nil
		})
	}
	// A packet crosses the rig within the system call that sends it, unless
	// it waits for a neighbour to be resolved.
	for deadline := time.Now().Add(80 * time.Millisecond); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		collect()
	}
	arrived := map[flow.Flow]bool{}
	for _, p := range probes {
		if seen[arrival{p.flow.Protocol, p.flow.Src, p.port, p.flow.Port}] {
			arrived[p.flow] = true
		}
	}
	return arrived
}

// settle waits until every flow arrives, as long as there are no rules: the
// kernel brings an interface's IPv6 up some time after its carrier.
func (r *rig) settle(t testing.TB, flows []flow.Flow) {
	t.Helper()
	missing := 0
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		arrived := r.send(t, flows)
		if missing = len(flows) - len(arrived); missing == 0 {
			return
		}
	}
	t.Fatalf("%d of %d flows do not arrive without any rule", missing, len(flows))
}

// dial sends a flow's first packet from a new socket and returns the socket,
// which is the caller's to close even with an error.
func dial(f flow.Flow, port uint16) (fd int, err error) {
	domain := unix.AF_INET
	if f.Src.Is6() {
		domain = unix.AF_INET6
	}
	kind := unix.SOCK_STREAM
	if f.Protocol == flow.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err = unix.Socket(domain, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, sockaddr(f.Src, port)); err != nil {
		return fd, fmt.Errorf("bind: %w", err)
	}
	// A refusal by the node's own output chains is an error here.
	_ = unix.Connect(fd, sockaddr(f.Dst, f.Port))
	if f.Protocol == flow.UDP {
		_, _ = unix.Write(fd, []byte("probe"))
	}
	return fd, nil
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
}

// drain reads what has arrived anywhere.
func (r *rig) drain() map[arrival]bool {
	seen := map[arrival]bool{}
	buf := make([]byte, 2048)
	for _, ns := range r.all {
		for _, s := range ns.raw {
			for {
				n, from, err := unix.Recvfrom(s.fd, buf, 0)
				if err != nil {
					break
				}
				data := buf[:n]
				var src netip.Addr
				switch a := from.(type) {
				case *unix.SockaddrInet4:
					// IPv4 comes with its header.
					src, data = netip.AddrFrom4(a.Addr), data[min(int(data[0]&15)*4, n):]
				case *unix.SockaddrInet6:
					src = netip.AddrFrom16(a.Addr)
				}
				if len(data) < 8 {
					continue
				}
				seen[arrival{s.proto, src, binary.BigEndian.Uint16(data), binary.BigEndian.Uint16(data[2:])}] = true
			}
		}
	}
	return seen
}

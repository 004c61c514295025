// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/api/flow"
)

// host is a far end: an interface without any addresses of its own, so that
// nothing behind it answers.
type host struct {
	// port is the node's interface that leads there.
	port string
	tap  socket
	// mac is the host's, gateway that of the interface to which it sends what
	// the node is to route.
	mac, gateway mac
	// onBridge: the port is one of the bridge's.
	onBridge bool
	// segment are hosts that reach each other over the bridge, "" for none.
	segment string
}

// place is where an address is: at a host or, if nil, on the node.
type place struct {
	*host
	// onward: other nodes are there, reached by another route than the
	// default one.
	onward bool
}

// The node's bridge.
const bridge = "kube-bridge"

// hosts are the far ends. Two subnets are behind the bridge; the two after
// them are routed to, each by its own interface; the last two are uplinks.
var hosts = []struct {
	port, segment string
	addresses     string
}{
	{"veth0", "a", "10.244.1.10 fd00:10:244:1::10"},
	{"veth1", "a", "10.244.1.20 fd00:10:244:1::20"},
	{"veth2", "a", "10.244.1.21 fd00:10:244:1::21"},
	{"veth3", "b", "10.244.3.10 fd00:10:244:3::10"},
	{"cali0", "", "10.244.4.10 fd00:10:244:4::10"},
	{"cali1", "", "10.244.4.20 fd00:10:244:4::20"},
	{"eth0", "", "10.244.2.10 10.244.2.20 198.51.100.7 203.0.113.5 fd00:10:244:2::10 fd00:10:244:2::20 2001:db8::7"},
	{"eth1", "", "172.16.5.5 fd00:172:16:5::5"},
}

// onward are the remote addresses that no default route leads to.
var onward = []string{"10.244.2.", "fd00:10:244:2::", "172.16.5.", "fd00:172:16:5::"}

// own are the node's addresses.
var own = strings.Fields("192.168.100.10 fd00:192:168:100::10 172.16.0.10 fd00:172:16::10 10.244.1.1 fd00:10:244:1::1 10.244.3.1 fd00:10:244:3::1")

// setup gives the node its addresses, routes and neighbours.
const setup = `link set lo up
addr add 10.244.1.1/24 dev kube-bridge
addr add fd00:10:244:1::1/64 dev kube-bridge nodad
addr add 10.244.3.1/24 dev kube-bridge
addr add fd00:10:244:3::1/64 dev kube-bridge nodad
addr add 192.168.100.10/24 dev eth0
addr add fd00:192:168:100::10/64 dev eth0 nodad
addr add 172.16.0.10/24 dev eth1
addr add fd00:172:16::10/64 dev eth1 nodad
route add default via 192.168.100.11
route add default via fd00:192:168:100::11
route add 10.244.2.0/24 via 192.168.100.11
route add fd00:10:244:2::/64 via fd00:192:168:100::11
route add 172.16.5.0/24 via 172.16.0.11
route add fd00:172:16:5::/64 via fd00:172:16::11
route add 10.244.4.10 dev cali0
route add 10.244.4.20 dev cali1
route add fd00:10:244:4::10 dev cali0
route add fd00:10:244:4::20 dev cali1
neigh add 192.168.100.11 lladdr 02:00:00:00:00:07 dev eth0
neigh add fd00:192:168:100::11 lladdr 02:00:00:00:00:07 dev eth0
neigh add 172.16.0.11 lladdr 02:00:00:00:00:08 dev eth1
neigh add fd00:172:16::11 lladdr 02:00:00:00:00:08 dev eth1
`

// bridgeMAC is the node's on the bridge.
var bridgeMAC = mac{2, 0, 0, 0, 1, 0}

// Node is a node and all that is around it. It lives on one locked thread,
// which is in the node's network namespace.
type Node struct {
	outside namespace
	inside  namespace
	hosts   []*host
	at      map[netip.Addr]place
	ears    []ear
	// send4 and send6 send what the node itself makes, headers included.
	send4, send6 socket
	sync         [2]socket
	netfilter    *kernel.Netfilter
	// env is what the programs are told, dir what they may write in.
	env []string
	dir string
	// sets are the ipsets that the kernel has the types for.
	sets []ipset
	// port, number and mark are the last ones used.
	port         uint16
	number, mark uint32
	// own is what the bridge's own switches are.
	own bool
	// dirty: there are legacy tables that may have rules.
	dirty bool
	buf   []byte
}

// NewNode builds a node on the calling thread, which has to be locked and is
// in the node's namespace from then on. Number chooses the processor. Close
// frees it.
func NewNode(ctx context.Context, number int) (n *Node, err error) {
	n = &Node{outside: -1, inside: -1, at: map[netip.Addr]place{}, send4: -1, send6: -1, sync: [2]socket{-1, -1}, port: 1023, buf: make([]byte, 4096)}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if err := pin(number); err != nil {
		return n, err
	}
	if n.dir, err = os.MkdirTemp("", "node"); err != nil {
		return n, err
	}
	// The legacy tools share a lock file with the host's unless told otherwise.
	n.env = []string{"XTABLES_LOCKFILE=" + filepath.Join(n.dir, "xtables.lock")}
	if n.outside, err = newNamespace(); err != nil {
		return n, err
	}
	if n.inside, err = newNamespace(); err != nil {
		return n, err
	}
	if err := n.network(ctx); err != nil {
		return n, fmt.Errorf("build the node: %w", err)
	}
	if n.netfilter, err = kernel.New(kernel.Options{}); err != nil {
		return n, err
	}
	if err := n.createSets(ctx); err != nil {
		return n, err
	}
	return n, n.settle(ctx)
}

// Close frees the node. The thread stays in its namespace: it should end.
func (n *Node) Close() error {
	var all []error
	if n.netfilter != nil {
		all = append(all, n.netfilter.Close())
	}
	sockets := []socket{n.send4, n.send6, n.sync[0], n.sync[1], socket(n.outside), socket(n.inside)}
	for _, h := range n.hosts {
		sockets = append(sockets, h.tap)
	}
	for _, e := range n.ears {
		sockets = append(sockets, e.socket)
	}
	for _, s := range sockets {
		if s >= 0 {
			all = append(all, s.close())
		}
	}
	if n.dir != "" {
		all = append(all, os.RemoveAll(n.dir))
	}
	return errors.Join(all...)
}

func sysctl(key, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0o600)
}

func (n *Node) network(ctx context.Context) (err error) {
	// Far ends say nothing, and the node knows everybody beforehand: only
	// what is sent on purpose meets the rules.
	err = n.outside.do(func() error { return sysctl("ipv6/conf/default/disable_ipv6", "1") })
	if err != nil {
		return err
	}
	for key, value := range map[string]string{
		"ipv6/conf/default/accept_dad": "0", "ipv6/conf/default/router_solicitations": "0",
		"ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
		"ipv4/conf/all/send_redirects": "0", "ipv4/conf/default/send_redirects": "0",
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
	} {
		if err := sysctl(key, value); err != nil {
			return err
		}
	}
	if err := run(ctx, nil, "link add "+bridge+" address "+net.HardwareAddr(bridgeMAC[:]).String()+" type bridge mcast_snooping 0\nlink set "+bridge+" up\n", "ip", "-batch", "-"); err != nil {
		return err
	}
	if n.sync[0], n.sync[1], err = n.pair("sync0", "sync1", mac{2, 0, 0, 0, 2, 0}, mac{2, 0, 0, 0, 2, 1}, n.outside); err != nil {
		return err
	}
	text, fdb := setup, ""
	for i, h := range hosts {
		far := &host{port: h.port, segment: h.segment, onBridge: h.segment != "", mac: mac{2, 0, 0, 0, 0, byte(i + 1)}, gateway: mac{2, 0, 0, 0, 1, byte(i + 1)}}
		if far.tap, _, err = n.pair(fmt.Sprintf("p%d", i), h.port, far.mac, far.gateway, n.inside); err != nil {
			return err
		}
		n.hosts = append(n.hosts, far)
		lladdr, device := net.HardwareAddr(far.mac[:]).String(), h.port
		if far.onBridge {
			far.gateway, device = bridgeMAC, bridge
			text = "link set " + h.port + " master " + bridge + "\n" + text
			fdb += "fdb replace " + lladdr + " dev " + h.port + " master static\n"
		}
		for a := range strings.FieldsSeq(h.addresses) {
			addr := netip.MustParseAddr(a)
			n.at[addr] = place{host: far, onward: startsWithAny(a, onward)}
			if !strings.HasPrefix(h.port, "eth") {
				text += "neigh add " + a + " lladdr " + lladdr + " dev " + device + "\n"
			}
		}
	}
	for _, a := range own {
		n.at[netip.MustParseAddr(a)] = place{}
	}
	if err := run(ctx, nil, text, "ip", "-batch", "-"); err != nil {
		return err
	}
	if err := run(ctx, nil, fdb, "bridge", "-batch", "-"); err != nil {
		return err
	}
	if n.ears, err = newEars(); err != nil {
		return err
	}
	if n.send4, err = newSocket(unix.AF_INET, unix.IPPROTO_RAW); err != nil {
		return err
	}
	n.send6, err = newSocket(unix.AF_INET6, unix.IPPROTO_RAW)
	return err
}

func startsWithAny(s string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// pair makes a veth pair from the outside to a namespace and returns a tap of
// the outer end, and of the other one if that is outside as well.
func (n *Node) pair(name, peer string, a, b mac, to namespace) (outer, inner socket, err error) {
	inner = -1
	err = n.outside.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = name, a[:]
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerHardwareAddr: b[:], PeerNamespace: netlink.NsFd(int(to))}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add %s: %w", name, err)
		}
		if err := netlink.LinkSetUp(veth); err != nil {
			return err
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if outer, err = newTap(link.Attrs().Index); err != nil || to != n.outside {
			return err
		}
		if link, err = netlink.LinkByName(peer); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		inner, err = newTap(link.Attrs().Index)
		return err
	})
	if err == nil && to == n.inside {
		var link netlink.Link
		if link, err = netlink.LinkByName(peer); err == nil {
			err = netlink.LinkSetUp(link)
		}
	}
	return outer, inner, err
}

// settle waits until everything arrives, as long as there are no rules: the
// kernel brings an interface's IPv6 up some time after its carrier.
func (n *Node) settle(ctx context.Context) error {
	var flows []flow.Flow
	for src := range n.at {
		for dst := range n.at {
			if f := (flow.Flow{Protocol: flow.UDP, Src: src, Dst: dst, Port: 80}); n.carries(f) {
				flows = append(flows, f)
			}
		}
	}
	var missing []flow.Flow
	for range 100 {
		seen, err := n.Send(flows)
		if err != nil {
			return err
		}
		missing = missing[:0]
		for i, f := range flows {
			if !seen[i].Arrived {
				missing = append(missing, f)
			}
		}
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fmt.Errorf("%d of %d flows do not arrive without any rule, such as %s", len(missing), len(flows), missing[0])
}

// addresses returns all addresses, sorted.
func (n *Node) addresses() []netip.Addr {
	return slices.SortedFunc(maps.Keys(n.at), netip.Addr.Compare)
}

// carries reports whether a flow passes the node from one place to another.
func (n *Node) carries(f flow.Flow) bool {
	from, to := n.at[f.Src], n.at[f.Dst]
	return f.Src.Is4() == f.Dst.Is4() && from.host != to.host
}

// Fate is what happened to a packet.
type Fate struct {
	// Arrived: it got to the host that has its destination, addressed so.
	Arrived bool
	// Source is the address that it then came from.
	Source netip.Addr
}

// together is how many packets are sent before those that arrived are read:
// few enough for one receive buffer.
const together = 100

// Send sends the first packet of each flow and returns what happened to it.
func (n *Node) Send(flows []flow.Flow) ([]Fate, error) {
	fates := make([]Fate, len(flows))
	first := n.number + 1
	for sent := 0; sent < len(flows); sent += together {
		for _, f := range flows[sent:min(sent+together, len(flows))] {
			if err := n.sendOne(f); err != nil {
				return nil, fmt.Errorf("send %s: %w", f, err)
			}
		}
		if err := n.flush(); err != nil {
			return nil, err
		}
		err := n.collect(func(h *host, a arrival) {
			i := a.number - first
			if i < uint32(len(flows)) && flows[i].Dst == a.dst && flows[i].Port == a.port && n.at[a.dst].host == h {
				fates[i] = Fate{true, a.src}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return fates, nil
}

func (n *Node) newPort() error {
	if n.port == 65535 {
		n.port = 1023
		// None of the connections of before is to be known again.
		if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
			return fmt.Errorf("flush connections: %w", err)
		}
	}
	n.port++
	return nil
}

func (n *Node) sendOne(f flow.Flow) error {
	if err := n.newPort(); err != nil {
		return err
	}
	n.number++
	from, to := n.at[f.Src], n.at[f.Dst]
	if from.host == nil {
		s, addr := n.send4, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(f.Dst.AsSlice()[:4])})
		if f.Dst.Is6() {
			s, addr = n.send6, &unix.SockaddrInet6{Addr: f.Dst.As16()}
		}
		// The node's own output chains refuse with an error.
		_ = unix.Sendto(int(s), packet(f, n.port, n.number), 0, addr)
		return nil
	}
	next := from.gateway
	if to.host != nil && from.segment != "" && from.segment == to.segment {
		next = to.mac
	}
	_, err := unix.Write(int(from.tap), frame(from.mac, next, f, n.port, n.number))
	return err
}

// hops is more than any packet's number of interfaces: each time the mark
// comes back, everything sent before it has passed one more.
const hops = 4

// flush returns once what was sent before has arrived or never will. All of
// it goes through the same processor's queue.
func (n *Node) flush() error {
	mark := make([]byte, 60)
	binary.BigEndian.PutUint16(mark[12:], 0x88b5) // ETH_P_802_EX1: for local experiments.
	copy(mark, []byte{2, 0, 0, 0, 2, 1, 2, 0, 0, 0, 2, 0})
	for range hops {
		n.mark++
		binary.BigEndian.PutUint32(mark[ethernetHeader:], n.mark)
		if _, err := unix.Write(int(n.sync[0]), mark); err != nil {
			return fmt.Errorf("send a mark: %w", err)
		}
		back := false
		for deadline := time.Now().Add(10 * time.Second); !back; {
			err := n.sync[1].drain(n.buf, func(b []byte) {
				back = back || len(b) >= ethernetHeader+4 && binary.BigEndian.Uint32(b[ethernetHeader:]) == n.mark
			})
			if err != nil {
				return err
			}
			if !back && time.Now().After(deadline) {
				return errors.New("a frame between two interfaces that no rule sees was lost")
			}
		}
	}
	return nil
}

func (n *Node) collect(f func(*host, arrival)) error {
	for _, h := range n.hosts {
		err := h.tap.drain(n.buf, func(b []byte) {
			if len(b) < ethernetHeader || mac(b[:6]) != h.mac {
				return
			}
			if a, ok := parse(b[ethernetHeader:]); ok {
				f(h, a)
			}
		})
		if err != nil {
			return err
		}
	}
	for _, e := range n.ears {
		if err := e.listen(n.buf, func(a arrival) { f(nil, a) }); err != nil {
			return err
		}
	}
	return nil
}

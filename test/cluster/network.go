// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// netnsDir is where iproute2 looks for network namespaces by name.
const netnsDir = "/run/netns"

func netnsPath(name string) string { return filepath.Join(netnsDir, name) }

// network makes and removes the namespaces, links, addresses and routes of a cluster. Links
// are made by the ip command, in batches, rather than by netlink messages: what is done reads
// as one would type it when a network needs a look, and nodes need iproute2 anyway.
type network struct {
	name  string // the cluster's
	plan  Plan
	nodes int
}

func (n network) namespace(of string) string { return "pgate-" + n.name + "-" + of }
func (n network) switchNS() string           { return n.namespace("switch") }
func (n network) controlPlaneNS() string     { return n.namespace("cp") }

// namespaces returns the names of all the cluster's network namespaces.
func (n network) namespaces() []string {
	names := []string{n.switchNS(), n.controlPlaneNS()}
	for i := range n.nodes {
		names = append(names, n.namespace(n.plan.Node(i).Name))
	}
	return names
}

// usable reports whether the routes of this namespace leave room for a plan: they must not
// know any part of its ranges already, default routes aside.
func usable(plan Plan) error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, route := range routes {
		if route.Dst == nil {
			continue
		}
		addr, _ := netip.AddrFromSlice(route.Dst.IP)
		bits, _ := route.Dst.Mask.Size()
		known := netip.PrefixFrom(addr.Unmap(), bits)
		for _, prefix := range append(plan.Underlay(), plan.PodRange()...) {
			if bits > 0 && known.Overlaps(prefix) {
				return fmt.Errorf("the route to %v on this machine overlaps %v", known, prefix)
			}
		}
	}
	return nil
}

// create makes the network but for the nodes, which addNode adds.
func (n network) create(ctx context.Context) error {
	for _, name := range []string{n.switchNS(), n.controlPlaneNS()} {
		if err := createNetNS(name); err != nil {
			return err
		}
	}
	if err := n.createSwitch(ctx); err != nil {
		return err
	}
	if err := n.join(ctx, "", n.plan.HostInterface(), "host", n.plan.Host(), -1); err != nil {
		return err
	}
	return n.join(ctx, n.controlPlaneNS(), "eth0", "cp", n.plan.ControlPlane(), -1)
}

// addNode makes the namespace of the node with the given index and connects it.
func (n network) addNode(ctx context.Context, index int) error {
	node := n.plan.Node(index)
	ns := n.namespace(node.Name)
	if err := createNetNS(ns); err != nil {
		return err
	}
	if err := setSysctls(ns, nodeSysctls); err != nil {
		return err
	}
	return n.join(ctx, ns, "eth0", node.Name, node.IPs, index)
}

// unplug takes a port out of the switch, and with it the interface at its other end. It is no
// error if there is none.
func (n network) unplug(port string) error {
	err := func() error {
		ns, err := netns.GetFromName(n.switchNS())
		if err != nil {
			return err
		}
		defer func() { _ = ns.Close() }()
		handle, err := netlink.NewHandleAt(ns)
		if err != nil {
			return err
		}
		defer handle.Close()
		link, err := handle.LinkByName(port)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err != nil {
			return err
		}
		return handle.LinkDel(link)
	}()
	if err != nil {
		return fmt.Errorf("unplug %s: %w", port, err)
	}
	return nil
}

// nodeSysctls is what a machine needs to be a node.
var nodeSysctls = map[string]string{
	"net/ipv4/ip_forward":                 "1",
	"net/ipv6/conf/all/forwarding":        "1",
	"net/ipv6/conf/default/accept_dad":    "0", // no second of waiting for an address
	"net/bridge/bridge-nf-call-iptables":  "1",
	"net/bridge/bridge-nf-call-ip6tables": "1",
}

func (n network) createSwitch(ctx context.Context) error {
	return ip(ctx, n.switchNS(), []string{
		"link set lo up",
		// Its ports only ever see unicast and ARP or ND: no snooping, no spanning tree.
		"link add br0 type bridge mcast_snooping 0 stp_state 0",
		"link set br0 up",
	})
}

// join connects a namespace ("": the caller's) to the switch, with an interface of the given
// name there and a port of the given name in the switch, and routes it to the pod ranges of
// all nodes but the one with index self.
func (n network) join(ctx context.Context, ns, iface, port string, addrs []netip.Addr, self int) error {
	commands := []string{
		fmt.Sprintf("link add %s address %v type veth peer name %s netns %s", iface, hardwareAddr(addrs[0]), port, n.switchNS()),
	}
	if ns != "" {
		commands = append(commands, "link set lo up")
	}
	for i, addr := range addrs {
		dad := ""
		if addr.Is6() {
			dad = " nodad"
		}
		commands = append(commands, fmt.Sprintf("addr add %v/%d dev %s%s", addr, n.plan.Underlay()[i].Bits(), iface, dad))
	}
	commands = append(commands, "link set "+iface+" up")
	for i := range n.nodes {
		if i == self {
			continue
		}
		node := n.plan.Node(i)
		for family, prefix := range node.PodCIDRs {
			commands = append(commands, fmt.Sprintf("route add %v via %v dev %s", prefix, node.IPs[family], iface))
		}
	}
	if self >= 0 {
		// A node's own connection to a Service needs some route before kube-proxy's rules
		// rewrite its destination. The control plane drops what they leave alone.
		for family, prefix := range n.plan.ServiceRange() {
			commands = append(commands, fmt.Sprintf("route add %v via %v dev %s", prefix, n.plan.ControlPlane()[family], iface))
		}
	}
	if err := ip(ctx, ns, commands); err != nil {
		return err
	}
	return ip(ctx, n.switchNS(), []string{"link set " + port + " master br0", "link set " + port + " up"})
}

// hardwareAddr returns the hardware address of the interface with an IPv4 address. Like a real
// one it is the same after a reboot: neighbours that remember it need not find out.
func hardwareAddr(addr netip.Addr) net.HardwareAddr {
	const locallyAdministered = 0x02 // the second lowest bit of the first byte, IEEE 802
	return append(net.HardwareAddr{locallyAdministered, 0}, addr.AsSlice()...)
}

// remove removes the whole network, or what there is of it.
func (n network) remove(ctx context.Context) error {
	var errs []error
	if _, err := netlink.LinkByName(n.plan.HostInterface()); err == nil {
		// It would go with the switch's namespace, but at a time of the kernel's choice.
		errs = append(errs, ip(ctx, "", []string{"link del " + n.plan.HostInterface()}))
	}
	for _, name := range n.namespaces() {
		if err := deleteNetNS(ctx, name); err != nil {
			errs = append(errs, err)
		}
	}
	_ = os.Remove(netnsDir) // if nothing else has namespaces there; not empty otherwise
	return errors.Join(errs...)
}

// ip runs commands of the ip tool in the namespace ns, or the caller's if empty.
func ip(ctx context.Context, ns string, commands []string) error {
	args := []string{"-batch", "-"}
	if ns != "" {
		args = append([]string{"-n", ns}, args...)
	}
	cmd := exec.CommandContext(ctx, "ip", args...)
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s of %q: %w: %s", strings.Join(args, " "), commands, err, output)
	}
	return nil
}

// createNetNS makes a named network namespace.
func createNetNS(name string) error {
	err := keepingNetNS(func() error {
		handle, err := netns.NewNamed(name)
		if err != nil {
			return err
		}
		return handle.Close()
	})
	if err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, err)
	}
	return nil
}

// deleteScript removes the network namespace's name $0 where it is also mounted below another
// mount of the directory: from a mount namespace of its own, it takes off what is above.
const deleteScript = "" +
	"while umount -l " + netnsDir + "; do :; done 2>/dev/null\n" +
	"while umount -l \"$0\"; do :; done 2>/dev/null\n" +
	"exec rm -f \"$0\"\n"

// deleteNetNS removes a named network namespace, if it exists.
func deleteNetNS(ctx context.Context, name string) error {
	err := netns.DeleteNamed(name)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// The first "ip netns add" of a machine mounts the directory over itself, and hides from
	// us the lower of then two mounts of each name that was there before.
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation=private", "--", "/bin/sh", "-c", deleteScript, netnsPath(name))
	if output, hidden := cmd.CombinedOutput(); hidden != nil {
		return fmt.Errorf("remove network namespace %s: %w (then %w: %s)", name, err, hidden, output)
	}
	return nil
}

// setSysctls writes kernel settings, by their paths below /proc/sys, in a network namespace.
func setSysctls(ns string, settings map[string]string) error {
	err := keepingNetNS(func() error {
		handle, err := netns.GetFromName(ns)
		if err != nil {
			return err
		}
		defer func() { _ = handle.Close() }()
		if err := netns.Set(handle); err != nil {
			return err
		}
		for key, value := range settings {
			if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("configure network namespace %s: %w", ns, err)
	}
	return nil
}

// keepingNetNS runs f, which may leave its operating system thread in another network
// namespace, and returns to the one before. It is not enough to end the thread: Go cannot end
// a process' first one, and would keep it, and so the namespace, for good.
func keepingNetNS(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // unlocked only when the thread is as it was
		result <- func() (err error) {
			before, err := netns.Get()
			if err != nil {
				return err
			}
			defer func() { _ = before.Close() }()
			defer func() {
				if back := netns.Set(before); back != nil {
					err = errors.Join(err, back)
					return
				}
				runtime.UnlockOSThread()
			}()
			return f()
		}()
	}()
	return <-result
}

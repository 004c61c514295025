// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Interface is a row of the table of that name, for an interface of the
// integration bridge.
type Interface struct {
	UUID, Name, Type string
	// MAC is the interface's own, which is not that of a Pod behind it.
	MAC string
	// OFPort is its OpenFlow port, below 1 if it has none.
	OFPort int64
	// ExternalIDs are what Kube-OVN's CNI plugin and ovn-controller write.
	ExternalIDs map[string]string
}

// State is what the local Open vSwitch database held after one transaction.
type State struct {
	// Session is another for each connection to the database, and Version for
	// each content.
	Session, Version uint64
	// Bridge: there is an integration bridge.
	Bridge bool
	// Acknowledged is ovn-nb-cfg of the bridge: the last change of the
	// northbound database that ovn-controller counted and acknowledged.
	Acknowledged string
	// Interfaces are those of the integration bridge.
	Interfaces []Interface
}

// The external ids of an interface.
const (
	idPort      = "iface-id"
	idAddresses = "ip"
	idName      = "pod_name"
	idNamespace = "pod_namespace"
	idInstalled = "ovn-installed"
)

// nodePort is how Kube-OVN names the interface of the node itself.
const nodePort = "ovn0"

// port is an interface with what of it a verdict rests on.
type port struct {
	name   string
	ofport int64
	// address is one of the Pod's, an IPv4 one if it has any.
	address netip.Addr
	// ground is the same as long as nothing of it has changed.
	ground string
	// why it cannot be judged, or "".
	why string
}

// ports are the interfaces of the integration bridge by what they are for. It
// is immutable.
type ports struct {
	// pods are by address; what is asked about an address that several have is
	// Inconclusive.
	pods map[netip.Addr]*port
	// taken are the OpenFlow ports of Pods.
	taken map[int64]bool
	// node is the interface of the node itself, nil without one.
	node *port
	// nodeMAC is its hardware address.
	nodeMAC string
	// geneve is the OpenFlow port of some Geneve tunnel, 0 without one.
	geneve int64
	// tunnels are the other kinds of tunnels that there are.
	tunnels []string
	// siblings are the Pods' ports that can be judged, in the order of their
	// OpenFlow ports.
	siblings []*port
	// all is the same as long as nothing of any has changed.
	all string
}

// portsOf arranges the interfaces.
func portsOf(interfaces []Interface) *ports {
	sorted := slices.Clone(interfaces)
	slices.SortFunc(sorted, func(a, b Interface) int {
		return cmp.Or(dead(a)-dead(b), cmp.Compare(a.OFPort, b.OFPort), cmp.Compare(a.UUID, b.UUID))
	})
	p := &ports{pods: map[netip.Addr]*port{}, taken: map[int64]bool{}}
	var all strings.Builder
	byPod := map[string]*port{}
	for _, i := range sorted {
		one := &port{name: i.Name, ofport: i.OFPort, ground: i.ground(), why: i.why()}
		all.WriteString(one.ground + "\n")
		switch {
		case i.Type == "geneve" && i.OFPort > 0:
			if p.geneve == 0 {
				p.geneve = i.OFPort
			}
		case i.Type == "vxlan" || i.Type == "stt":
			p.tunnels = append(p.tunnels, i.Type)
		case i.Name == nodePort:
			p.node, p.nodeMAC = one, hardwareAddress(i.MAC)
		default:
			p.pod(i, one, byPod)
		}
	}
	p.all = all.String()
	return p
}

// dead is 1 for an interface that has no OpenFlow port, else 0. The row of a
// Pod that is gone may stay for a while, and its address be another's.
func dead(i Interface) int {
	if i.OFPort < 1 {
		return 1
	}
	return 0
}

// pod adds the interface of a Pod. Those without an OpenFlow port come last: no
// packet comes from them or gets to them, so they count for nothing where
// another has the address or is the Pod's.
func (p *ports) pod(i Interface, one *port, byPod map[string]*port) {
	addresses := i.addresses()
	if i.ExternalIDs[idPort] == "" || len(addresses) == 0 {
		return
	}
	key := i.ExternalIDs[idNamespace] + "/" + i.ExternalIDs[idName]
	if dead(i) == 1 && (byPod[key] != nil || slices.ContainsFunc(addresses, func(a netip.Addr) bool { return p.pods[a] != nil })) {
		return
	}
	one.address = addresses[0]
	if k := slices.IndexFunc(addresses, netip.Addr.Is4); k > 0 {
		one.address = addresses[k]
	}
	if i.OFPort > 0 {
		p.taken[i.OFPort] = true
	}
	if i.ExternalIDs[idName] != "" {
		if other := byPod[key]; other != nil {
			why := fmt.Sprintf("the Pod has several logical ports (interfaces %s and %s)", other.name, one.name)
			other.why, one.why = why, why
			one.ground += other.ground
			other.ground = one.ground
		} else {
			byPod[key] = one
		}
	}
	for _, a := range addresses {
		if other := p.pods[a]; other != nil && other != one {
			one = &port{
				name: one.name, ofport: one.ofport, ground: other.ground + one.ground,
				why: fmt.Sprintf("two interfaces (%s and %s) have the address %s", other.name, one.name, a),
			}
		}
		p.pods[a] = one
	}
	if one.why == "" {
		p.siblings = append(p.siblings, one)
	}
}

// addresses returns those that the CNI plugin wrote, one for each family.
func (i Interface) addresses() []netip.Addr {
	var all []netip.Addr
	for text := range strings.SplitSeq(i.ExternalIDs[idAddresses], ",") {
		if a, err := netip.ParseAddr(strings.TrimSpace(text)); err == nil {
			all = append(all, a.Unmap().WithZone(""))
		}
	}
	return all
}

// why returns why packets of the interface are not judged as OVN wants, or "".
func (i Interface) why() string {
	switch {
	case i.OFPort < 1:
		return fmt.Sprintf("interface %s has no OpenFlow port", i.Name)
	case i.ExternalIDs[idInstalled] != "true":
		return fmt.Sprintf("OVN has not installed the flows of interface %s yet", i.Name)
	}
	return ""
}

func (i Interface) ground() string {
	return fmt.Sprintf("%s %s %s %d %s %s %s", i.UUID, i.Name, i.Type, i.OFPort,
		i.ExternalIDs[idPort], i.ExternalIDs[idAddresses], i.ExternalIDs[idInstalled])
}

// ends returns the ports of a flow's source and destination, nil for one that
// is not local.
func (p *ports) ends(src, dst netip.Addr) (s, d *port) { return p.pods[src], p.pods[dst] }

// ground returns what a verdict about the two rests on.
func (p *ports) ground(src, dst netip.Addr) string {
	s, d := p.ends(src, dst)
	return s.grounds() + ";" + d.grounds()
}

// grounds returns the ground of a port, "" of none.
func (p *port) grounds() string {
	if p == nil {
		return ""
	}
	return p.ground
}

// unique returns the texts in order, each once.
func unique(texts []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(texts)))
}

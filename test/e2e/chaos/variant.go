// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"fmt"
	"strings"

	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// Variant is what is different about the nodes.
type Variant string

// The variants.
const (
	// Plain nodes are as the cluster makes them.
	Plain Variant = ""
	// HostFirewall gives every node the policy DROP for what it forwards, with
	// the Pods' ranges and the nodes accepted: an address outside of the cluster
	// gets nowhere, whatever policies say.
	HostFirewall Variant = "host-firewall"
	// NoBridgeNF takes what passes between Pods of one node past all hooks of
	// IP: nothing is refused there, and a Pod whose isolation is asked for
	// cannot be confirmed.
	NoBridgeNF Variant = "no-bridge-nf"
	// NoIPv6 gives Pods addresses of both families, of which the engine
	// enforces IPv4 alone. Clients dial both.
	NoIPv6 Variant = "no-ipv6"
)

// ParseVariant returns the variant of that name.
func ParseVariant(name string) (Variant, error) {
	switch v := Variant(name); v {
	case Plain, HostFirewall, NoBridgeNF, NoIPv6:
		return v, nil
	}
	return Plain, fmt.Errorf("variant %q: want none, %q, %q or %q", name, HostFirewall, NoBridgeNF, NoIPv6)
}

// Testbed changes the options of the testbed to those of the variant.
func (v Variant) Testbed(o testbed.Options) testbed.Options {
	if v == NoIPv6 {
		o.DualStack, o.EngineIPv4Only = true, true
	}
	return o
}

// firewall accepts what the cluster needs: Pods as a source, and the nodes and
// the control plane. It can be run again.
const firewall = `set -e
iptables -w -P FORWARD DROP
accept() { iptables -w -C FORWARD "$@" -j ACCEPT 2>/dev/null || iptables -w -A FORWARD "$@" -j ACCEPT; }
accept -m conntrack --ctstate RELATED,ESTABLISHED
for source; do accept -s "$source"; done`

// apply makes a node what the variant wants; again after the node has rebooted.
func (v Variant) apply(ctx context.Context, c *cluster.Cluster, node *cluster.Node) error {
	var argv []string
	switch v {
	case HostFirewall:
		argv = []string{"sh", "-c", firewall, "sh", c.Plan().PodRange()[0].String(), c.Plan().ControlPlane()[0].String()}
		for _, n := range c.Nodes() {
			argv = append(argv, n.IPs[0].String())
		}
	case NoBridgeNF:
		argv = []string{"sh", "-c", "echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables && echo 0 > /proc/sys/net/bridge/bridge-nf-call-ip6tables"}
	case Plain, NoIPv6:
		return nil
	}
	if out, err := node.Command(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("make node %s one with %s: %w: %s", node.Name, v, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// outsidersPass says whether an address outside of the cluster gets to a Pod
// that no policy concerns.
func (v Variant) outsidersPass() bool { return v != HostFirewall }

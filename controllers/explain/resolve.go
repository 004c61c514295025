// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/policygate/policygate/api/flow"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// Cluster is what is known of Pods and nodes.
type Cluster interface {
	// Pod returns the Pod, or nil if there is none of that name.
	Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error)
	// PodsAt returns the Pods that have the address, in any phase.
	PodsAt(ctx context.Context, addr netip.Addr) ([]corev1.Pod, error)
	// NodesAt returns the names of the nodes that have the address.
	NodesAt(ctx context.Context, addr netip.Addr) ([]string, error)
}

// route is one flow of a question and the nodes to ask, in the order in which
// the packet passes them.
type route struct {
	flow                        flow.Flow
	sourceName, destinationName string
	nodes                       []string
}

// unresolvableError says why no node can be asked. Its text is for who asked.
type unresolvableError struct{ reason string }

func (e *unresolvableError) Error() string { return e.reason }

func unresolvable(format string, args ...any) error {
	return &unresolvableError{fmt.Sprintf(format, args...)}
}

// host is one end of a connection.
type host struct {
	// name is how to call it, such as "Pod shop/mysql"; empty if it is
	// nobody's in the cluster.
	name string
	// node is the one that it is on, empty if it is outside of the cluster.
	node  string
	addrs []netip.Addr
}

// called is how the host is called in an error.
func (h host) called() string {
	if h.name == "" {
		return h.addrs[0].String()
	}
	return h.name
}

// resolve returns a route for each IP family that q asks for and both ends
// have. q must be valid. It returns an *unresolvableError if there is none,
// and another error if the cluster could not be read.
func resolve(ctx context.Context, c Cluster, q tracev1.Question) ([]route, error) {
	protocol, err := tracev1.ParseProtocol(q.Protocol)
	if err != nil {
		return nil, &unresolvableError{err.Error()}
	}
	source, err := locate(ctx, c, q.Source)
	if err != nil {
		return nil, err
	}
	destination, err := locate(ctx, c, q.Destination)
	if err != nil {
		return nil, err
	}
	var nodes []string
	for _, node := range []string{source.node, destination.node} {
		if node != "" && !slices.Contains(nodes, node) {
			nodes = append(nodes, node)
		}
	}
	if len(nodes) == 0 {
		return nil, unresolvable("neither %s nor %s is the address of a Pod or a node of this cluster: there is no node to ask",
			source.called(), destination.called())
	}
	var routes []route
	for _, v6 := range []bool{false, true} {
		if (q.Family == tracev1.IPv4 && v6) || (q.Family == tracev1.IPv6 && !v6) {
			continue
		}
		src, dst := source.address(v6), destination.address(v6)
		if !src.IsValid() || !dst.IsValid() {
			continue
		}
		if src == dst {
			return nil, unresolvable("%s and %s have one address, %s: what it sends to itself passes no node's rules",
				source.called(), destination.called(), src)
		}
		routes = append(routes, route{
			flow:       flow.Flow{Protocol: protocol, Src: src, Dst: dst, Port: q.Port},
			sourceName: source.name, destinationName: destination.name, nodes: nodes,
		})
	}
	if len(routes) == 0 {
		return nil, unresolvable("%s has the addresses %s, %s has %s: want an address of %s for both",
			source.called(), list(source.addrs), destination.called(), list(destination.addrs),
			cmp.Or(string(q.Family), "one family"))
	}
	return routes, nil
}

// address returns the host's address of the family, or the zero one.
func (h host) address(v6 bool) netip.Addr {
	for _, addr := range h.addrs {
		if addr.Is6() == v6 {
			return addr
		}
	}
	return netip.Addr{}
}

func list(addrs []netip.Addr) string {
	words := make([]string, 0, len(addrs))
	for _, addr := range addrs {
		words = append(words, addr.String())
	}
	return strings.Join(words, " and ")
}

func locate(ctx context.Context, c Cluster, text string) (host, error) {
	end, err := tracev1.ParseEnd(text)
	if err != nil {
		return host{}, &unresolvableError{err.Error()}
	}
	if !end.Addr.IsValid() {
		return locatePod(ctx, c, end)
	}
	pods, err := c.PodsAt(ctx, end.Addr)
	if err != nil {
		return host{}, fmt.Errorf("look up Pods at %s: %w", end.Addr, err)
	}
	pods = withOwnAddress(pods)
	switch len(pods) {
	case 0:
	case 1:
		return host{name: nameOf(&pods[0]), node: pods[0].Spec.NodeName, addrs: []netip.Addr{end.Addr}}, nil
	default:
		return host{}, unresolvable("%s is the address of %s and of %s: name the Pod", end.Addr, nameOf(&pods[0]), nameOf(&pods[1]))
	}
	nodes, err := c.NodesAt(ctx, end.Addr)
	if err != nil {
		return host{}, fmt.Errorf("look up nodes at %s: %w", end.Addr, err)
	}
	h := host{addrs: []netip.Addr{end.Addr}}
	switch len(nodes) {
	case 0:
	case 1:
		h.name, h.node = "Node "+nodes[0], nodes[0]
	default:
		return host{}, unresolvable("%s is the address of the nodes %s and %s", end.Addr, nodes[0], nodes[1])
	}
	return h, nil
}

func locatePod(ctx context.Context, c Cluster, end tracev1.End) (host, error) {
	pod, err := c.Pod(ctx, end.Namespace, end.Name)
	switch {
	case err != nil:
		return host{}, fmt.Errorf("look up Pod %s/%s: %w", end.Namespace, end.Name, err)
	case pod == nil:
		return host{}, unresolvable("there is no Pod %s in namespace %s", end.Name, end.Namespace)
	case finished(pod):
		return host{}, unresolvable("%s has ended (%s): its address may be another's", nameOf(pod), pod.Status.Phase)
	}
	h := host{name: nameOf(pod), node: pod.Spec.NodeName}
	for _, ip := range pod.Status.PodIPs {
		if addr, err := tracev1.ParseAddr(ip.IP); err == nil {
			h.addrs = append(h.addrs, addr)
		}
	}
	if len(h.addrs) == 0 || h.node == "" {
		return host{}, unresolvable("%s has no address yet", nameOf(pod))
	}
	return h, nil
}

// withOwnAddress returns those of the Pods whose address is theirs: that of a
// finished one may be another's by now, and one on the host's network has that
// of its node.
func withOwnAddress(pods []corev1.Pod) []corev1.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool { return finished(&p) || p.Spec.HostNetwork })
}

func nameOf(p *corev1.Pod) string { return "Pod " + p.Namespace + "/" + p.Name }

func finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

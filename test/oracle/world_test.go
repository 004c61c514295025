// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/controllers/expect"
)

// injectLabel is what makes a namespace's policies bind Pods of others.
const injectLabel = "policygate.io/inject"

// world is a cluster as the API server has it. Its objects are never changed:
// a smaller world has copies.
type world struct {
	nodes      []*expect.Node
	namespaces []*corev1.Namespace
	policies   []*networkingv1.NetworkPolicy
	pods       []*pod
}

// pod is a Pod and the order in which its addresses became known.
type pod struct {
	*corev1.Pod
	seq   uint64
	addrs []netip.Addr
}

// end is one end of a connection. pod is nil outside of the cluster.
type end struct {
	addr netip.Addr
	pod  *pod
}

// connection is the same for both implementations.
type connection struct {
	src, dst end
	protocol corev1.Protocol
	port     uint16
}

func (x connection) String() string {
	return fmt.Sprintf("%s %s -> %s port %d", x.protocol, x.src.addr, x.dst.addr, x.port)
}

// sides returns the isolated end and the other one.
func (x connection) sides(d expect.Direction) (isolated, other end) {
	if d == expect.Ingress {
		return x.dst, x.src
	}
	return x.src, x.dst
}

func (x connection) flow() flow.Flow {
	return flow.Flow{Protocol: protocolNumber(x.protocol), Src: x.src.addr, Dst: x.dst.addr, Port: x.port}
}

func protocolNumber(p corev1.Protocol) flow.Protocol {
	return map[corev1.Protocol]flow.Protocol{
		corev1.ProtocolTCP: flow.TCP, corev1.ProtocolUDP: flow.UDP, corev1.ProtocolSCTP: flow.SCTP,
	}[p]
}

func protocolName(p flow.Protocol) corev1.Protocol {
	return corev1.Protocol(strings.ToUpper(p.String()))
}

// directions are both, in expect's order.
func directions() []expect.Direction { return []expect.Direction{expect.Ingress, expect.Egress} }

// peer reports whether the Pod can be an end of a connection at an address of
// its own.
func (p *pod) peer() bool {
	return !p.hostNetwork() && !p.finished() && !p.terminating() && p.Spec.NodeName != ""
}

func (p *pod) hostNetwork() bool { return p.Spec.HostNetwork }

func (p *pod) finished() bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func (p *pod) terminating() bool { return p.DeletionTimestamp != nil }

// older orders Pods as every replica does.
func older(a, b *pod) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID))
}

// containerPort is a port of a container that runs as long as its Pod does.
type containerPort struct {
	name     string
	protocol corev1.Protocol
	number   uint16
	sidecar  bool
}

// ports returns the ports that a policy can name, those of ordinary containers
// first.
func (p *pod) ports() []containerPort {
	var out []containerPort
	add := func(c *corev1.Container, sidecar bool) {
		for _, port := range c.Ports {
			out = append(out, containerPort{port.Name, cmp.Or(port.Protocol, corev1.ProtocolTCP), uint16(port.ContainerPort), sidecar})
		}
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i], false)
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c, true)
		}
	}
	return out
}

// has reports whether the Pod declares a port of that name.
func (p *pod) has(name string, protocol corev1.Protocol) bool {
	return p != nil && slices.ContainsFunc(p.ports(), func(port containerPort) bool {
		return port.name == name && port.protocol == protocol
	})
}

func newPod(p *corev1.Pod, seq uint64) *pod {
	out := &pod{Pod: p, seq: seq}
	for _, ip := range p.Status.PodIPs {
		out.addrs = append(out.addrs, netip.MustParseAddr(ip.IP))
	}
	return out
}

// namespaceLabels returns false for a namespace that is not known.
func (w *world) namespaceLabels(name string) (map[string]string, bool) {
	for _, ns := range w.namespaces {
		if ns.Name == name {
			return ns.Labels, true
		}
	}
	return nil, false
}

// peersAt returns the Pods that can be an end at addr.
func (w *world) peersAt(addr netip.Addr) []*pod {
	var out []*pod
	for _, p := range w.pods {
		if p.peer() && slices.Contains(p.addrs, addr) {
			out = append(out, p)
		}
	}
	return out
}

// feed gives the world's objects to one Cluster, each by one step. The order of
// the steps makes no difference.
func (w *world) feed(c *expect.Cluster) ([]func(), error) {
	var steps []func()
	for _, n := range w.nodes {
		steps = append(steps, func() { c.SetNode(n) })
	}
	for _, ns := range w.namespaces {
		in := &expect.Namespace{Name: ns.Name, Labels: labels.Set(ns.Labels), Inject: ns.Labels[injectLabel] == "enabled"}
		steps = append(steps, func() { c.SetNamespace(in) })
	}
	for _, np := range w.policies {
		q, err := expect.NewPolicy(np)
		if err != nil {
			return nil, fmt.Errorf("a policy that the API server admits: %w", err)
		}
		steps = append(steps, func() { c.SetPolicy(q) })
	}
	for _, p := range w.pods {
		steps = append(steps, func() { c.SetPod(p.read()) })
	}
	return steps, nil
}

// read returns the Pod as expect knows it.
func (p *pod) read() *expect.Pod {
	out := expect.NewPod(p.Pod)
	out.Seq = p.seq
	return out
}

func (w *world) cluster() (*expect.Cluster, error) {
	c := expect.NewCluster()
	steps, err := w.feed(c)
	for _, step := range steps {
		step()
	}
	return c, err
}

// conn returns x as expect knows it.
func (x connection) conn(c *expect.Cluster) expect.Conn {
	out := expect.Conn{
		Src: expect.End{Addr: x.src.addr}, Dst: expect.End{Addr: x.dst.addr},
		Protocol: protocolNumber(x.protocol), Port: x.port,
	}
	if x.src.pod != nil {
		out.Src.Pod = c.Pod(x.src.pod.UID)
	}
	if x.dst.pod != nil {
		out.Dst.Pod = c.Pod(x.dst.pod.UID)
	}
	return out
}

// String returns the world as YAML.
func (w *world) String() string {
	var out strings.Builder
	for _, n := range w.nodes {
		fmt.Fprintf(&out, "# node %s %v addresses %v out %v\n", n.Name, n.PodCIDRs, n.Addresses, n.Out)
	}
	write := func(about string, object any) {
		text, err := yaml.Marshal(object)
		if err != nil {
			text = []byte(err.Error())
		}
		fmt.Fprintf(&out, "--- # %s\n%s", about, text)
	}
	for _, ns := range w.namespaces {
		write("Namespace", ns)
	}
	for _, np := range w.policies {
		write("NetworkPolicy", np)
	}
	for _, p := range w.pods {
		write(fmt.Sprintf("Pod, known as number %d", p.seq), p.Pod)
	}
	return out.String()
}

// objectUID is one that no other kind of object has.
func objectUID(kind, namespace, name string) types.UID {
	return types.UID(kind + "/" + namespace + "/" + name)
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
)

// ContainerPort is a port that a Pod declares.
type ContainerPort struct {
	// Name is empty for a port that no policy can name.
	Name     string
	Protocol flow.Protocol
	Number   uint16
	// Sidecar is set for a port of a restartable init container: kube-router
	// reads only spec.containers.
	Sidecar bool
}

// Pod is what expectations need of a Pod. A Pod given to a Cluster must not be
// changed afterwards.
type Pod struct {
	UID             types.UID
	Namespace, Name string
	Labels          labels.Set
	// Node is empty until the Pod is scheduled.
	Node string
	// IPs are the Pod's addresses, sorted, none of them 4-in-6 mapped.
	IPs     []netip.Addr
	Ports   []ContainerPort
	Created time.Time
	// HostNetwork, Finished and Terminating Pods are no peers.
	HostNetwork, Finished, Terminating bool
	// Seq orders Pods by when their present addresses became known: the
	// smaller, the earlier. Equal values mean that the order is unknown: then
	// each counts as known when the other's was.
	Seq uint64
}

// NewPod returns what expectations need of pod, with Seq 0. Addresses that do
// not parse are left out: the API server admits none.
func NewPod(pod *corev1.Pod) *Pod {
	p := &Pod{
		UID:         pod.UID,
		Namespace:   pod.Namespace,
		Name:        pod.Name,
		Labels:      labels.Set(pod.Labels),
		Node:        pod.Spec.NodeName,
		Created:     pod.CreationTimestamp.Time,
		HostNetwork: pod.Spec.HostNetwork,
		Finished:    pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
		Terminating: pod.DeletionTimestamp != nil,
	}
	for _, ip := range pod.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil && addr.Zone() == "" {
			p.IPs = append(p.IPs, addr.Unmap())
		}
	}
	slices.SortFunc(p.IPs, netip.Addr.Compare)
	p.IPs = slices.Compact(p.IPs)
	for i := range pod.Spec.Containers {
		p.addPorts(pod.Spec.Containers[i].Ports, false)
	}
	for i := range pod.Spec.InitContainers {
		policy := pod.Spec.InitContainers[i].RestartPolicy
		if policy != nil && *policy == corev1.ContainerRestartPolicyAlways {
			p.addPorts(pod.Spec.InitContainers[i].Ports, true)
		}
	}
	return p
}

func (p *Pod) addPorts(ports []corev1.ContainerPort, sidecar bool) {
	for _, port := range ports {
		protocol, ok := protocolOf(&port.Protocol)
		if !ok || port.ContainerPort < 1 || port.ContainerPort > 65535 {
			continue
		}
		p.Ports = append(p.Ports, ContainerPort{
			Name:     port.Name,
			Protocol: protocol,
			Number:   uint16(port.ContainerPort),
			Sidecar:  sidecar,
		})
	}
}

// Peer reports whether p can be an end of a flow: it has an address of its own
// and is there to stay.
func (p *Pod) Peer() bool {
	return len(p.IPs) > 0 && p.Node != "" && !p.HostNetwork && !p.Finished && !p.Terminating
}

// String returns "namespace/name".
func (p *Pod) String() string { return p.Namespace + "/" + p.Name }

// named returns the port that name resolves to on p. A port of an ordinary
// container comes before that of a sidecar.
func (p *Pod) named(name string, protocol flow.Protocol) (ContainerPort, bool) {
	for _, port := range p.Ports {
		if port.Name == name && port.Protocol == protocol {
			return port, true
		}
	}
	return ContainerPort{}, false
}

// byAge orders Pods by creation, in the same way in every replica.
func byAge(a, b *Pod) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.UID, b.UID))
}

// protocolOf returns the protocol, TCP for nil or empty, and false for one
// that no NetworkPolicy can name.
func protocolOf(p *corev1.Protocol) (flow.Protocol, bool) {
	if p == nil {
		return flow.TCP, true
	}
	switch *p {
	case corev1.ProtocolTCP, "":
		return flow.TCP, true
	case corev1.ProtocolUDP:
		return flow.UDP, true
	case corev1.ProtocolSCTP:
		return flow.SCTP, true
	default:
		return 0, false
	}
}

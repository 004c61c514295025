// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Family is an address family.
type Family int

// The families. There is no third one.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String returns IPv4 or IPv6; both are part of names of chains and sets.
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// contains tells whether an address is of this family.
func (f Family) contains(a netip.Addr) bool {
	return a.Is4() == (f == IPv4)
}

// Options are the settings of the engine that do not change while it runs.
type Options struct {
	// Families that are programmed, in this order. Empty programs nothing.
	Families []Family
	// ClusterIPRanges, ExternalIPRanges and LoadBalancerRanges are let through
	// in the INPUT chain. Any may be empty.
	ClusterIPRanges, ExternalIPRanges, LoadBalancerRanges []netip.Prefix
	// NodePorts is the range of the Services' node ports, as iptables writes
	// it. Empty means 30000:32767.
	NodePorts string
}

// Input is what the engine knows about the cluster at one moment.
type Input struct {
	// NodeAddresses are those of the engine's node. A Pod is local if its
	// status.hostIP is one of them, character by character.
	NodeAddresses []string
	// Pods, Namespaces and Policies are those of the whole cluster, in any
	// order.
	Pods       []*corev1.Pod
	Namespaces []*corev1.Namespace
	Policies   []*networkingv1.NetworkPolicy
	// HalfProgrammed holds the Pods that the policies were evaluated without.
	// They are in no set, and a local one gets a chain that allows all. Nil
	// means none.
	HalfProgrammed map[types.UID]bool
	// Faults are deviations from what the objects demand.
	Faults Faults
	// Shuffle randomises the order of Pods, policies and named ports, as it is
	// random in kube-router at every sync. It has the contract of
	// rand.Shuffle. Nil keeps them sorted.
	Shuffle func(n int, swap func(i, j int))
}

// Faults corrupt the result on purpose. The zero value does not.
type Faults struct {
	// DropPolicies leave the chain of each of these policies empty.
	DropPolicies map[types.NamespacedName]bool
	// DropAddresses are left out of the sets of peers, though the rules that
	// use the sets stay.
	DropAddresses map[netip.Addr]bool
	// FlushPodChains leaves every Pod's chain empty, which lets all traffic
	// through.
	FlushPodChains bool
}

// Program is the wanted state of a node.
type Program struct {
	// Tables holds one filter table for each family, in the order of the
	// options.
	Tables []Table
	// LocalPods are the Pods of this node that have a chain, half-programmed
	// ones included.
	LocalPods []types.UID
}

// Table is the wanted state of one family: the ipsets and the engine's own
// part of the filter table.
type Table struct {
	Family Family
	// Sets have distinct names. They are sorted by name.
	Sets []Set
	// Chains are the engine's own, in the order in which they are written.
	Chains []Chain
	// Jumps are the rules at the head of the builtin chains. The chain of each
	// is the builtin one.
	Jumps []Chain
}

// Chain is a chain of the filter table.
type Chain struct {
	Name string
	// Rules are as iptables-save writes them, without the leading "-A Name".
	Rules []string
}

// Compile computes the program for one node. The version becomes part of the
// chains' names; two programs that follow each other need different ones.
//
// An error means that an object could not be read as Kubernetes defines it,
// for example a selector with an unknown operator, and names the object.
func Compile(version int64, options Options, input Input) (Program, error) {
	if options.NodePorts == "" {
		options.NodePorts = "30000:32767"
	}
	view := newView(input)
	policies, err := view.evaluate()
	if err != nil {
		return Program{}, err
	}
	program := Program{}
	for _, p := range view.local {
		program.LocalPods = append(program.LocalPods, p.uid)
	}
	for _, f := range options.Families {
		program.Tables = append(program.Tables, compileTable(f, version, options, view, policies))
	}
	return program, nil
}

// pod is what the engine knows about an actionable Pod.
type pod struct {
	uid             types.UID
	namespace, name string
	labels          map[string]string
	// key is status.podIP. kube-router knows Pods by it alone.
	key        string
	addresses  []netip.Addr
	containers []corev1.Container
}

// primary is the first address of a family: the only one that is filtered.
func (p pod) primary(f Family) (netip.Addr, bool) {
	for _, a := range p.addresses {
		if f.contains(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// view is the input, sorted out: actionable Pods only, addresses parsed.
type view struct {
	Input
	// listed are the Pods that the policies were evaluated with.
	listed []pod
	local  []pod
}

func newView(input Input) view {
	v := view{Input: input}
	local := map[string]pod{}
	for _, object := range input.Pods {
		if !Actionable(object) {
			continue
		}
		p := parsePod(object)
		if !input.HalfProgrammed[p.uid] {
			v.listed = append(v.listed, p)
		}
		if slices.Contains(input.NodeAddresses, object.Status.HostIP) {
			// Of two Pods with one address one is lost, as in kube-router.
			local[p.key] = p
		}
	}
	for _, p := range local {
		v.local = append(v.local, p)
	}
	byName := func(a, b pod) int {
		return strings.Compare(a.namespace+"/"+a.name, b.namespace+"/"+b.name)
	}
	slices.SortFunc(v.listed, byName)
	slices.SortFunc(v.local, byName)
	shuffle(input.Shuffle, v.local)
	return v
}

// Actionable tells whether the engine programs a Pod at all: it has an
// address of its own and has not finished. A Pending Pod is programmed as
// soon as it has an address, a terminating one until it is gone.
func Actionable(p *corev1.Pod) bool {
	phase := p.Status.Phase
	finished := phase == corev1.PodSucceeded || phase == corev1.PodFailed || phase == "Completed"
	return !finished && p.Status.PodIP != "" && !p.Spec.HostNetwork
}

func parsePod(object *corev1.Pod) pod {
	p := pod{
		uid:        object.UID,
		namespace:  object.Namespace,
		name:       object.Name,
		labels:     object.Labels,
		key:        object.Status.PodIP,
		containers: object.Spec.Containers,
	}
	ips := object.Status.PodIPs
	if len(ips) == 0 {
		ips = []corev1.PodIP{{IP: object.Status.PodIP}}
	}
	for _, ip := range ips {
		// An address that does not parse cannot be programmed; the API server
		// admits none.
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			p.addresses = append(p.addresses, a.Unmap())
		}
	}
	return p
}

func shuffle[T any](f func(int, func(i, j int)), items []T) {
	if f != nil {
		f(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
	}
}

func host(a netip.Addr) string {
	return fmt.Sprintf("%s/%d", a, a.BitLen())
}

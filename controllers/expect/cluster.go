// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
)

// Namespace is what expectations need of a Namespace.
type Namespace struct {
	Name   string
	Labels labels.Set
	// Inject is set if the namespace asks for gates: only then do its policies
	// bind Pods of other namespaces.
	Inject bool
}

// Node is what expectations need of a Node.
type Node struct {
	Name      string
	PodCIDRs  []netip.Prefix
	Addresses []netip.Addr
	// Out is set for a node that others do not wait for: not ready for too
	// long, or stalled.
	Out bool
}

// Cluster is the state that expectations are computed from. Pods, Policies,
// Namespaces and Nodes given to it are kept, and must not be changed; a change
// is a new value. It is not safe for concurrent use.
type Cluster struct {
	pods map[types.UID]*Pod
	// Ordered by age, only Pods that can be peers.
	peers       []*Pod
	byNamespace map[string][]*Pod
	byNode      map[string][]*Pod
	// byAddr has every Pod that is not finished and not on the host's network.
	byAddr map[netip.Addr][]*Pod
	// ports counts the peers that give a port name a number.
	ports map[portName]map[uint16]int

	namespaces map[string]*Namespace
	// policies of each namespace, ordered by name.
	policies map[string][]*Policy
	// namedIn has, for each namespace, the policies of any namespace with a
	// namespaceSelector that matches it, ordered by namespace and name.
	namedIn map[string][]*Policy
	// sharing counts the policies of each concatenation.
	sharing map[string]int
	nodes   map[string]*Node
	// nodeNames are the keys of nodes, sorted.
	nodeNames []string
	// members counts the Pods that a rule's selectors mean, only in clusters so
	// large that it matters, until the next change of a Pod, policy or namespace.
	members map[ruleKey]int
}

type ruleKey struct {
	policy    *Policy
	direction Direction
	rule      int
}

type portName struct {
	name     string
	protocol flow.Protocol
}

// NewCluster returns a Cluster with nothing in it.
func NewCluster() *Cluster {
	return &Cluster{
		pods:        map[types.UID]*Pod{},
		byNamespace: map[string][]*Pod{},
		byNode:      map[string][]*Pod{},
		byAddr:      map[netip.Addr][]*Pod{},
		ports:       map[portName]map[uint16]int{},
		namespaces:  map[string]*Namespace{},
		policies:    map[string][]*Policy{},
		namedIn:     map[string][]*Policy{},
		sharing:     map[string]int{},
		nodes:       map[string]*Node{},
		members:     map[ruleKey]int{},
	}
}

// SetPod adds p, or replaces the Pod of the same UID.
func (c *Cluster) SetPod(p *Pod) Footprint {
	c.DeletePod(p.UID)
	c.pods[p.UID] = p
	clear(c.members)
	if !p.Finished && !p.HostNetwork {
		for _, ip := range p.IPs {
			c.byAddr[ip] = insert(c.byAddr[ip], p, byAge)
		}
	}
	if !p.Peer() {
		return Footprint{}
	}
	c.peers = insert(c.peers, p, byAge)
	c.byNamespace[p.Namespace] = insert(c.byNamespace[p.Namespace], p, byAge)
	c.byNode[p.Node] = insert(c.byNode[p.Node], p, byAge)
	for _, port := range p.Ports {
		key := portName{port.Name, port.Protocol}
		if c.ports[key] == nil {
			c.ports[key] = map[uint16]int{}
		}
		c.ports[key][port.Number]++
	}
	return Footprint{Everything: true}
}

// DeletePod removes a Pod; one that is not there is no error.
func (c *Cluster) DeletePod(uid types.UID) Footprint {
	p, ok := c.pods[uid]
	if !ok {
		return Footprint{}
	}
	delete(c.pods, uid)
	clear(c.members)
	for _, ip := range p.IPs {
		c.byAddr[ip] = remove(c.byAddr[ip], p, byAge)
		if len(c.byAddr[ip]) == 0 {
			delete(c.byAddr, ip)
		}
	}
	if !p.Peer() {
		return Footprint{}
	}
	c.peers = remove(c.peers, p, byAge)
	removeFrom(c.byNamespace, p.Namespace, p, byAge)
	removeFrom(c.byNode, p.Node, p, byAge)
	for _, port := range p.Ports {
		key := portName{port.Name, port.Protocol}
		if c.ports[key][port.Number]--; c.ports[key][port.Number] == 0 {
			delete(c.ports[key], port.Number)
		}
		if len(c.ports[key]) == 0 {
			delete(c.ports, key)
		}
	}
	return Footprint{Everything: true}
}

// Pod returns the Pod of that UID, or nil.
func (c *Cluster) Pod(uid types.UID) *Pod { return c.pods[uid] }

// PeersOn returns the Pods of a node that can be peers, oldest first. The
// slice must not be changed.
func (c *Cluster) PeersOn(node string) []*Pod { return c.byNode[node] }

// PeersIn returns the Pods of a namespace that can be peers, oldest first. The
// slice must not be changed.
func (c *Cluster) PeersIn(namespace string) []*Pod { return c.byNamespace[namespace] }

// SetNamespace adds or replaces a namespace.
func (c *Cluster) SetNamespace(ns *Namespace) Footprint {
	c.namespaces[ns.Name] = ns
	clear(c.members)
	var naming []*Policy
	for _, policies := range c.policies {
		for _, q := range policies {
			if q.reaches(ns) {
				naming = append(naming, q)
			}
		}
	}
	slices.SortFunc(naming, byName)
	c.namedIn[ns.Name] = naming
	return Footprint{Everything: true}
}

// DeleteNamespace removes a namespace; one that is not there is no error.
func (c *Cluster) DeleteNamespace(name string) Footprint {
	delete(c.namespaces, name)
	clear(c.members)
	delete(c.namedIn, name)
	return Footprint{Everything: true}
}

// Namespace returns the namespace of that name, or nil.
func (c *Cluster) Namespace(name string) *Namespace { return c.namespaces[name] }

// SetPolicy adds q, or replaces the policy of the same namespace and name.
func (c *Cluster) SetPolicy(q *Policy) Footprint {
	c.DeletePolicy(q.Namespace, q.Name)
	c.policies[q.Namespace] = insert(c.policies[q.Namespace], q, byName)
	c.sharing[q.concatenation()]++
	for _, ns := range c.namespaces {
		if q.reaches(ns) {
			c.namedIn[ns.Name] = insert(c.namedIn[ns.Name], q, byName)
		}
	}
	return Footprint{Everything: true}
}

// DeletePolicy removes a policy; one that is not there is no error.
func (c *Cluster) DeletePolicy(namespace, name string) Footprint {
	q := c.Policy(namespace, name)
	if q == nil {
		return Footprint{}
	}
	removeFrom(c.policies, namespace, q, byName)
	clear(c.members)
	if c.sharing[q.concatenation()]--; c.sharing[q.concatenation()] == 0 {
		delete(c.sharing, q.concatenation())
	}
	for _, ns := range c.namespaces {
		c.namedIn[ns.Name] = remove(c.namedIn[ns.Name], q, byName)
	}
	return Footprint{Everything: true}
}

// Policy returns the policy of that name, or nil.
func (c *Cluster) Policy(namespace, name string) *Policy {
	policies := c.policies[namespace]
	i, found := slices.BinarySearchFunc(policies, &Policy{Namespace: namespace, Name: name}, byName)
	if !found {
		return nil
	}
	return policies[i]
}

// PoliciesIn returns the policies of a namespace, ordered by name. The slice
// must not be changed.
func (c *Cluster) PoliciesIn(namespace string) []*Policy { return c.policies[namespace] }

// Reaching returns the policies of any namespace that have a namespaceSelector
// which matches the namespace. The slice must not be changed.
func (c *Cluster) Reaching(namespace string) []*Policy { return c.namedIn[namespace] }

// Holding returns the Pods whose address it is, those that are being deleted
// included. The slice must not be changed.
func (c *Cluster) Holding(addr netip.Addr) []*Pod { return c.byAddr[addr] }

// Sharing returns the policies that kube-router cannot tell from q, without q.
func (c *Cluster) Sharing(q *Policy) []*Policy {
	if !c.conflicting(q) {
		return nil
	}
	var out []*Policy
	whole := q.concatenation()
	for i := 1; i < len(whole); i++ {
		other := c.Policy(whole[:i], whole[i:])
		if other != nil && other.Namespace != q.Namespace {
			out = append(out, other)
		}
	}
	return out
}

// Names reports whether a rule of q means p as a peer: by a selector, or, in an
// egress rule for everyone, by a port name that p resolves in q's namespace.
func (c *Cluster) Names(q *Policy, p *Pod) bool {
	for d, rules := range q.Rules {
		for i := range rules {
			if c.ruleMeans(q, Direction(d), &rules[i], p) {
				return true
			}
		}
	}
	return false
}

// ruleMeans is Names for one rule. In other namespaces no engine is known to
// resolve the name, so there the Pod's own node alone is asked.
func (c *Cluster) ruleMeans(q *Policy, d Direction, rule *Rule, p *Pod) bool {
	if d != Egress || !rule.everyone() || q.Namespace != p.Namespace {
		return c.ruleNames(q, rule, p)
	}
	return slices.ContainsFunc(rule.Ports, func(port Port) bool {
		_, has := p.named(port.Name, port.Protocol)
		return port.Name != "" && has
	})
}

// Naming returns every policy that means p as a peer, ordered by namespace and
// name.
func (c *Cluster) Naming(p *Pod) []*Policy {
	var out []*Policy
	for _, q := range c.policies[p.Namespace] {
		if c.Names(q, p) {
			out = append(out, q)
		}
	}
	for _, q := range c.namedIn[p.Namespace] {
		if q.Namespace != p.Namespace && c.Names(q, p) {
			out = append(out, q)
		}
	}
	slices.SortFunc(out, byName)
	return out
}

// SetNode adds or replaces a node.
func (c *Cluster) SetNode(n *Node) Footprint {
	if _, ok := c.nodes[n.Name]; !ok {
		c.nodeNames = insert(c.nodeNames, n.Name, strings.Compare)
	}
	c.nodes[n.Name] = n
	return Footprint{Everything: true}
}

// DeleteNode removes a node; one that is not there is no error.
func (c *Cluster) DeleteNode(name string) Footprint {
	delete(c.nodes, name)
	c.nodeNames = remove(c.nodeNames, name, strings.Compare)
	return Footprint{Everything: true}
}

// Node returns the node of that name, or nil.
func (c *Cluster) Node(name string) *Node { return c.nodes[name] }

// Demand returns what node must do with a new connection, and whether a node
// that does not is known to deviate. Inconclusive means that nothing can be
// demanded. An address that several Pods have is taken for that of the oldest.
func (c *Cluster) Demand(node string, f flow.Flow) (want flow.Answer, advisory bool) {
	end := func(addr netip.Addr) End {
		for _, p := range c.byAddr[addr] {
			if p.Peer() {
				return End{Addr: addr, Pod: p}
			}
		}
		return End{Addr: addr}
	}
	x := Conn{Src: end(f.Src), Dst: end(f.Dst), Protocol: f.Protocol, Port: f.Port}
	return c.admission(node, x, func(p *Pod) []*Policy { return Selecting(c.policies[p.Namespace], p) }).Answer()
}

// admission is the lower of the sides of x that node judges, given the policies
// that select a Pod.
func (c *Cluster) admission(node string, x Conn, policies func(*Pod) []*Policy) Admission {
	out := Admitted
	for _, d := range []Direction{Ingress, Egress} {
		side, _ := x.sides(d)
		if side.Pod == nil || side.Pod.Node != node {
			continue
		}
		if c.unreadable(side.Pod.Namespace) {
			return Doubtful
		}
		out = min(out, c.Admission(policies(side.Pod), d, x))
	}
	return out
}

// unreadable reports whether a policy of the namespace was not understood:
// then nothing is known of its Pods.
func (c *Cluster) unreadable(namespace string) bool {
	return slices.ContainsFunc(c.policies[namespace], func(q *Policy) bool { return q.Err != nil })
}

// conflicting reports whether kube-router cannot tell q from another policy.
func (c *Cluster) conflicting(q *Policy) bool { return c.sharing[q.concatenation()] > 1 }

// maxSetMembers is what kube-router's ipsets hold: maxelem 65536.
const maxSetMembers = 65536

// tooLarge reports whether the rule's selectors mean more Pods than the
// engine's sets hold. Addresses are counted per family, and a Pod has at most
// one of each.
func (c *Cluster) tooLarge(q *Policy, d Direction, i int) bool {
	if len(c.peers) <= maxSetMembers {
		return false
	}
	key := ruleKey{q, d, i}
	members, ok := c.members[key]
	if !ok {
		for _, p := range c.peers {
			if c.ruleNames(q, &q.Rules[d][i], p) {
				members++
			}
		}
		c.members[key] = members
	}
	return members > maxSetMembers
}

// duplicate reports whether more than one peer has the address.
func (c *Cluster) duplicate(addr netip.Addr) bool {
	peers := 0
	for _, p := range c.byAddr[addr] {
		if p.Peer() {
			peers++
		}
	}
	return peers > 1
}

// end returns p at its address of one family; false if it has none that is its
// alone.
func (c *Cluster) end(p *Pod, v6 bool) (End, bool) {
	for _, ip := range p.IPs {
		if ip.Is6() == v6 && !c.duplicate(ip) {
			return End{Addr: ip, Pod: p}, true
		}
	}
	return End{}, false
}

// reaches reports whether a namespaceSelector of q matches ns.
func (q *Policy) reaches(ns *Namespace) bool {
	for _, rules := range q.Rules {
		for i := range rules {
			for j := range rules[i].Peers {
				if s := rules[i].Peers[j].Namespaces; s != nil && s.Matches(ns.Labels) {
					return true
				}
			}
		}
	}
	return false
}

func byName(a, b *Policy) int {
	if order := strings.Compare(a.Namespace, b.Namespace); order != 0 {
		return order
	}
	return strings.Compare(a.Name, b.Name)
}

func insert[T any](list []T, v T, compare func(a, b T) int) []T {
	// What arrives is most often the youngest.
	if len(list) == 0 || compare(list[len(list)-1], v) < 0 {
		return append(list, v)
	}
	i, found := slices.BinarySearchFunc(list, v, compare)
	if found {
		list[i] = v
		return list
	}
	return slices.Insert(list, i, v)
}

func remove[T any](list []T, v T, compare func(a, b T) int) []T {
	i, found := slices.BinarySearchFunc(list, v, compare)
	if !found {
		return list
	}
	return slices.Delete(list, i, i+1)
}

func removeFrom[T any](lists map[string][]T, key string, v T, compare func(a, b T) int) {
	if lists[key] = remove(lists[key], v, compare); len(lists[key]) == 0 {
		delete(lists, key)
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/chaos/packet"
)

// places finds the network namespaces of Pods and opens vantages in them. Its
// methods may be called concurrently.
type places struct {
	cluster *cluster.Cluster

	mu    sync.Mutex // guards what follows
	nodes map[string]*place
	open  map[netip.Addr]*packet.Vantage
}

// place is a node's mount namespace, in which Pods' network namespaces have
// their names.
type place struct {
	process *cluster.Process
	// addresses are those of the namespaces, by name: a name is never used
	// again.
	addresses map[string][]netip.Addr
}

func newPlaces(c *cluster.Cluster) *places {
	return &places{cluster: c, nodes: map[string]*place{}, open: map[netip.Addr]*packet.Vantage{}}
}

// vantage returns the vantage of a Pod's address on a node. It is opened once;
// an error says that there is none, as with a Pod that has gone.
func (p *places) vantage(ctx context.Context, node string, addr netip.Addr) (*packet.Vantage, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v := p.open[addr]; v != nil {
		return v, nil
	}
	at, err := p.place(ctx, node)
	if err != nil {
		return nil, err
	}
	path, err := at.find(addr)
	if err != nil {
		return nil, fmt.Errorf("find %s on node %s: %w", addr, node, err)
	}
	v, err := packet.Open(path, addr)
	if err != nil {
		return nil, err
	}
	p.open[addr] = v
	return v, nil
}

// close closes the vantage of an address, whose next owner gets another.
func (p *places) close(addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v := p.open[addr]; v != nil {
		v.Close()
		delete(p.open, addr)
	}
}

// closeAll closes every vantage.
func (p *places) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for addr, v := range p.open {
		v.Close()
		delete(p.open, addr)
	}
}

// place returns a node's; a node that has rebooted has another.
func (p *places) place(ctx context.Context, node string) (*place, error) {
	if at := p.nodes[node]; at != nil && !at.process.Exited() {
		return at, nil
	}
	nodes := p.cluster.Nodes()
	i := slices.IndexFunc(nodes, func(n *cluster.Node) bool { return n.Name == node })
	if i < 0 {
		return nil, fmt.Errorf("there is no node %q", node)
	}
	process, err := p.cluster.StartProcess(ctx, nodes[i], "chaos-"+node, []string{"sleep", "infinity"}, nil)
	if err != nil {
		return nil, err
	}
	at := &place{process: process, addresses: map[string][]netip.Addr{}}
	p.nodes[node] = at
	return at, nil
}

// find returns the path of the network namespace with an address.
func (p *place) find(addr netip.Addr) (string, error) {
	// Where containerd keeps them, seen from the process' root.
	dir := fmt.Sprintf("/proc/%d/root/run/netns", p.process.Pid())
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	present := map[string][]netip.Addr{}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		addresses := p.addresses[entry.Name()]
		if len(addresses) == 0 {
			// A name without a namespace is one that is being removed.
			if addresses, err = packet.Addresses(path); err != nil {
				continue
			}
		}
		present[entry.Name()] = addresses
		if slices.Contains(addresses, addr) {
			p.addresses[entry.Name()] = addresses
			return path, nil
		}
	}
	p.addresses = present
	return "", fmt.Errorf("no network namespace of %d has it", len(entries))
}

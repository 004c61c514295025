// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/policygate/policygate/agent/northbound/match"
)

// Link is what address sets have of a Service. Kube-OVN before 1.16 puts the
// ClusterIPs of the Services that select a Pod beside the Pod's addresses into the
// sets of policies, which it does some time after the Service came.
type Link struct {
	// Lacking are the names of policies' address sets that hold a backend and
	// lack a ClusterIP of its family, sorted. It is empty while no set holds any
	// Service's ClusterIP: since 1.16 none does.
	Lacking []string
	// Linked is how many hold both.
	Linked int
}

// member is what an address is to a Service.
type member struct {
	service int
	vip     bool
}

// linked returns for each Service what its links lack. It costs one pass over the
// addresses of all sets, whatever the number of Services.
func (m *model) linked(services []Service) []Link {
	members := map[netip.Addr][]member{}
	for i, s := range services {
		for _, a := range s.VIPs {
			members[a] = append(members[a], member{i, true})
		}
		for _, a := range s.Backends {
			members[a] = append(members[a], member{i, false})
		}
	}
	links := make([]Link, len(services))
	known := false // whether any ClusterIP is in any set
	for _, s := range m.sets {
		if s.policy == "" || strings.HasPrefix(s.policy, "node/") {
			continue
		}
		backed := map[int]bool{} // Services of which the set holds a backend, and whether of IPv4
		for a := range s.single {
			for _, of := range members[a] {
				if of.vip {
					known = true
				} else {
					backed[of.service] = a.Is4()
				}
			}
		}
		for i, is4 := range backed {
			vips, lacks := 0, false
			for _, vip := range services[i].VIPs {
				if vip.Is4() == is4 {
					vips++
					lacks = lacks || s.holds(vip) == match.False
				}
			}
			switch {
			case lacks:
				links[i].Lacking = append(links[i].Lacking, s.name)
			case vips > 0:
				links[i].Linked++
			}
		}
	}
	for i := range links {
		if !known {
			links[i] = Link{}
		}
		slices.Sort(links[i].Lacking)
	}
	return links
}

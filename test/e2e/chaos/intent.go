// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"math/rand/v2"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// servedPort is where servers listen, otherPort where nobody does.
	servedPort = 8080
	otherPort  = 8081
)

// Role is the part that a Pod plays, and the value of its label app.
type Role string

// The roles. A Stranger is whoever no policy names: a Pod of a namespace
// without policies, or an address outside of the cluster.
const (
	Server   Role = "server"
	Client   Role = "client"
	Guest    Role = "guest"
	Stranger Role = "stranger"
)

// roleLabel is the label that policies select by.
const roleLabel = "app"

// Intent is what the policies of a namespace are to achieve. Each field is one
// policy, so that an edit touches one object.
type Intent struct {
	// DenyAll lets nobody in to any Pod, if nothing else does.
	DenyAll bool
	// AdmitClients lets clients in to servers, at the served port alone.
	AdmitClients bool
	// AdmitGuests extends that policy to guests; it means nothing without it.
	AdmitGuests bool
	// ConfineClients lets clients out to servers at the served port alone.
	ConfineClients bool
}

// Names of the policies, in the order of Intent's fields.
const (
	policyDenyAll = "deny-all"
	policyAdmit   = "admit"
	policyConfine = "confine"
)

// In says whether a Pod of the role to is to let in a connection from a Pod of
// the role from in the same namespace, or from a Stranger.
func (i Intent) In(from, to Role, port uint16) bool {
	if to == Stranger {
		return true
	}
	admitted := to == Server && i.AdmitClients && port == servedPort &&
		(from == Client || from == Guest && i.AdmitGuests)
	return admitted || !i.Isolated(to)
}

// Isolated says whether a Pod of that role lets in nobody but those who are
// named.
func (i Intent) Isolated(to Role) bool {
	return to != Stranger && (i.DenyAll || to == Server && i.AdmitClients)
}

// Confined says whether a Pod of that role gets out to nobody but those who are
// named.
func (i Intent) Confined(from Role) bool { return from == Client && i.ConfineClients }

// Out says whether a Pod of the role from is to be let out to one of the role
// to.
func (i Intent) Out(from, to Role, port uint16) bool {
	return !i.Confined(from) || to == Server && port == servedPort
}

// Allows says whether a connection is to be made.
func (i Intent) Allows(from, to Role, port uint16) bool {
	return i.Out(from, to, port) && i.In(from, to, port)
}

// Policies returns the policies that say the same.
func (i Intent) Policies() []*networkingv1.NetworkPolicy {
	var all []*networkingv1.NetworkPolicy
	if i.DenyAll {
		all = append(all, newPolicy(policyDenyAll, networkingv1.PolicyTypeIngress))
	}
	ports := []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromInt32(servedPort))}}
	if i.AdmitClients {
		p := newPolicy(policyAdmit, networkingv1.PolicyTypeIngress)
		p.Spec.PodSelector = selects(Server)
		peers := peer(Client)
		if i.AdmitGuests {
			peers = append(peers, peer(Guest)...)
		}
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers, Ports: ports}}
		all = append(all, p)
	}
	if i.ConfineClients {
		p := newPolicy(policyConfine, networkingv1.PolicyTypeEgress)
		p.Spec.PodSelector = selects(Client)
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: peer(Server), Ports: ports}}
		all = append(all, p)
	}
	return all
}

func newPolicy(name string, direction networkingv1.PolicyType) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{direction}},
	}
}

func selects(r Role) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{roleLabel: string(r)}}
}

func peer(r Role) []networkingv1.NetworkPolicyPeer {
	return []networkingv1.NetworkPolicyPeer{{PodSelector: new(selects(r))}}
}

// Edit returns the intent after one edit, and the name of the policy that it
// adds, changes or removes. A namespace whose clients are shut out gets them
// admitted next: a Job that may not connect is of no use.
func (i Intent) Edit(random *rand.Rand) (after Intent, policy string) {
	if i.DenyAll && !i.AdmitClients {
		i.AdmitClients = true
		return i, policyAdmit
	}
	edits := []string{policyDenyAll, policyConfine, policyAdmit}
	if i.AdmitClients {
		// Most edits change what is there.
		edits = append(edits, "guests", "guests")
	}
	switch edits[random.IntN(len(edits))] {
	case policyDenyAll:
		i.DenyAll = !i.DenyAll
		return i, policyDenyAll
	case policyConfine:
		i.ConfineClients = !i.ConfineClients
		return i, policyConfine
	case policyAdmit:
		i.AdmitClients = !i.AdmitClients
	default:
		i.AdmitGuests = !i.AdmitGuests
	}
	return i, policyAdmit
}

// find returns the policy of that name, or nil.
func find(policies []*networkingv1.NetworkPolicy, name string) *networkingv1.NetworkPolicy {
	if at := slices.IndexFunc(policies, func(p *networkingv1.NetworkPolicy) bool { return p.Name == name }); at >= 0 {
		return policies[at]
	}
	return nil
}

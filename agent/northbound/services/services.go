// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package services holds what the northbound database has of Services against
// the Services that there are.
//
// Kube-OVN up to 1.15 puts the ClusterIPs of the Services that select a Pod
// beside its addresses into the address sets of policies. What it has yet to put
// there is said as a remark on the database. No gate waits for it: a packet to a
// ClusterIP is judged by the address behind it where OVN balances the load, and
// from 1.16 on there are no ClusterIPs in any set.
//
// The package judges no flow. It watches Services and EndpointSlices of all
// namespaces.
package services

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/policygate/policygate/agent/northbound"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// Has address sets of Kube-OVN up to 1.15 held against the ClusterIPs that
// belong there.
// +kubebuilder:rbac:groups="",resources=services,verbs=list;watch,roleName=policygate-northbound-services

// Knows the Pods behind a ClusterIP.
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=list;watch,roleName=policygate-northbound-services

// Database is the northbound database.
type Database interface {
	// Survey is confirm.Surveyor's.
	Survey(ctx context.Context) (*hubv1.State, error)
	// Linked returns for each Service what its links lack, in the given order.
	Linked(services []northbound.Service) ([]northbound.Link, error)
}

// Surveyor is what is to be told of the database, with what it lacks of
// Services.
type Surveyor struct {
	database         Database
	factory          informers.SharedInformerFactory
	services, slices cache.SharedIndexInformer
}

// New returns a Surveyor that tells of no Service before Run.
func New(database Database, clients kubernetes.Interface) *Surveyor {
	factory := informers.NewSharedInformerFactoryWithOptions(clients, 0, informers.WithTransform(trim))
	return &Surveyor{
		database: database, factory: factory,
		services: factory.Core().V1().Services().Informer(),
		slices:   factory.Discovery().V1().EndpointSlices().Informer(),
	}
}

// Run watches Services until ctx ends, and returns nil then.
func (s *Surveyor) Run(ctx context.Context) error {
	s.factory.StartWithContext(ctx)
	<-ctx.Done()
	s.factory.Shutdown()
	return nil
}

// Survey implements confirm.Surveyor.
func (s *Surveyor) Survey(ctx context.Context) (*hubv1.State, error) {
	state, err := s.database.Survey(ctx)
	if err != nil || !s.services.HasSynced() || !s.slices.HasSynced() {
		return state, err
	}
	names, all := s.list()
	links, err := s.database.Linked(all)
	if err != nil {
		return nil, err
	}
	if len(links) != len(names) {
		return nil, fmt.Errorf("the database says of %d Services what %d lack", len(links), len(names))
	}
	if text := lacking(names, links); text != "" {
		state.Remarks = append(state.Remarks, &hubv1.Remark{Kind: hubv1.RemarkUnlinkedServices, Text: text})
	}
	return state, nil
}

// mostNamed is how many Services a remark names: a text has room for 200 bytes.
const mostNamed = 2

// lacking says which Services lack links, "" if none does.
func lacking(names []types.NamespacedName, links []northbound.Link) string {
	var all []string
	for i, l := range links {
		if len(l.Lacking) > 0 {
			all = append(all, fmt.Sprintf("%s in %s", names[i], l.Lacking[0]))
		}
	}
	if len(all) == 0 {
		return ""
	}
	text := fmt.Sprintf("ClusterIPs of %d Services are not in all address sets of policies that reach their Pods: %s",
		len(all), strings.Join(all[:min(len(all), mostNamed)], ", "))
	return tracev1.Printable(text)
}

// list returns the Services that have a ClusterIP and Pods behind it, sorted.
func (s *Surveyor) list() ([]types.NamespacedName, []northbound.Service) {
	backends := map[types.NamespacedName][]netip.Addr{}
	for _, o := range s.slices.GetStore().List() {
		slice, ok := o.(*discoveryv1.EndpointSlice)
		name := ""
		if ok {
			name = slice.Labels[discoveryv1.LabelServiceName]
		}
		if name == "" {
			continue
		}
		key := types.NamespacedName{Namespace: slice.Namespace, Name: name}
		for _, e := range slice.Endpoints {
			backends[key] = append(backends[key], parsed(e.Addresses)...)
		}
	}
	var names []types.NamespacedName
	vips := map[types.NamespacedName][]netip.Addr{}
	for _, o := range s.services.GetStore().List() {
		service, ok := o.(*corev1.Service)
		// Kube-OVN links a Service by its selector.
		if !ok || len(service.Spec.Selector) == 0 {
			continue
		}
		key := types.NamespacedName{Namespace: service.Namespace, Name: service.Name}
		if a := parsed(service.Spec.ClusterIPs); len(a) > 0 && len(backends[key]) > 0 {
			names, vips[key] = append(names, key), a
		}
	}
	slices.SortFunc(names, func(a, b types.NamespacedName) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	all := make([]northbound.Service, len(names))
	for i, name := range names {
		all[i] = northbound.Service{VIPs: vips[name], Backends: backends[name]}
	}
	return names, all
}

// parsed returns the texts that are addresses: a headless Service's ClusterIP is
// "None".
func parsed(texts []string) []netip.Addr {
	var all []netip.Addr
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			all = append(all, a)
		}
	}
	return all
}

// trim keeps of an object what is read here.
func trim(o any) (any, error) {
	switch o := o.(type) {
	case *corev1.Service:
		return &corev1.Service{
			ObjectMeta: named(&o.ObjectMeta),
			Spec:       corev1.ServiceSpec{ClusterIPs: o.Spec.ClusterIPs, Selector: o.Spec.Selector},
		}, nil
	case *discoveryv1.EndpointSlice:
		slice := &discoveryv1.EndpointSlice{ObjectMeta: named(&o.ObjectMeta), AddressType: o.AddressType}
		slice.Labels = map[string]string{discoveryv1.LabelServiceName: o.Labels[discoveryv1.LabelServiceName]}
		for _, e := range o.Endpoints {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: e.Addresses})
		}
		return slice, nil
	case cache.DeletedFinalStateUnknown:
		return o, nil
	}
	return nil, errors.New("neither a Service nor an EndpointSlice")
}

func named(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}
}

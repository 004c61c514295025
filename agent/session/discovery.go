// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
)

const (
	// portName is the name of the hub's port in its Service.
	portName = "hub"
	// defaultPort is used where EndpointSlices name no port.
	defaultPort = 9444
	// bundleKey is the key of the certificates in the ConfigMap.
	bundleKey = "ca.crt"
)

// Discovery tells a Client where the hub's replicas are and whom to trust. It
// lists and watches one Service's EndpointSlices and one ConfigMap.
type Discovery struct {
	// CoreV1 begins requests of core/v1; it decodes ConfigMaps.
	CoreV1 cache.Getter
	// DiscoveryV1 begins requests of discovery.k8s.io/v1; it decodes
	// EndpointSlices.
	DiscoveryV1 cache.Getter
	// Namespace is where both are.
	Namespace string
	// Service is the name of the hub's.
	Service string
	// ConfigMap is the name of the one with the certificates.
	ConfigMap string
	Log       logr.Logger
}

// Finds the manager's replicas. Names of EndpointSlices are made up, so it
// cannot be limited to them.
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=list;watch,namespace=policygate-system,roleName=policygate-agent

// Trusts the hub's certificate authority, the old and the new one.
// +kubebuilder:rbac:groups="",resources=configmaps,resourceNames=policygate-ca,verbs=list;watch,namespace=policygate-system,roleName=policygate-agent

// Finds the manager's replicas, as an agent does. Names of EndpointSlices are
// made up, so it cannot be limited to them.
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=list;watch,namespace=policygate-system,roleName=policygate-northbound

// Trusts the hub's certificate authority, the old and the new one.
// +kubebuilder:rbac:groups="",resources=configmaps,resourceNames=policygate-ca,verbs=list;watch,namespace=policygate-system,roleName=policygate-northbound

// Run passes on to c what it sees until ctx ends; then it returns nil. It
// returns an error if it cannot begin.
func (d *Discovery) Run(ctx context.Context, c *Client) error {
	endpoints := newInformer(d.DiscoveryV1, "endpointslices", d.Namespace, &discoveryv1.EndpointSlice{}, func(o *metav1.ListOptions) {
		o.LabelSelector = labels.Set{discoveryv1.LabelServiceName: d.Service}.String()
	})
	bundles := newInformer(d.CoreV1, "configmaps", d.Namespace, &corev1.ConfigMap{}, func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, d.ConfigMap).String()
	})
	_, err := endpoints.AddEventHandler(onAny(func() {
		// Before the first list is complete, what is missing is not gone.
		if endpoints.HasSynced() {
			c.SetReplicas(replicasIn(endpoints.GetStore().List()))
		}
	}))
	if err != nil {
		return fmt.Errorf("watch endpointslices: %w", err)
	}
	_, err = bundles.AddEventHandler(onAny(func() { d.trust(c, bundles.GetStore().List()) }))
	if err != nil {
		return fmt.Errorf("watch configmaps: %w", err)
	}
	go endpoints.RunWithContext(ctx)
	go bundles.RunWithContext(ctx)
	if cache.WaitForCacheSync(ctx.Done(), endpoints.HasSynced) {
		c.SetReplicas(replicasIn(endpoints.GetStore().List()))
	}
	<-ctx.Done()
	return nil
}

// trust makes c trust the newest bundle, if there is a good one.
func (d *Discovery) trust(c *Client, objects []any) {
	for _, object := range objects {
		bundle, ok := object.(*corev1.ConfigMap)
		if !ok || bundle.Name != d.ConfigMap {
			continue
		}
		roots, err := rootsIn(bundle)
		if err != nil {
			d.Log.Error(err, "Certificates are not used", "configMap", d.Namespace+"/"+d.ConfigMap)
			continue
		}
		c.SetRoots(roots)
	}
}

// newInformer returns an informer of the objects, of example's type, that
// selected leaves.
func newInformer(client cache.Getter, resource, namespace string, example runtime.Object, selected func(*metav1.ListOptions)) cache.SharedInformer {
	return cache.NewSharedInformer(cache.NewFilteredListWatchFromClient(client, resource, namespace, selected), example, 0)
}

// onAny calls f for each event.
func onAny(f func()) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { f() },
		UpdateFunc: func(_, _ any) { f() },
		DeleteFunc: func(any) { f() },
	}
}

// rootsIn returns the certificates of the bundle.
func rootsIn(bundle *corev1.ConfigMap) (*x509.CertPool, error) {
	text := bundle.Data[bundleKey]
	if text == "" {
		return nil, fmt.Errorf("key %s is empty: want certificates in PEM", bundleKey)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(text)) {
		return nil, errors.New("key " + bundleKey + " holds no certificate in PEM")
	}
	return roots, nil
}

// replicasIn returns one Replica for each endpoint of the EndpointSlices. A
// Pod that has an address of either family, in two slices, is one replica.
func replicasIn(objects []any) []Replica {
	found := make(map[string]Replica)
	for _, object := range objects {
		slice, ok := object.(*discoveryv1.EndpointSlice)
		if !ok || slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		port := portOf(slice)
		for _, e := range slice.Endpoints {
			if len(e.Addresses) == 0 {
				continue
			}
			r := Replica{
				Name:    e.Addresses[0],
				Address: net.JoinHostPort(e.Addresses[0], port),
				// The API: nil is to be taken as true.
				Ready: e.Conditions.Ready == nil || *e.Conditions.Ready,
			}
			if e.TargetRef != nil && e.TargetRef.Name != "" {
				r.Name = e.TargetRef.Name
			}
			if known, twice := found[r.Name]; !twice || preferred(r, known) {
				found[r.Name] = r
			}
		}
	}
	replicas := make([]Replica, 0, len(found))
	for _, r := range found {
		replicas = append(replicas, r)
	}
	slices.SortFunc(replicas, func(a, b Replica) int { return cmp.Compare(a.Name, b.Name) })
	return replicas
}

// preferred reports whether a is the better of a replica's two addresses. Any
// does that is ready; the order only has to be stable.
func preferred(a, b Replica) bool {
	if a.Ready != b.Ready {
		return a.Ready
	}
	return a.Address < b.Address
}

// portOf returns the port that is named for the hub, else the only one, else
// the default.
func portOf(slice *discoveryv1.EndpointSlice) string {
	port := int32(defaultPort)
	for _, p := range slice.Ports {
		if p.Port == nil {
			continue
		}
		if p.Name != nil && *p.Name == portName {
			port = *p.Port
			break
		}
		if len(slice.Ports) == 1 {
			port = *p.Port
		}
	}
	return strconv.Itoa(int(port))
}

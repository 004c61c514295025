// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package services

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/policygate/policygate/agent/northbound"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// database lacks the first ClusterIP of each Service that it is told to.
type database struct {
	lacks map[netip.Addr]bool
	asked []northbound.Service
	err   error
}

func (d *database) Survey(context.Context) (*hubv1.State, error) {
	return &hubv1.State{Dataplanes: []string{"ovn-northbound"}}, nil
}

func (d *database) Linked(services []northbound.Service) ([]northbound.Link, error) {
	d.asked = services
	links := make([]northbound.Link, len(services))
	for i, s := range services {
		if d.lacks[s.VIPs[0]] {
			links[i].Lacking = []string{"clients.shop.egress.allow.IPv4.0"}
		}
	}
	return links, d.err
}

func service(name, ip string, selector map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       corev1.ServiceSpec{ClusterIPs: []string{ip}, Selector: selector},
	}
}

func slice(of string, addresses ...string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: of + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: of, "other": "x"},
		},
		Endpoints: []discoveryv1.Endpoint{{Addresses: addresses}},
	}
}

// surveyed runs a Surveyor until it knows the objects.
func surveyed(t *testing.T, d *database, objects ...runtime.Object) *Surveyor {
	t.Helper()
	s := New(d, fake.NewClientset(objects...))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); !s.services.HasSynced() || !s.slices.HasSynced(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("Services are not known after 10 s")
		}
	}
	return s
}

func TestWhatTheDatabaseLacksOfServicesIsSaid(t *testing.T) {
	selects := map[string]string{"app": "db"}
	objects := []runtime.Object{
		service("db", "10.96.0.1", selects), slice("db", "10.16.0.5", "10.16.0.6"),
		service("headless", "None", selects), slice("headless", "10.16.0.5"),
		service("empty", "10.96.0.3", selects), slice("empty"),
		service("by-hand", "10.96.0.4", nil), slice("by-hand", "10.16.0.5"),
		service("web", "10.96.0.5", selects), slice("web", "10.16.0.7"),
	}
	ip := netip.MustParseAddr
	all := []northbound.Service{
		{VIPs: []netip.Addr{ip("10.96.0.1")}, Backends: []netip.Addr{ip("10.16.0.5"), ip("10.16.0.6")}},
		{VIPs: []netip.Addr{ip("10.96.0.5")}, Backends: []netip.Addr{ip("10.16.0.7")}},
	}
	for name, tc := range map[string]struct {
		lacks map[netip.Addr]bool
		want  []string
	}{
		"nothing is lacking": {},
		"one lacks": {
			lacks: map[netip.Addr]bool{ip("10.96.0.5"): true},
			want:  []string{"of 1 Services", "shop/web in clients.shop.egress.allow.IPv4.0"},
		},
		"both lack": {
			lacks: map[netip.Addr]bool{ip("10.96.0.1"): true, ip("10.96.0.5"): true},
			want:  []string{"of 2 Services", "shop/db in clients"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := &database{lacks: tc.lacks}
			state, err := surveyed(t, d, objects...).Survey(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(all, d.asked, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
			if len(tc.want) == 0 != (len(state.GetRemarks()) == 0) {
				t.Fatalf("remarks %v, want %q", state.GetRemarks(), tc.want)
			}
			for _, want := range tc.want {
				if r := state.GetRemarks()[0]; r.GetKind() != hubv1.RemarkUnlinkedServices || !strings.Contains(r.GetText(), want) || len(r.GetText()) > 200 {
					t.Errorf("remark %v, want %q", r, want)
				}
			}
		})
	}
}

func TestOfServicesThatAreNotKnownNothingIsSaid(t *testing.T) {
	d := &database{err: errors.New("asked")}
	state, err := New(d, fake.NewClientset()).Survey(t.Context())
	if err != nil || len(state.GetRemarks()) > 0 || len(state.GetDataplanes()) != 1 {
		t.Errorf("state %v, error %v", state, err)
	}
}

func TestADatabaseThatIsNotReadIsAnError(t *testing.T) {
	d := &database{err: errors.New("not in sync")}
	s := surveyed(t, d, service("db", "10.96.0.1", map[string]string{"a": "b"}), slice("db", "10.16.0.5"))
	if _, err := s.Survey(t.Context()); err == nil || !strings.Contains(err.Error(), "not in sync") {
		t.Errorf("error %v, want the database's", err)
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/policygate/policygate/api/flow"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// pod returns a running Pod; change may be nil.
func pod(name, node string, change func(*corev1.Pod), ips ...string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	if change != nil {
		change(p)
	}
	return p
}

func node(name string, addresses ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, a := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Address: a})
	}
	return n
}

// shop is a cluster of two nodes, read as the manager reads its cache.
func shop() Cluster {
	ended := func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }
	host := func(p *corev1.Pod) { p.Spec.HostNetwork = true }
	pods := []*corev1.Pod{
		pod("client", "n1", nil, "10.0.1.5", "fd00:1::5"),
		pod("mysql", "n2", nil, "10.0.2.7", "FD00:2::0007"),
		pod("four", "n2", nil, "10.0.2.8"),
		pod("six", "n1", nil, "fd00:1::6"),
		pod("pending", "n1", nil),
		pod("nowhere", "", nil, "10.0.9.9"),
		pod("ended", "n1", ended, "10.0.2.7"),
		pod("proxy", "n1", host, "192.0.2.1"),
		pod("twin-a", "n1", nil, "10.0.3.3"),
		pod("twin-b", "n2", nil, "10.0.3.3"),
	}
	builder := fake.NewClientBuilder().WithIndex(&corev1.Pod{}, byAddress, addresses).WithIndex(&corev1.Node{}, byAddress, addresses)
	for _, p := range pods {
		builder.WithObjects(p)
	}
	builder.WithObjects(node("n1", "192.0.2.1", "n1.example"), node("n2", "192.0.2.2"))
	builder.WithObjects(node("n3", "192.0.2.33"), node("n4", "192.0.2.33"))
	return CachedCluster{builder.Build()}
}

func TestResolve(t *testing.T) {
	const (
		client4, client6 = "10.0.1.5", "fd00:1::5"
		mysql4, mysql6   = "10.0.2.7", "fd00:2::7"
	)
	to := func(src, dst, srcName, dstName string, nodes ...string) route {
		return route{
			flow: flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Port: 3306},

			sourceName: srcName, destinationName: dstName, nodes: nodes,
		}
	}
	for name, tc := range map[string]struct {
		source, destination string
		family              tracev1.Family
		want                []route
		problem             string
	}{
		"two Pods of both families": {
			source: "shop/client", destination: "shop/mysql",
			want: []route{
				to(client4, mysql4, "Pod shop/client", "Pod shop/mysql", "n1", "n2"),
				to(client6, mysql6, "Pod shop/client", "Pod shop/mysql", "n1", "n2"),
			},
		},
		"one family of two": {
			source: "shop/client", destination: "shop/mysql", family: tracev1.IPv6,
			want: []route{to(client6, mysql6, "Pod shop/client", "Pod shop/mysql", "n1", "n2")},
		},
		"the family that both have": {
			source: "shop/client", destination: "shop/four",
			want: []route{to(client4, "10.0.2.8", "Pod shop/client", "Pod shop/four", "n1", "n2")},
		},
		"the other one": {
			source: "shop/client", destination: "shop/six",
			want: []route{to(client6, "fd00:1::6", "Pod shop/client", "Pod shop/six", "n1")},
		},
		"addresses of Pods are known, ended Pods are not theirs": {
			source: client4, destination: mysql4,
			want: []route{to(client4, mysql4, "Pod shop/client", "Pod shop/mysql", "n1", "n2")},
		},
		"an IPv6 address is known however it is written": {
			source: client6, destination: "fd00:2:0::7",
			want: []route{to(client6, mysql6, "Pod shop/client", "Pod shop/mysql", "n1", "n2")},
		},
		"an address outside is asked of the Pod's node": {
			source: "shop/client", destination: "203.0.113.9",
			want: []route{to(client4, "203.0.113.9", "Pod shop/client", "", "n1")},
		},
		"and so is one that comes from outside": {
			source: "203.0.113.9", destination: "shop/mysql",
			want: []route{to("203.0.113.9", mysql4, "", "Pod shop/mysql", "n2")},
		},
		"a node's address is the node's, not that of its Pods": {
			source: "192.0.2.1", destination: "shop/mysql",
			want: []route{to("192.0.2.1", mysql4, "Node n1", "Pod shop/mysql", "n1", "n2")},
		},
		"a Pod on the host's network has its node's": {
			source: "shop/proxy", destination: "shop/mysql",
			want: []route{to("192.0.2.1", mysql4, "Pod shop/proxy", "Pod shop/mysql", "n1", "n2")},
		},
		"no family in common":       {source: "shop/four", destination: "shop/six", problem: "Pod shop/four has the addresses 10.0.2.8, Pod shop/six has fd00:1::6: want an address of one family for both"},
		"not of the wanted family":  {source: "shop/client", destination: "shop/four", family: tracev1.IPv6, problem: "want an address of ipv6 for both"},
		"no such Pod":               {source: "shop/client", destination: "shop/nobody", problem: "there is no Pod nobody in namespace shop"},
		"a Pod that has ended":      {source: "shop/ended", destination: "shop/mysql", problem: "Pod shop/ended has ended (Succeeded)"},
		"a Pod without an address":  {source: "shop/pending", destination: "shop/mysql", problem: "Pod shop/pending has no address yet"},
		"a Pod without a node":      {source: "shop/nowhere", destination: "shop/mysql", problem: "Pod shop/nowhere has no address yet"},
		"an address of two Pods":    {source: "10.0.3.3", destination: "shop/mysql", problem: "10.0.3.3 is the address of Pod shop/twin-a and of Pod shop/twin-b"},
		"an address of two nodes":   {source: "192.0.2.33", destination: "shop/mysql", problem: "192.0.2.33 is the address of the nodes n3 and n4"},
		"nobody of the cluster":     {source: "203.0.113.9", destination: "203.0.113.10", problem: "neither 203.0.113.9 nor 203.0.113.10 is the address of a Pod or a node"},
		"a Pod to itself":           {source: "shop/client", destination: client4, problem: "one address, 10.0.1.5"},
		"an end that is no address": {source: "client", destination: client4, problem: `"client": want an IP address or namespace/pod`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := resolve(t.Context(), shop(), tracev1.Question{
				Source: tc.source, Destination: tc.destination, Port: 3306, Protocol: "tcp", Family: tc.family,
			})
			if tc.problem != "" {
				if why := (*unresolvableError)(nil); !errors.As(err, &why) || !strings.Contains(err.Error(), tc.problem) {
					t.Errorf("error %v, want an unresolvableError with %q", err, tc.problem)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(route{}), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
		})
	}
}

// blind is a cluster that cannot be read.
type blind struct{ Cluster }

func (blind) Pod(context.Context, string, string) (*corev1.Pod, error) {
	return nil, errors.New("down")
}
func (blind) PodsAt(context.Context, netip.Addr) ([]corev1.Pod, error) {
	return nil, errors.New("down")
}

func TestAClusterThatCannotBeReadIsNotTheQuestionsFault(t *testing.T) {
	for _, source := range []string{"shop/client", "10.0.1.5"} {
		_, err := resolve(t.Context(), blind{}, tracev1.Question{Source: source, Destination: "10.0.2.7", Port: 1, Protocol: "tcp"})
		if why := (*unresolvableError)(nil); err == nil || errors.As(err, &why) {
			t.Errorf("%s: error %v, want one that is not the question's", source, err)
		}
	}
}

func TestAddressesAreIndexedInOneForm(t *testing.T) {
	if got := addresses(pod("p", "n", nil, "FD00:2::0007", "::ffff:10.0.0.1", "broken")); !slices.Equal(got, []string{"fd00:2::7", "10.0.0.1"}) {
		t.Errorf("Pod: %v", got)
	}
	if got := addresses(node("n", "n.example", "192.0.2.1")); !slices.Equal(got, []string{"192.0.2.1"}) {
		t.Errorf("node: %v", got)
	}
	if got := addresses(&corev1.Secret{}); got != nil {
		t.Errorf("Secret: %v", got)
	}
}

// nobody is a cluster of one node that has every address, and no Pods.
type nobody struct{}

func (nobody) Pod(context.Context, string, string) (*corev1.Pod, error) { return nil, nil }
func (nobody) PodsAt(context.Context, netip.Addr) ([]corev1.Pod, error) { return nil, nil }
func (nobody) NodesAt(context.Context, netip.Addr) ([]string, error)    { return []string{"n1"}, nil }

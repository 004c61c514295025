// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// being returns a Pod of a role on a node, at the order-th address.
func being(name string, role Role, node string, order int) Life {
	p := gatedPod(address(fmt.Sprintf("10.1.1.%d", order)))
	p.Name, p.UID, p.Labels, p.Spec.NodeName = name, types.UID(name), map[string]string{roleLabel: string(role)}, node
	return Life{Pod: p, Order: order, Addressed: at(float64(order))}
}

func opened(l Life) Life {
	l.Opened = at(60)
	return l
}

func ended(l Life) Life {
	l.Gone = at(60)
	l.Pod.Status.Phase = corev1.PodSucceeded
	return l
}

func TestPlan(t *testing.T) {
	strangers := []Life{being("s1", Stranger, "n1", 1), being("s2", Stranger, "n2", 2)}
	outsider := Party{Name: "outside"}
	for name, tc := range map[string]struct {
		self   Life
		intent Intent
		peers  []Life
		want   []string
	}{
		"an isolated server refuses strangers of every place": {
			self: being("server", Server, "n1", 10), intent: Intent{DenyAll: true},
			want: []string{"s2>server:8080 refused", "s1>server:8080 refused", "outside>server:8080 refused"},
		},
		"a server without policies lets in a Pod elsewhere": {
			self: being("server", Server, "n1", 10),
			want: []string{"s2>server:8080 passes"},
		},
		"an older client gets to the served port alone": {
			self: being("server", Server, "n1", 10), intent: Intent{AdmitClients: true},
			peers: []Life{being("client", Client, "n2", 5)},
			want: []string{
				"s2>server:8080 refused", "s1>server:8080 refused", "outside>server:8080 refused",
				"client>server:8080 passes", "client>server:8081 refused",
			},
		},
		"a client that is younger and held waits for its own gate": {
			self: being("server", Server, "n1", 10), intent: Intent{AdmitClients: true},
			peers: []Life{being("client", Client, "n2", 15)},
			want:  []string{"s2>server:8080 refused", "s1>server:8080 refused", "outside>server:8080 refused"},
		},
		"a client that is younger and open gets in": {
			self: being("server", Server, "n1", 10), intent: Intent{AdmitClients: true},
			peers: []Life{opened(being("client", Client, "n2", 15))},
			want: []string{
				"s2>server:8080 refused", "s1>server:8080 refused", "outside>server:8080 refused",
				"client>server:8080 passes", "client>server:8081 refused",
			},
		},
		"a guest is a stranger of the same namespace": {
			self: being("server", Server, "n1", 10), intent: Intent{AdmitClients: true},
			peers: []Life{being("guest", Guest, "n2", 5), ended(being("client", Client, "n2", 6))},
			want: []string{
				"s2>server:8080 refused", "s1>server:8080 refused", "outside>server:8080 refused",
				"guest>server:8080 refused", "guest>server:8081 refused",
			},
		},
		"a confined client gets to servers and nowhere else": {
			self: being("client", Client, "n1", 10), intent: Intent{AdmitClients: true, ConfineClients: true},
			peers: []Life{being("server", Server, "n2", 5)},
			want: []string{
				"s2>client:8080 passes", "client>server:8080 passes", "client>server:8081 refused", "client>s2:8080 refused",
			},
		},
		"what the server's own isolation refuses is its gate's affair": {
			self: being("client", Client, "n1", 10), intent: Intent{AdmitClients: true},
			peers: []Life{being("server", Server, "n2", 5)},
			want:  []string{"s2>client:8080 passes", "client>server:8080 passes", "client>s2:8080 passes"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, l := range plan(tc.self, surroundings{intent: tc.intent, peers: tc.peers, strangers: strangers, outsider: outsider}) {
				short := func(p Party) string { return p.Name[max(0, slices.Index([]byte(p.Name), '/')+1):] }
				verdict := "refused"
				if l.Want {
					verdict = "passes"
				}
				got = append(got, fmt.Sprintf("%s>%s:%d %s", short(l.From), short(l.To), l.Port, verdict))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("looks (-want +got):\n%s", diff)
			}
		})
	}
}

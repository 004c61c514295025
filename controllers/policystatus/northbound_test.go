// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
)

func TestWhatIsSaidOfTheNorthboundDatabase(t *testing.T) {
	absent := node{name: hubv1.Northbound, since: t0}
	cases := map[string]struct {
		nodes []node
		after time.Duration
		want  string
		// message is that of Programmed, lags that of the lagging database.
		message, lags string
	}{
		"it is not counted among the nodes, and named": {
			nodes:   []node{confirmed(hubv1.Northbound), confirmed("n1"), confirmed("n2")},
			want:    "Programmed=True/InForce | Degraded=False/AsExpected | 2/2 | gen=1 | last: gen=1 at 0s took \"\"",
			message: "in force on 2 nodes, and in OVN's northbound database",
		},
		"a policy that it lacks is not in force": {
			nodes: []node{unmet(hubv1.Northbound, v1alpha1.LagNotIsolating, t0), confirmed("n1")}, after: 2 * time.Second,
			want:    "Programmed=False/Lagging | Degraded=False/AsExpected | 1/1 | gen=1 | kube-ovn:northbound:NotIsolating since 0s",
			message: "not in force yet on kube-ovn:northbound (NotIsolating)",
			lags:    "in OVN's northbound database: NotIsolating in words",
		},
		"of which nothing can be told": {
			nodes: []node{unmet(hubv1.Northbound, v1alpha1.LagInconclusive, t0), confirmed("n1")}, after: 2 * time.Second,
			want:    "Programmed=Unknown/Unknown | Degraded=False/AsExpected | 1/1 | gen=1 | kube-ovn:northbound:Inconclusive since 0s",
			message: "not known to be in force on kube-ovn:northbound (Inconclusive)",
			lags:    "it cannot be told what OVN's northbound database has of it; its agent's log says why",
		},
		"that has not answered": {
			nodes: []node{silent(hubv1.Northbound, t0), confirmed("n1")}, after: 2 * time.Second,
			want:    "Programmed=Unknown/Unknown | Degraded=False/AsExpected | 1/1 | gen=1 | kube-ovn:northbound:NoAnswer since 0s",
			message: "not known to be in force on kube-ovn:northbound (NoAnswer)",
			lags:    "the agent of OVN's northbound database has not confirmed yet, nor said what is missing",
		},
		"whose agent is away": {
			nodes: []node{absent, confirmed("n1")}, after: time.Minute,
			want:    "Programmed=Unknown/Unknown | Degraded=True/Unseen | 1/1 | gen=1 | kube-ovn:northbound:NoAgent since 0s",
			message: "not known to be in force on kube-ovn:northbound (NoAgent)",
			lags:    "no agent is connected that sees OVN's northbound database",
		},
		"that cannot be read": {
			nodes: []node{with(silent(hubv1.Northbound, t0), func(n *node) { n.unseen = true }), confirmed("n1")}, after: 2 * time.Second,
			want:    "Programmed=Unknown/Unknown | Degraded=True/Unseen | 1/1 | gen=1 | kube-ovn:northbound:Unsupported since 0s",
			message: "not known to be in force on kube-ovn:northbound (Unsupported)",
			lags:    "the agent of OVN's northbound database cannot read it",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			d := decide(state{generation: 1, understood: true, nodes: tc.nodes}, t0.Add(tc.after))
			if diff := cmp.Diff(tc.want, told(d.status)); diff != "" {
				t.Fatalf("said (-want +got):\n%s", diff)
			}
			if got := meta.FindStatusCondition(d.status.Conditions, v1alpha1.PolicyProgrammed).Message; got != tc.message {
				t.Errorf("message %q, want %q", got, tc.message)
			}
			lags := ""
			for _, l := range d.status.LaggingNodes {
				lags = l.Message
			}
			if lags != tc.lags {
				t.Errorf("lagging: %q, want %q", lags, tc.lags)
			}
		})
	}
}

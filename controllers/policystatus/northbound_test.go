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

// wantConfig demands what the nodes are told to have acknowledged.
func (b *bench) wantConfig(want map[string]uint64) {
	b.t.Helper()
	got := map[string]uint64{}
	for name := range want {
		got[name] = b.hub.assigned[name+"/uid-"+allowJobs.Name].GetNorthboundConfig()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		b.t.Errorf("to be acknowledged (-want +got):\n%s", diff)
	}
}

// cover has the database confirm the policy.
func (b *bench) cover(config uint64) {
	b.t.Helper()
	b.report(hubv1.Northbound, allowJobs, &hubv1.Report{Confirmed: true, NorthboundConfig: config})
}

func TestNodesAcknowledgeWhatTheNorthboundDatabaseHas(t *testing.T) {
	b := newBench(t)
	nodes := []string{hubv1.Northbound, "n1", "n2"}
	b.connect(nodes...)
	b.run(time.Second)
	b.assign(allowJobs, 1, 1, nodes...)
	b.run(100 * time.Millisecond)
	b.wantConfig(map[string]uint64{hubv1.Northbound: 0, "n1": 0, "n2": 0})
	// The nodes are done before the database's agent has counted up.
	b.confirm(allowJobs, "n1", "n2")
	b.run(4 * time.Second)
	b.says(allowJobs, "Programmed=Unknown/Unknown | Degraded=False/AsExpected | 2/2 | gen=1 | kube-ovn:northbound:NoAnswer since 1s")

	b.cover(42)
	b.run(100 * time.Millisecond)
	b.wantConfig(map[string]uint64{hubv1.Northbound: 0, "n1": 42, "n2": 42})
	b.report("n2", allowJobs, &hubv1.Report{UnmetRequired: 2, Unmet: []*hubv1.Unmet{{Reason: hubv1.ReasonUnacknowledged + ": nb_cfg is 41, want 42"}}})
	b.confirm(allowJobs, "n1")
	b.run(2 * time.Second)
	b.says(allowJobs, "Programmed=Unknown/Unknown | Degraded=False/AsExpected | 1/2 | gen=1 | n2:Inconclusive since 5s")
	if got := b.objects.objects[allowJobs].Status.LaggingNodes[0].Message; got != "the node's OVN has not acknowledged yet what the northbound database has of the policy" {
		t.Errorf("n2 lags: %q", got)
	}
	b.confirm(allowJobs, "n2")
	b.run(2 * time.Second)
	b.says(allowJobs, `Programmed=True/InForce | Degraded=False/AsExpected | 2/2 | gen=1 | last: gen=1 at 7s took "6.2s"`)

	// Another sample: nodes are told what holds, and nobody is asked anew for a
	// newer number.
	b.assign(allowJobs, 1, 2, nodes...)
	b.run(time.Second)
	b.wantConfig(map[string]uint64{hubv1.Northbound: 0, "n1": 42, "n2": 42})
	b.confirm(allowJobs, "n1", "n2")
	b.cover(57)
	b.run(time.Second)
	b.wantConfig(map[string]uint64{hubv1.Northbound: 0, "n1": 42, "n2": 42})
	b.says(allowJobs, `Programmed=True/InForce | Degraded=False/AsExpected | 2/2 | gen=1 | last: gen=1 at 7s took "6.2s"`)

	// The database loses it, and has it again.
	b.refuse(allowJobs, hubv1.Northbound)
	b.run(3 * time.Second)
	b.cover(64)
	b.run(100 * time.Millisecond)
	b.wantConfig(map[string]uint64{hubv1.Northbound: 0, "n1": 64, "n2": 64})
	b.confirm(allowJobs, "n1", "n2")
	b.run(2 * time.Second)

	// Another generation: what was acknowledged before says nothing of it.
	b.assign(allowJobs, 2, 3, nodes...)
	b.run(100 * time.Millisecond)
	b.wantConfig(map[string]uint64{hubv1.Northbound: 0, "n1": 0, "n2": 0})
	b.cover(71)
	b.confirm(allowJobs, "n1", "n2") // crosses what they are told
	b.run(100 * time.Millisecond)
	b.wantConfig(map[string]uint64{hubv1.Northbound: 0, "n1": 71, "n2": 71})
}

func TestAnElectedReplicaFindsOutAnewWhatIsAcknowledged(t *testing.T) {
	b := newBench(t)
	nodes := []string{hubv1.Northbound, "n1"}
	b.connect(nodes...)
	b.assign(allowJobs, 1, 1, nodes...)
	b.run(100 * time.Millisecond)
	b.cover(42)
	b.run(100 * time.Millisecond)
	b.confirm(allowJobs, "n1")
	b.run(2 * time.Second)
	before := len(b.objects.history[allowJobs])

	b.elect()
	b.connect(nodes...)
	b.run(time.Second)
	b.wantConfig(map[string]uint64{"n1": 0})
	b.confirm(allowJobs, "n1")
	b.run(time.Second)
	b.cover(42)
	b.run(5 * time.Second)
	b.wantConfig(map[string]uint64{"n1": 42})
	b.confirm(allowJobs, "n1")
	b.run(2 * time.Second)
	if got := b.objects.history[allowJobs][before:]; len(got) > 0 {
		t.Errorf("said %q although nothing has changed", got)
	}
}

func TestWithoutANumberNothingIsAcknowledged(t *testing.T) {
	b := newBench(t)
	nodes := []string{hubv1.Northbound, "n1"}
	b.connect(nodes...)
	b.assign(allowJobs, 1, 1, nodes...)
	b.run(100 * time.Millisecond)
	b.confirm(allowJobs, nodes...)
	b.run(2 * time.Second)
	b.wantConfig(map[string]uint64{"n1": 0})
	b.says(allowJobs, `Programmed=True/InForce | Degraded=False/AsExpected | 1/1 | gen=1 | last: gen=1 at 0s took "100ms"`)
}

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

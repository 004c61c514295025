// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/policygate/policygate/api/flow"
)

// TestOneTenantCannotCrowdOutAnother: a namespace with a thousand policies
// that name everybody, and one with a single policy, younger than all those.
func TestOneTenantCannotCrowdOutAnother(t *testing.T) {
	w := shop(t)
	for _, name := range []string{"greedy", "modest"} {
		w.namespace(name, true)
	}
	for i := range 40 {
		w.pod(fmt.Sprintf("db/own%d", i), "n2", fmt.Sprintf("10.0.2.%d", 100+i), labelled("own"))
	}
	w.pod("modest/server", "n2", "10.0.2.60", labelled("server"))
	for i := range 50 {
		w.pod(fmt.Sprintf("greedy/s%d", i), "n2", fmt.Sprintf("10.0.2.%d", 150+i), labelled("server"))
	}
	backup(w)
	for i := range 1000 {
		w.policy(fmt.Sprintf("greedy/q%d", i), "server", spec{Ingress: []in{{From: from(everywhere()), Ports: tcp(1000 + i)}}})
	}
	w.policy("modest/in", "server", spec{Ingress: []in{{From: from(everywhere()), Ports: tcp(1, 2, 3)}}})
	w.policy("db/out", "backup", spec{Egress: []out{{}}})
	w.policy("db/in", "own", spec{Ingress: []in{{From: from(pods("backup")), Ports: tcp(3306)}}})
	r := w.expect("db/backup")
	asked := map[string]int{}
	for _, e := range r.Nodes["n2"] {
		if e.Want == flow.Allowed {
			asked[e.Policy.Namespace]++
		}
	}
	if asked["db"] != 40 || asked["modest"] != 3 || asked["greedy"] < 50 {
		t.Errorf("flows asked by namespace: %v, want all 40 of db and all 3 of modest, and what is left for greedy", asked)
	}
	if r.NotAsked < 49000 {
		t.Errorf("%d flows are said not to be asked, want about 50,000", r.NotAsked)
	}
}

// TestOneTenantCannotTakeAllForeignNodes: the one with many nodes and the
// newest Pods leaves the other's in the span.
func TestOneTenantCannotTakeAllForeignNodes(t *testing.T) {
	w := shop(t)
	w.namespace("modest", true)
	w.namespace("greedy", true)
	w.pod("modest/server", "n2", "10.0.2.60", labelled("server"))
	for i := range 9 {
		node := fmt.Sprintf("m%d", i)
		w.node(node, fmt.Sprintf("10.1.%d.0/24", i))
		w.pod("greedy/"+node, node, fmt.Sprintf("10.1.%d.9", i), labelled("server"))
	}
	backup(w)
	for _, ns := range []string{"greedy", "modest"} {
		w.policy(ns+"/in", "server", spec{Ingress: []in{{From: from(everywhere()), Ports: tcp(1)}}})
	}
	o := DefaultOptions()
	o.MaxForeignNodes = 4
	r := w.expectWith("db/backup", o, nil)
	if len(r.Span) != 5 || !slices.Contains(r.Span, "n2") {
		t.Errorf("span %v, want n1, n2 and three of greedy's nodes", r.Span)
	}
}

func witnesses(r Result, node string) []string {
	var out []string
	for _, e := range r.Nodes[node] {
		if e.Witness {
			out = append(out, fmt.Sprintf("%s %s (%s)", e.Want, e.Flow, e.Why))
		}
	}
	slices.Sort(out)
	return out
}

func TestWitnesses(t *testing.T) {
	for name, tc := range map[string]struct {
		build func(w *world)
		node  string
		want  string
	}{
		"the oldest that a remote rule means asks the same server": {
			build: func(w *world) {
				w.pod("db/first", "n1", "10.0.1.40", labelled("backup"))
				w.pod("db/second", "n1", "10.0.1.41", labelled("backup"))
				backup(w)
				admitBackup(w)
			},
			node: "n2", want: "allowed tcp 10.0.1.40 -> 10.0.2.20:3306 (db/allow ingress[0])",
		},
		"nobody younger is a witness": {
			build: func(w *world) {
				backup(w)
				w.pod("db/later", "n1", "10.0.1.41", labelled("backup"))
				admitBackup(w)
			},
			node: "n2", want: "",
		},
		"an own rule's is an older pod of the node that the policy selects": {
			build: func(w *world) {
				w.pod("db/first", "n1", "10.0.1.40", labelled("backup"))
				w.pod("db/far", "n2", "10.0.2.41", labelled("backup"))
				backup(w)
				w.policy("db/out", "backup", spec{Egress: []out{{To: from(pods("mysql")), Ports: tcp(3306)}}})
			},
			node: "n1", want: "allowed tcp 10.0.1.40 -> 10.0.2.20:3306 (db/out egress[0])",
		},
		"one that another rule refuses is none": {
			build: func(w *world) {
				w.pod("db/first", "n2", "10.0.2.40", labelled("backup"), func(p *corev1.Pod) { p.Labels["closed"] = "yes" })
				backup(w)
				admitBackup(w)
				q := w.policy("db/closed", "", spec{PolicyTypes: policyTypes("Egress")})
				q.Spec.PodSelector.MatchLabels = map[string]string{"closed": "yes"}
			},
			node: "n2", want: "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := shop(t)
			tc.build(w)
			r := w.expectWith("db/backup", DefaultOptions(), func(s *Subject) { s.Witnesses = true })
			if got := strings.Join(witnesses(r, tc.node), "\n"); got != tc.want {
				t.Errorf("witnesses on %s: %q, want %q", tc.node, got, tc.want)
			}
			if got := witnesses(w.expect("db/backup"), tc.node); len(got) != 0 {
				t.Errorf("witnesses %v without being asked for, want none", got)
			}
		})
	}
}

func TestWitnessesTakeWhatTheBudgetLeaves(t *testing.T) {
	w := shop(t)
	w.pod("db/first", "n1", "10.0.1.40", labelled("backup"))
	backup(w)
	admitBackup(w)
	full := w.expect("db/backup")
	o := DefaultOptions()
	o.Budget = 0
	for _, list := range full.Nodes {
		o.Budget += len(list)
	}
	r := w.expectWith("db/backup", o, func(s *Subject) { s.Witnesses = true })
	if got := witnesses(r, "n2"); len(got) != 0 || len(r.Nodes["n2"]) != len(full.Nodes["n2"]) {
		t.Errorf("n2 is asked %v, want what is asked without witnesses", lines(r.Nodes["n2"]))
	}
}

func TestAnExpectationNamesThePolicysGeneration(t *testing.T) {
	w := shop(t)
	backup(w)
	admitBackup(w)
	w.policies[0].Generation = 7
	for _, e := range w.expect("db/backup").Nodes["n2"] {
		if e.Generation != 7 {
			t.Errorf("%s has generation %d, want 7", e.Flow, e.Generation)
		}
	}
}

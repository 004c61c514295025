// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package status

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/api/v1alpha1"
)

var update = flag.Bool("update", false, "write the golden files anew")

func noon() time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) }

func ago(d time.Duration) metav1.Time { return metav1.Time{Time: noon().Add(-d)} }

// policy returns a status with the condition Programmed; change may be nil.
func policy(name string, programmed metav1.ConditionStatus, reason string, change func(*v1alpha1.PolicyStatus)) v1alpha1.PolicyStatus {
	p := v1alpha1.PolicyStatus{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, CreationTimestamp: ago(72 * time.Hour)},
		Status: v1alpha1.PolicyStatusStatus{
			Conditions: []metav1.Condition{
				{Type: v1alpha1.PolicyProgrammed, Status: programmed, Reason: reason, Message: "what Programmed says", LastTransitionTime: ago(12 * time.Second)},
				{Type: v1alpha1.PolicyDegraded, Status: metav1.ConditionFalse, Reason: v1alpha1.PolicyReasonAsExpected, LastTransitionTime: ago(time.Hour)},
			},
			ObservedGeneration: new(int64(3)),
			Nodes:              v1alpha1.NodeCounts{Summary: "3/3", Desired: new(int32(3)), Programmed: new(int32(3))},
			Pods:               v1alpha1.PodCounts{Selected: new(int32(12)), Gated: new(int32(4)), Pending: new(int32(0))},
			LastProgrammed:     v1alpha1.LastProgrammed{Time: new(ago(10 * time.Minute)), Generation: new(int64(3)), Took: "412ms"},
		},
	}
	if change != nil {
		change(&p)
	}
	return p
}

func inForce() v1alpha1.PolicyStatus {
	return policy("allow-web", metav1.ConditionTrue, v1alpha1.PolicyReasonInForce, nil)
}

func lagging() v1alpha1.PolicyStatus {
	return policy("allow-jobs", metav1.ConditionFalse, v1alpha1.PolicyReasonLagging, func(p *v1alpha1.PolicyStatus) {
		p.Status.Nodes = v1alpha1.NodeCounts{Summary: "1/7", Desired: new(int32(7)), Programmed: new(int32(1))}
		p.Status.Pods.Pending = new(int32(2))
		p.Status.LastProgrammed = v1alpha1.LastProgrammed{Time: new(ago(10 * time.Minute)), Generation: new(int64(2))}
		p.Status.LaggingNodes = []v1alpha1.LaggingNode{
			{Name: "n2", Reason: v1alpha1.LagNotAdmitting, Message: "10.0.1.5 to 10.0.2.7, tcp 3306, would be refused", Since: new(ago(12 * time.Second))},
			{Name: "n3", Reason: v1alpha1.LagNotIsolating, Since: new(ago(3 * time.Minute))},
			{Name: "n4", Reason: v1alpha1.LagNoAgent},
		}
		p.Status.LaggingNodesLeftOut = new(int32(3))
	})
}

// unwritten returns one that OVN's northbound database lags behind with.
func unwritten(reason, message string) v1alpha1.PolicyStatus {
	return policy("unwritten", metav1.ConditionFalse, v1alpha1.PolicyReasonLagging, func(p *v1alpha1.PolicyStatus) {
		p.Status.LaggingNodes = []v1alpha1.LaggingNode{{Name: "kube-ovn:northbound", Reason: reason, Message: message, Since: new(ago(12 * time.Second))}}
	})
}

func deviating() v1alpha1.PolicyStatus {
	return policy("named-ports", metav1.ConditionTrue, v1alpha1.PolicyReasonInForce, func(p *v1alpha1.PolicyStatus) {
		p.Status.Conditions[1] = metav1.Condition{
			Type: v1alpha1.PolicyDegraded, Status: metav1.ConditionTrue, Reason: v1alpha1.PolicyReasonEngineDeviates,
			Message: "what Degraded says", LastTransitionTime: ago(time.Hour),
		}
		p.Status.Deviations = []v1alpha1.Deviation{
			{Message: "ingress[0]: the named port http", Nodes: []string{"n1", "n2"}, NodesLeftOut: new(int32(4))},
			{Message: "egress[1]"},
		}
	})
}

func unknown() v1alpha1.PolicyStatus {
	return policy("odd", metav1.ConditionUnknown, v1alpha1.PolicyReasonNotUnderstood, nil)
}

func empty() v1alpha1.PolicyStatus {
	return v1alpha1.PolicyStatus{ObjectMeta: metav1.ObjectMeta{Namespace: "web", Name: "fresh"}}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func TestTable(t *testing.T) {
	all := []v1alpha1.PolicyStatus{lagging(), inForce(), deviating(), unknown(), empty()}
	for name, tc := range map[string]struct {
		items   []v1alpha1.PolicyStatus
		options Options
	}{
		"table-narrow":     {all, Options{}},
		"table-namespaces": {all, Options{Namespaces: true}},
		"table-wide":       {all, Options{Wide: true}},
		"table-empty":      {nil, Options{}},
		"table-northbound": {[]v1alpha1.PolicyStatus{unwritten(v1alpha1.LagNotIsolating, "in words"), inForce()}, Options{}},
	} {
		t.Run(name, func(t *testing.T) {
			tc.options.Now = noon()
			var got bytes.Buffer
			if err := Table(&got, tc.items, tc.options); err != nil {
				t.Fatal(err)
			}
			golden(t, name, got.String())
		})
	}
}

func TestWords(t *testing.T) {
	drifted := policy("drifted", metav1.ConditionFalse, v1alpha1.PolicyReasonDrifted, func(p *v1alpha1.PolicyStatus) {
		p.Status.Nodes = v1alpha1.NodeCounts{}
		p.Status.LaggingNodes = []v1alpha1.LaggingNode{{Name: "n2", Reason: "Newer", Since: new(ago(time.Second))}}
	})
	noPods := policy("nobody", metav1.ConditionTrue, v1alpha1.PolicyReasonNoPods, nil)
	waiting := policy("waiting", metav1.ConditionUnknown, v1alpha1.PolicyReasonUnknown, nil)
	one := policy("one", metav1.ConditionTrue, v1alpha1.PolicyReasonInForce, func(p *v1alpha1.PolicyStatus) { p.Status.Nodes.Desired = new(int32(1)) })
	for name, tc := range map[string]struct {
		status     v1alpha1.PolicyStatus
		generation int64
	}{
		"words-in-force":       {inForce(), 3},
		"words-northbound":     {unwritten(v1alpha1.LagNotIsolating, "in OVN's northbound database: connections that the policy does not allow would pass"), 3},
		"words-no-northbound":  {unwritten(v1alpha1.LagNoAgent, "no agent is connected that sees OVN's northbound database"), 3},
		"words-one-node":       {one, 0},
		"words-lagging":        {lagging(), 4},
		"words-drifted":        {drifted, 3},
		"words-deviating":      {deviating(), 3},
		"words-not-understood": {unknown(), 3},
		"words-unknown":        {waiting, 3},
		"words-no-pods":        {noPods, 3},
		"words-fresh":          {empty(), 1},
	} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			if err := Words(&got, &tc.status, tc.generation, noon()); err != nil {
				t.Fatal(err)
			}
			golden(t, name, got.String())
		})
	}
}

func TestExitStatus(t *testing.T) {
	for name, tc := range map[string]struct {
		items []v1alpha1.PolicyStatus
		want  int
	}{
		"none":                        {nil, 0},
		"all in force":                {[]v1alpha1.PolicyStatus{inForce(), deviating()}, 0},
		"one is not":                  {[]v1alpha1.PolicyStatus{unknown(), lagging(), inForce()}, 2},
		"one cannot be told":          {[]v1alpha1.PolicyStatus{inForce(), unknown()}, 3},
		"nothing was said of one yet": {[]v1alpha1.PolicyStatus{empty(), inForce()}, 3},
		"a status that is no status":  {[]v1alpha1.PolicyStatus{policy("x", "Sure", "", nil)}, 3},
	} {
		if got := ExitStatus(tc.items); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

func TestObjectsCannotWriteToTheTerminal(t *testing.T) {
	p := lagging()
	p.Status.LaggingNodes[0].Message = "\x1b]0;x\a\nshop   fine   True"
	p.Status.Nodes.Summary = "1\t\x1b"
	var table, words bytes.Buffer
	if err := Table(&table, []v1alpha1.PolicyStatus{p}, Options{Now: noon()}); err != nil {
		t.Fatal(err)
	}
	if err := Words(&words, &p, 0, noon()); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{table.String(), words.String()} {
		if strings.ContainsAny(text, "\x1b\a") || strings.Contains(text, "\nshop   fine") {
			t.Errorf("%q", text)
		}
	}
}

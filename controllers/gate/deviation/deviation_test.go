// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package deviation

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

func rule(namespace, name string, generation int64) Rule {
	return Rule{
		Policy:     types.NamespacedName{Namespace: namespace, Name: name},
		Generation: generation,
		Why:        namespace + "/" + name + " ingress[0]",
	}
}

func TestWhatIsExcused(t *testing.T) {
	allow := rule("shop", "allow", 3)
	cases := map[string]struct {
		steps func(t *Table)
		// asked and pods are what is asked of on n1, allow and shop if empty.
		asked Rule
		pods  string
		want  Extent
	}{
		"nothing is, as long as nothing was learned": {
			steps: func(*Table) {},
			want:  None,
		},
		"what was learned is": {
			steps: func(t *Table) { t.Learn("n1", allow, "shop", Entire) },
			want:  Entire,
		},
		"what Pods of the policy's namespace have shown is, for all": {
			steps: func(t *Table) { t.Learn("n1", allow, "shop", Entire) },
			pods:  "other",
			want:  Entire,
		},
		"what Pods of another namespace have shown is, for them": {
			steps: func(t *Table) { t.Learn("n1", allow, "other", Entire) },
			pods:  "other",
			want:  Entire,
		},
		"what Pods of another namespace have shown is not for the policy's own": {
			steps: func(t *Table) { t.Learn("n1", allow, "other", Entire) },
			want:  None,
		},
		"what Pods of another namespace have shown is not for a third": {
			steps: func(t *Table) { t.Learn("n1", allow, "other", Entire) },
			pods:  "third",
			want:  None,
		},
		"another node is not": {
			steps: func(t *Table) { t.Learn("n2", allow, "shop", Entire) },
			want:  None,
		},
		"another rule of the policy is not": {
			steps: func(t *Table) { t.Learn("n1", allow, "shop", Entire) },
			asked: Rule{allow.Policy, 3, "shop/allow ingress[1]"},
			want:  None,
		},
		"another generation of the policy is not": {
			steps: func(t *Table) { t.Learn("n1", allow, "shop", Entire) },
			asked: rule("shop", "allow", 4),
			want:  None,
		},
		"a former generation is forgotten with the first that is learned of a newer one": {
			steps: func(t *Table) {
				t.Learn("n1", allow, "shop", Entire)
				t.Learn("n2", rule("shop", "allow", 4), "shop", Entire)
			},
			want: None,
		},
		"a lesser extent takes nothing back": {
			steps: func(t *Table) {
				t.Learn("n1", allow, "shop", Entire)
				t.Learn("n1", allow, "shop", Advisory)
			},
			want: Entire,
		},
		"a greater extent counts": {
			steps: func(t *Table) {
				t.Learn("n1", allow, "shop", Advisory)
				t.Learn("n1", allow, "shop", Entire)
			},
			want: Entire,
		},
		"the greater extent counts of one's own and all Pods'": {
			steps: func(t *Table) {
				t.Learn("n1", allow, "shop", Advisory)
				t.Learn("n1", allow, "other", Entire)
			},
			pods: "other",
			want: Entire,
		},
		"nothing is learned of no extent": {
			steps: func(t *Table) { t.Learn("n1", allow, "shop", None) },
			want:  None,
		},
		"what was seen to be realized is not": {
			steps: func(t *Table) {
				t.Learn("n1", allow, "other", Entire)
				t.Unlearn("n1", allow)
			},
			pods: "other",
			want: None,
		},
		"what was seen to be realized elsewhere still is": {
			steps: func(t *Table) {
				t.Learn("n1", allow, "shop", Entire)
				t.Unlearn("n2", allow)
			},
			want: Entire,
		},
		"a policy that is gone is forgotten": {
			steps: func(t *Table) {
				t.Learn("n1", allow, "shop", Entire)
				t.ForgetPolicy(allow.Policy)
			},
			want: None,
		},
		"a node that is gone is forgotten": {
			steps: func(t *Table) {
				t.Learn("n1", allow, "shop", Entire)
				t.ForgetNode("n1")
			},
			want: None,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			table := NewTable(10)
			tc.steps(table)
			asked, pods := allow, "shop"
			if tc.asked.Why != "" {
				asked = tc.asked
			}
			if tc.pods != "" {
				pods = tc.pods
			}
			if got := table.Extent("n1", asked, pods); got != tc.want {
				t.Errorf("extent = %v, want %v", got, tc.want)
			}
			if table.Len() == 0 && (len(table.nodes) > 0 || len(table.policies) > 0 || len(table.spaces) > 0) {
				t.Error("an empty table keeps something")
			}
		})
	}
}

func TestAFullTableForgetsTheOldestOfWhoFilledIt(t *testing.T) {
	table := NewTable(10)
	table.Learn("n1", rule("shop", "allow", 1), "shop", Entire)
	for i := range 100 {
		table.Learn("n1", rule("crowd", fmt.Sprint(i), 1), "crowd", Entire)
	}
	if table.Len() != 10 {
		t.Errorf("%d are kept, want 10", table.Len())
	}
	if table.Extent("n1", rule("shop", "allow", 1), "shop") != Entire {
		t.Error("what another namespace learned was forgotten for the crowd's")
	}
	if table.Extent("n1", rule("crowd", "99", 1), "crowd") != Entire {
		t.Error("the newest was forgotten")
	}
	if table.Extent("n1", rule("crowd", "90", 1), "crowd") != None {
		t.Error("the oldest was kept")
	}
}

func TestOnlyNewsIsNews(t *testing.T) {
	table := NewTable(10)
	allow := rule("shop", "allow", 1)
	for i, step := range []struct {
		extent Extent
		want   bool
	}{{Advisory, true}, {Advisory, false}, {Entire, true}, {Entire, false}, {Advisory, false}} {
		if got := table.Learn("n1", allow, "shop", step.extent); got != step.want {
			t.Errorf("%d: news = %v, want %v", i, got, step.want)
		}
	}
	if !table.Unlearn("n1", allow) || table.Unlearn("n1", allow) {
		t.Error("a rule is unlearned once")
	}
}

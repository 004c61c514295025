// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"go/parser"
	"go/token"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func parse(t *testing.T, source string) ([]rule, error) {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, "x.go", "package x\n\n"+source+"\n", parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return readFile(files, file)
}

func TestReadFile(t *testing.T) {
	const pods = `// +kubebuilder:rbac:groups="",resources=pods,verbs=list;watch,roleName=r`
	tests := map[string]struct {
		source  string
		want    []rule
		wantErr string
	}{
		"a file without markers": {source: "// kubebuilder is not used here.\nvar a int"},
		"what stands above a marker is its reason": {
			source: "// Reads them,\n// all of them.\n" + pods + "\n// Writes them.\n" +
				"// +kubebuilder:rbac:groups=apps;batch,resources=jobs/status,resourceNames=a;b,verbs=patch,namespace=policygate-system,roleName=r",
			want: []rule{
				{role: "r", groups: []string{""}, resources: []string{"pods"}, verbs: []string{"list", "watch"}, reasons: []string{"Reads them,", "all of them."}},
				{
					role: "r", namespace: namespace, groups: []string{"apps", "batch"}, resources: []string{"jobs/status"},
					resourceNames: []string{"a", "b"}, verbs: []string{"patch"}, reasons: []string{"Writes them."},
				},
			},
		},
		"no reason":             {source: pods, wantErr: "x.go:3:1: want what the right is for"},
		"one reason for two":    {source: "// Reads them.\n" + pods + "\n" + pods, wantErr: "x.go:5:1: want what the right is for"},
		"no role":               {source: "// R.\n// +kubebuilder:rbac:groups=a,resources=b,verbs=get", wantErr: "no roleName"},
		"no verb":               {source: "// R.\n// +kubebuilder:rbac:groups=a,resources=b,roleName=r", wantErr: "want groups, resources and verbs"},
		"all verbs":             {source: "// R.\n// +kubebuilder:rbac:groups=a,resources=b,verbs=*,roleName=r", wantErr: "not *"},
		"a foreign namespace":   {source: "// R.\n// +kubebuilder:rbac:groups=a,resources=b,verbs=get,namespace=kube-system,roleName=r", wantErr: `namespace "kube-system"`},
		"an unknown argument":   {source: "// R.\n// +kubebuilder:rbac:groups=a,urls=/metrics,verbs=get,roleName=r", wantErr: `argument "urls"`},
		"an argument of nobody": {source: "// R.\n// +kubebuilder:rbac:groups", wantErr: `argument "groups": want name=value`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parse(t, tc.source)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("error %v, want one that says %q", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(rule{})); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWrite(t *testing.T) {
	rules := []rule{
		{role: "r", groups: []string{""}, resources: []string{"pods"}, verbs: []string{"watch", "list"}, reasons: []string{"Looks."}},
		{role: "r", groups: []string{""}, resources: []string{"pods"}, verbs: []string{"get", "list"}, reasons: []string{"Asks."}},
		{role: "r", namespace: namespace, groups: []string{""}, resources: []string{"secrets"}, resourceNames: []string{"s"}, verbs: []string{"get"}, reasons: []string{"Knows."}},
	}
	files, err := write([]role{{name: "r", account: "a", file: "f.yaml"}}, rules)
	if err != nil {
		t.Fatal(err)
	}
	want := head + `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: r
rules:
# Looks.
# Asks.
- apiGroups: [""]
  resources: ["pods"]
  verbs: ["get", "list", "watch"]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: r
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: r
subjects:
- kind: ServiceAccount
  name: a
  namespace: policygate-system
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: r
  namespace: policygate-system
rules:
# Knows.
- apiGroups: [""]
  resources: ["secrets"]
  resourceNames: ["s"]
  verbs: ["get"]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: r
  namespace: policygate-system
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: r
subjects:
- kind: ServiceAccount
  name: a
  namespace: policygate-system
`
	if diff := cmp.Diff(want, string(files["f.yaml"])); diff != "" {
		t.Errorf("file (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"watch", "list"}, rules[0].verbs); diff != "" {
		t.Errorf("what was passed in was changed (-want +got):\n%s", diff)
	}
}

func TestWriteRefusesWhatNobodyWouldBind(t *testing.T) {
	roles := []role{{name: "r", account: "a", file: "f.yaml"}}
	_, err := write(roles, []rule{{role: "misspelt", groups: []string{""}, resources: []string{"pods"}, verbs: []string{"list"}}})
	for _, want := range []string{`roleName "misspelt"`, `role "r": no marker names it`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one that says %s", err, want)
		}
	}
}

func TestTheRepositorysRolesAreUpToDate(t *testing.T) {
	if err := generate("../..", true); err != nil {
		t.Error(err)
	}
	rules, err := readTree("../..")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, r := range generated() {
		named[r.account] = true
	}
	if len(rules) == 0 || len(named) != 6 {
		t.Errorf("%d rules for the accounts %q, want rules for six", len(rules), slices.Sorted(maps.Keys(named)))
	}
}

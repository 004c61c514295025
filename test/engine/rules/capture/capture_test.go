// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFilterNamesChainsByWhatTheyStandFor(t *testing.T) {
	const template = `*filter
:KUBE-NWPLCY-COMMON - [0:0]
:KUBE-NWPLCY-@1 - [0:0]
:KUBE-NWPLCY-@2 - [0:0]
:KUBE-NWPLCY-@3 - [0:0]
:KUBE-POD-FW-@4 - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
-A KUBE-NWPLCY-COMMON -j ACCEPT
-A KUBE-NWPLCY-@2 -m comment --comment "a/used ingress any" -j RETURN
-A KUBE-POD-FW-@4 -m comment --comment "common netpol rules" -j KUBE-NWPLCY-COMMON
-A KUBE-POD-FW-@4 -m comment --comment "a/deny policy" -j KUBE-NWPLCY-@1
-A KUBE-ROUTER-FORWARD -d 10.0.0.1/32 -m comment --comment "a/pod in" -j KUBE-POD-FW-@4
COMMIT
`
	want := map[string][]string{
		"KUBE-NWPLCY-COMMON":     {"-j ACCEPT"},
		"policy a/deny":          {},
		"policy a/used":          {`-m comment --comment "a/used ingress any" -j RETURN`},
		"unreferenced and empty": {},
		"pod a/pod": {
			`-m comment --comment "common netpol rules" -j KUBE-NWPLCY-COMMON`,
			`-m comment --comment "a/deny policy" -j <policy a/deny>`,
		},
		"KUBE-ROUTER-FORWARD": {`-d 10.0.0.1/32 -m comment --comment "a/pod in" -j <pod a/pod>`},
	}
	for _, version := range []string{"X", "Y"} {
		got, err := Filter(strings.ReplaceAll(template, "@", version))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("version %s (-want +got):\n%s", version, diff)
		}
	}
}

func TestBadInputIsNamed(t *testing.T) {
	tests := map[string]struct {
		read func() error
		want string
	}{
		"a rule of a chain that is not declared": {
			read: func() error { _, err := Filter("*filter\n-A MINE -j DROP\n"); return err },
			want: `chain "MINE"`,
		},
		"two chains of one policy": {
			read: func() error {
				_, err := Filter(":KUBE-NWPLCY-1 -\n:KUBE-NWPLCY-2 -\n-A KUBE-NWPLCY-1 --comment \"a/b x\"\n-A KUBE-NWPLCY-2 --comment \"a/b x\"\n")
				return err
			},
			want: `two chains are "policy a/b"`,
		},
		"a member of no set": {
			read: func() error { _, err := Sets("add x 10.0.0.1\n"); return err },
			want: `"add x 10.0.0.1"`,
		},
		"an object of another kind": {
			read: func() error { _, err := ParseObjects([]byte("kind: Node\n---\nkind: Service\n")); return err },
			want: `document 2: kind "Service"`,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if err := tc.read(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
		})
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package startup

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// component is where the configuration is.
var component = filepath.Join("..", "..", "config", "startup-taint")

// A field that is not compared could be changed by the manager's token, so a
// Kubernetes release that adds one must fail here first.
func TestNodeWritersNamesEveryField(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(component, "node_writers.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var policy admissionregistrationv1.ValidatingAdmissionPolicy
	document, _, _ := bytes.Cut(text, []byte("\n---\n"))
	if err := yaml.UnmarshalStrict(document, &policy); err != nil {
		t.Fatal(err)
	}
	compared := map[string]bool{}
	for _, v := range policy.Spec.Validations {
		compared[v.Expression] = true
	}
	exempt := map[string]string{
		"metadata.managedFields":   "the server's record of this very write",
		"metadata.resourceVersion": "the server's, and a precondition only",
		"metadata.selfLink":        "never set since Kubernetes 1.20",
		"spec.taints":              "compared without our own",
	}
	for path, kind := range map[string]reflect.Type{
		"metadata": reflect.TypeFor[metav1.ObjectMeta](),
		"spec":     reflect.TypeFor[corev1.NodeSpec](),
	} {
		for field := range kind.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			full := path + "." + name
			want := "object." + path + ".?" + name + " == oldObject." + path + ".?" + name
			if compared[want] == (exempt[full] != "") {
				t.Errorf("%s: validation %q present: %t, exempt: %q", full, want, compared[want], exempt[full])
			}
		}
	}
}

// What is shipped gives one name to the flag, the toleration and the policy.
func TestTheComponentNamesTheDefaultKey(t *testing.T) {
	for file, want := range map[string]string{
		"kustomization.yaml": "--startup-taint=" + DefaultKey + "\n",
		"node_writers.yaml":  `t.key != "` + DefaultKey + `"`,
	} {
		text, err := os.ReadFile(filepath.Join(component, file))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), want) {
			t.Errorf("%s has no %q", file, want)
		}
	}
}

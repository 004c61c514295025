// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

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

// read returns the policy of a file.
func read(t *testing.T, name string) *admissionregistrationv1.ValidatingAdmissionPolicy {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var policy admissionregistrationv1.ValidatingAdmissionPolicy
	document, _, _ := bytes.Cut(text, []byte("\n---\n"))
	if err := yaml.UnmarshalStrict(document, &policy); err != nil {
		t.Fatal(err)
	}
	return &policy
}

// A field that no validation names could be written by any agent's token, or by
// the manager's, so a Kubernetes release that adds one must fail here first.
func TestWritersNameEveryField(t *testing.T) {
	for name, tc := range map[string]struct {
		file  string
		kinds map[string]reflect.Type
		// exempt are fields that are compared in their own way, that the server
		// alone sets, or that no client can send, beside those of every object.
		exempt map[string]string
	}{
		"of Pods' status": {
			file: "status_writers.yaml",
			kinds: map[string]reflect.Type{
				"metadata": reflect.TypeFor[metav1.ObjectMeta](),
				"status":   reflect.TypeFor[corev1.PodStatus](),
			},
			exempt: map[string]string{
				"metadata.annotations": "compared key by key",
				"status.conditions":    "compared without our own",
			},
		},
		"of nodes": {
			file: filepath.Join("..", "startup-taint", "node_writers.yaml"),
			kinds: map[string]reflect.Type{
				"metadata": reflect.TypeFor[metav1.ObjectMeta](),
				"spec":     reflect.TypeFor[corev1.NodeSpec](),
			},
			exempt: map[string]string{"spec.taints": "compared without our own"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc.exempt["metadata.managedFields"] = "the server's record of this very write; who resets it gains no right"
			tc.exempt["metadata.resourceVersion"] = "the server's, and a precondition only"
			tc.exempt["metadata.selfLink"] = "never set since Kubernetes 1.20"
			compared := map[string]bool{}
			for _, v := range read(t, tc.file).Spec.Validations {
				compared[v.Expression] = true
			}
			for path, kind := range tc.kinds {
				for field := range kind.Fields() {
					name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
					full := path + "." + name
					want := "object." + path + ".?" + name + " == oldObject." + path + ".?" + name
					if compared[want] == (tc.exempt[full] != "") {
						t.Errorf("%s: validation %q present: %t, exempt: %q", full, want, compared[want], tc.exempt[full])
					}
				}
			}
		})
	}
}

// A field that is not compared could be changed by the manager's token, and has
// the API server send it what it is not meant to see.
func TestWebhookWritersNamesEveryField(t *testing.T) {
	var compared []string
	for _, v := range read(t, "webhook_writers.yaml").Spec.Validations {
		compared = append(compared, strings.Fields(v.Expression)...)
	}
	text := strings.NewReplacer("(", " ", ")", " ").Replace(strings.Join(compared, " ")) + " "
	exempt := map[string]string{
		".name":                  "what webhooks are told apart by; their list is compared",
		".clientConfig":          "compared field by field",
		".clientConfig.caBundle": "the manager's to write",
	}
	for path, kind := range map[string]reflect.Type{
		"":              reflect.TypeFor[admissionregistrationv1.MutatingWebhook](),
		".clientConfig": reflect.TypeFor[admissionregistrationv1.WebhookClientConfig](),
	} {
		for field := range kind.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			want := " w" + path + ".?" + name + " == o" + path + ".?" + name + " "
			if full := path + "." + name; strings.Contains(text, want) == (exempt[full] != "") {
				t.Errorf("%s: comparison %q present: %t, exempt: %q", full, want, strings.Contains(text, want), exempt[full])
			}
		}
	}
}

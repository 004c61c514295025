// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/yaml"

	"github.com/policygate/policygate/controllers/gate"
	"github.com/policygate/policygate/test/controlplane"
)

// TestAPIServer writes warnings to a real API server, which alone knows what an
// Event may hold, with the rights that the manager is shipped with, and finds
// them as kubectl describe does.
func TestAPIServer(t *testing.T) {
	config := controlplane.Start(t).Config
	admin, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	_, err = admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	grant(t, admin)
	asManager := rest.CopyConfig(config)
	asManager.Impersonate.UserName = "system:serviceaccount:policygate-system:policygate-manager"
	mgr, err := manager.New(asManager, manager.Options{Metrics: metricsserver.Options{BindAddress: "0"}})
	if err != nil {
		t.Fatal(err)
	}
	recorder := eventRecorder{mgr.GetEventRecorder(reportingController)}

	note := strings.Repeat("x", 1024)
	for _, object := range []corev1.ObjectReference{
		{APIVersion: "v1", Kind: "Pod", Namespace: "shop", Name: strings.Repeat("p", 253), UID: "1"},
		{APIVersion: "v1", Kind: "Node", Name: "n1", UID: "n1"},
	} {
		recorder.Warn(gate.Warning{Object: object, Reason: "Timeout", Note: note})
		about := metav1.ListOptions{FieldSelector: fields.Set{
			"involvedObject.kind": object.Kind, "involvedObject.name": object.Name,
			"involvedObject.namespace": object.Namespace, "involvedObject.uid": string(object.UID),
		}.String()}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			list, err := admin.CoreV1().Events(object.Namespace).List(t.Context(), about)
			if err != nil {
				t.Fatal(err)
			}
			if len(list.Items) == 1 {
				if got := list.Items[0]; got.Reason != "Timeout" || got.Type != "Warning" || got.Message != note {
					t.Errorf("event of the %s: %v", object.Kind, got)
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d Events of the %s, want one", len(list.Items), object.Kind)
			}
		}
	}
}

// grant gives the manager its cluster role.
func grant(t *testing.T, admin kubernetes.Interface) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "config", "rbac", "manager_role.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatal(err)
		}
		switch kind.Kind {
		case "ClusterRole":
			var role rbacv1.ClusterRole
			if err = yaml.UnmarshalStrict([]byte(document), &role); err == nil {
				_, err = admin.RbacV1().ClusterRoles().Create(t.Context(), &role, metav1.CreateOptions{})
			}
		case "ClusterRoleBinding":
			var binding rbacv1.ClusterRoleBinding
			if err = yaml.UnmarshalStrict([]byte(document), &binding); err == nil {
				_, err = admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &binding, metav1.CreateOptions{})
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

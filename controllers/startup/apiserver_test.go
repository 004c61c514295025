// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package startup

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/policygate/policygate/controllers/hub"
	"github.com/policygate/policygate/test/controlplane"
)

// TestAPIServer has a real API server, with the rights and the policy that are
// shipped, judge what the manager may do to a node.
func TestAPIServer(t *testing.T) {
	config := controlplane.Start(t).Config
	admin, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"role.yaml", "node_writers.yaml", filepath.Join("..", "rbac", "manager_role.yaml")} {
		apply(t, admin, filepath.Join(component, file))
	}
	asManager := rest.CopyConfig(config)
	asManager.Impersonate.UserName = "system:serviceaccount:policygate-system:policygate-manager"
	manager, err := client.New(asManager, client.Options{})
	if err != nil {
		t.Fatal(err)
	}

	node := tainting(another, ours, noEntry)
	node.UID = ""
	node.Labels = map[string]string{"zone": "a"}
	if err := admin.Create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	node.Status.NodeInfo = corev1.NodeSystemInfo{BootID: "b1"}
	if err := admin.Status().Update(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	refused(t, manager, node)

	taints := New(Options{Key: DefaultKey, Nodes: nodesOf{reads: admin, writes: manager}, Clock: clock.RealClock{}, Log: testr.New(t)})
	if err := taints.review(t.Context(), node.Name); err != nil {
		t.Errorf("without an agent: %v", err)
	}
	want := node.DeepCopy()
	if got := read(t, admin, node.Name); len(got.Spec.Taints) != len(node.Spec.Taints) {
		t.Errorf("without an agent the taints are %v", got.Spec.Taints)
	}
	taints.Connected(node.Name, hub.Hello{BootID: "b1"})
	if err := taints.review(t.Context(), node.Name); err != nil {
		t.Fatal(err)
	}
	// The API server gave it another of its own.
	want.Spec.Taints = slices.DeleteFunc(want.Spec.Taints, func(t corev1.Taint) bool { return t.Key == DefaultKey })
	got := read(t, admin, node.Name)
	if diff := cmp.Diff(want.Spec, got.Spec); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want.Labels, got.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}

	// What was read is of another node by now.
	stale := node.DeepCopy()
	stale.UID = "another"
	patch, err := removal(stale, DefaultKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := (ClientNodes{Client: manager}).Patch(t.Context(), node.Name, patch); !apierrors.IsInvalid(err) {
		t.Errorf("a patch for another node: %v, want it refused as invalid", err)
	}
}

// refused tries what the policy has to forbid.
func refused(t *testing.T, manager client.Client, node *corev1.Node) {
	t.Helper()
	const only = "the manager may only remove the taint " + DefaultKey
	remove := `{"op":"remove","path":"/spec/taints/2"},{"op":"remove","path":"/spec/taints/1"}`
	for what, tc := range map[string]struct{ patch, want string }{
		"another taint":                {`{"op":"remove","path":"/spec/taints/0"},` + remove, only},
		"one of two":                   {`{"op":"remove","path":"/spec/taints/2"}`, only},
		"a new taint":                  {remove + `,{"op":"add","path":"/spec/taints/-","value":{"key":"x","effect":"NoExecute"}}`, only},
		"another effect":               {`{"op":"replace","path":"/spec/taints/1/effect","value":"PreferNoSchedule"}`, only},
		"cordoning":                    {remove + `,{"op":"add","path":"/spec/unschedulable","value":true}`, "spec.unschedulable may not be written"},
		"a label":                      {remove + `,{"op":"add","path":"/metadata/labels/pool","value":"x"}`, "metadata.labels may not be written"},
		"an annotation":                {remove + `,{"op":"add","path":"/metadata/annotations","value":{"a":"b"}}`, "metadata.annotations may not be written"},
		"a finalizer":                  {remove + `,{"op":"add","path":"/metadata/finalizers","value":["example.org/x"]}`, "metadata.finalizers may not be written"},
		"the cloud's name of the node": {remove + `,{"op":"add","path":"/spec/providerID","value":"x"}`, "spec.providerID may not be written"},
	} {
		patch := client.RawPatch(types.JSONPatchType, fmt.Appendf(nil, "[%s]", tc.patch))
		// A policy takes effect a moment after it was made.
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			err := manager.Patch(t.Context(), node.DeepCopy(), patch, client.DryRunAll)
			if err != nil && strings.Contains(err.Error(), tc.want) {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("%s: %v, want %q", what, err, tc.want)
				break
			}
		}
	}
	if err := manager.Delete(t.Context(), node.DeepCopy()); !apierrors.IsForbidden(err) {
		t.Errorf("deleting the node: %v, want it forbidden", err)
	}
	ready := client.RawPatch(types.MergePatchType, []byte(`{"status":{"phase":"Running"}}`))
	if err := manager.Status().Patch(t.Context(), node.DeepCopy(), ready); !apierrors.IsForbidden(err) {
		t.Errorf("the node's status: %v, want it forbidden", err)
	}
}

// nodesOf reads as the manager's cache does, past the right to get.
type nodesOf struct{ reads, writes client.Client }

func (n nodesOf) Node(ctx context.Context, name string) (*corev1.Node, error) {
	return ClientNodes{Client: n.reads}.Node(ctx, name)
}

func (n nodesOf) Patch(ctx context.Context, name string, patch []byte) error {
	return ClientNodes{Client: n.writes}.Patch(ctx, name, patch)
}

func read(t *testing.T, c client.Client, name string) *corev1.Node {
	t.Helper()
	n, err := ClientNodes{Client: c}.Node(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// apply creates the cluster's objects of a file; those of a namespace are not
// needed.
func apply(t *testing.T, c client.Client, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		object := &unstructured.Unstructured{}
		if decoder.Decode(object) != nil {
			return
		}
		if object.GetNamespace() != "" {
			continue
		}
		if err := c.Create(t.Context(), object); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
}

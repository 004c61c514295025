// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package policy

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/policygate/policygate/test/controlplane"
)

const (
	manager = "system:serviceaccount:policygate-system:policygate-manager"
	agent   = "system:serviceaccount:policygate-system:policygate-agent"
)

// server is an API server that has the policies. Its users may do everything,
// so that what is refused is refused by a policy.
type server struct {
	config *rest.Config
	admin  kubernetes.Interface
}

func start(tb testing.TB) server {
	tb.Helper()
	config := controlplane.Start(tb).Config
	config.QPS = -1
	s := server{config: config}
	s.admin = s.as(tb, "")
	_, err := s.admin.CoreV1().ServiceAccounts("default").Create(tb.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// as returns a client of a user with all rights; the administrator's if the
// name is empty.
func (s server) as(tb testing.TB, user string) kubernetes.Interface {
	tb.Helper()
	config := rest.CopyConfig(s.config)
	if user != "" {
		config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:masters"}, Extra: map[string][]string{
			"authentication.kubernetes.io/node-name": {"n1"},
		}}
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		tb.Fatal(err)
	}
	return client
}

// apply creates the objects of a file below config.
func (s server) apply(tb testing.TB, file string) {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("..", file))
	if err != nil {
		tb.Fatal(err)
	}
	client, err := dynamic.NewForConfig(s.config)
	if err != nil {
		tb.Fatal(err)
	}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(document), &object.Object); err != nil {
			tb.Fatal(err)
		}
		kind := object.GroupVersionKind()
		resource := kind.GroupVersion().WithResource(map[string]string{
			"ValidatingAdmissionPolicy": "validatingadmissionpolicies",
		}[kind.Kind])
		if resource.Resource == "" {
			resource.Resource = strings.ToLower(kind.Kind) + "s"
		}
		if _, err := client.Resource(resource).Create(tb.Context(), object, metav1.CreateOptions{}); err != nil {
			tb.Fatal(err)
		}
	}
}

func (s server) policies(tb testing.TB) {
	tb.Helper()
	for _, file := range []string{"policy/status_writers.yaml", "policy/annotation_writers.yaml", "policy/webhook_writers.yaml"} {
		s.apply(tb, file)
	}
}

// pod creates a Pod and binds it to a node if that is not empty.
func (s server) pod(tb testing.TB, name, node string) *corev1.Pod {
	tb.Helper()
	p, err := s.admin.CoreV1().Pods("default").Create(tb.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func (s server) bind(ctx context.Context, p *corev1.Pod, annotations map[string]string) error {
	return s.admin.CoreV1().Pods(p.Namespace).Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Name: p.Name, Annotations: annotations}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"},
	}, metav1.CreateOptions{})
}

// refusedBy waits until a request is refused with the words: policies take a
// moment to be heeded.
func refusedBy(t *testing.T, words string, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = try(); err != nil && strings.Contains(err.Error(), words) {
			return
		}
	}
	t.Errorf("%v, want a refusal that says %q", err, words)
}

// TestAPIServer tries the policies on a real API server.
func TestAPIServer(t *testing.T) {
	s := start(t)
	s.apply(t, "webhook/manifests.yaml")
	s.policies(t)
	const key = "policygate.io/programmed"

	t.Run("a binding hands on no annotation of ours, and others", func(t *testing.T) {
		p := s.pod(t, "bound", "")
		dry := &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Name: p.Name, Annotations: map[string]string{key: "uid=" + string(p.UID) + ";ips=10.0.0.1;boot=x"}},
			Target:     corev1.ObjectReference{Kind: "Node", Name: "n1"},
		}
		// Until the policy is heeded nothing may be written.
		refusedBy(t, "written by the policygate agent alone", func() error {
			return s.admin.CoreV1().Pods("default").Bind(t.Context(), dry, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		})
		if err := s.bind(t.Context(), p, map[string]string{"example.org/a": "1"}); err != nil {
			t.Error(err)
		}
		p, err := s.admin.CoreV1().Pods("default").Get(t.Context(), p.Name, metav1.GetOptions{})
		if err != nil || p.Spec.NodeName != "n1" || p.Annotations["example.org/a"] != "1" {
			t.Errorf("%v, %+v", err, p)
		}
	})
	t.Run("the manager changes the webhook's caBundle alone", func(t *testing.T) {
		hooks := s.as(t, manager).AdmissionregistrationV1().MutatingWebhookConfigurations()
		patch := func(body string, dry ...string) error {
			_, err := hooks.Patch(t.Context(), "policygate", types.JSONPatchType, []byte(body), metav1.PatchOptions{DryRun: dry})
			return err
		}
		for body, words := range map[string]string{
			`[{"op":"remove","path":"/webhooks/0/namespaceSelector"}]`:                          "nothing of a webhook but the caBundle",
			`[{"op":"replace","path":"/webhooks/0/rules/0/resources","value":["secrets"]}]`:     "nothing of a webhook but the caBundle",
			`[{"op":"replace","path":"/webhooks/0/clientConfig/service/name","value":"thief"}]`: "not where it leads",
			`[{"op":"remove","path":"/webhooks/0"}]`:                                            "add, remove or move",
			`[{"op":"add","path":"/metadata/finalizers","value":["example.org/x"]}]`:            "metadata",
		} {
			refusedBy(t, words, func() error { return patch(body, metav1.DryRunAll) })
		}
		if err := patch(`[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":""}]`); err != nil {
			t.Error(err)
		}
		// Whoever installs changes what he likes.
		_, err := s.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(t.Context(), "policygate", types.JSONPatchType,
			[]byte(`[{"op":"replace","path":"/webhooks/0/failurePolicy","value":"Fail"}]`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("a kubelet writes a status as ever, and an agent its condition", func(t *testing.T) {
		p := s.pod(t, "running", "n1")
		_, err := s.as(t, "system:node:n1").CoreV1().Pods("default").Patch(t.Context(), p.Name, types.StrategicMergePatchType,
			[]byte(`{"status":{"phase":"Running","podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}],"conditions":[{"type":"Ready","status":"True"}]}}`), metav1.PatchOptions{}, "status")
		if err != nil {
			t.Error(err)
		}
		opening := fmt.Sprintf(`{"metadata":{"annotations":{%q:"uid=%s;ips=10.0.0.1;boot=x"}},"status":{"conditions":[{"type":"policygate.io/PolicyProgrammed","status":"True"}]}}`, key, p.UID)
		if _, err := s.as(t, agent).CoreV1().Pods("default").Patch(t.Context(), p.Name, types.StrategicMergePatchType, []byte(opening), metav1.PatchOptions{}, "status"); err != nil {
			t.Error(err)
		}
		// The gate is as the agent may write it: what else it writes is refused for
		// what it is.
		for body, words := range map[string]string{
			`{"metadata":{"labels":{"a":"b"}}}`:                             "metadata.labels may not be written",
			`{"metadata":{"annotations":{"a":"b"}}}`:                        "no annotation but policygate.io/programmed",
			`{"metadata":{"finalizers":["example.org/x"]}}`:                 "metadata.finalizers may not be written",
			`{"status":{"phase":"Failed"}}`:                                 "status.phase may not be written",
			`{"status":{"podIP":"10.0.0.2","podIPs":[{"ip":"10.0.0.2"}]}}`:  "status.podIP",
			`{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`: "only the condition",
		} {
			refusedBy(t, words, func() error {
				_, err := s.as(t, agent).CoreV1().Pods("default").Patch(t.Context(), p.Name, types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{}, "status")
				return err
			})
		}
		refusedBy(t, "True only, the manager as False only", func() error {
			_, err := s.as(t, manager).CoreV1().Pods("default").Patch(t.Context(), p.Name, types.StrategicMergePatchType, []byte(opening), metav1.PatchOptions{}, "status")
			return err
		})
	})
}

// BenchmarkKubeletStatus is what a kubelet's write of a status takes, without
// and with the policies, which look at each.
func BenchmarkKubeletStatus(b *testing.B) {
	s := start(b)
	p := s.pod(b, "running", "n1")
	kubelet := s.as(b, "system:node:n1").CoreV1().Pods("default")
	write := func(b *testing.B) {
		i := 0
		for b.Loop() {
			i++
			body := fmt.Appendf(nil, `{"status":{"message":"%d","conditions":[{"type":"Ready","status":"True","message":"%d"}]}}`, i, i)
			if _, err := kubelet.Patch(b.Context(), p.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status"); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("policies=none", write)
	s.policies(b)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		_, err := s.admin.CoreV1().Pods("default").Patch(b.Context(), p.Name, types.MergePatchType, []byte(`{"metadata":{"annotations":{"policygate.io/programmed":"x"}}}`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			break
		}
		if time.Now().After(deadline) {
			b.Fatal("the policies are not heeded")
		}
	}
	b.Run("policies=all", write)
}

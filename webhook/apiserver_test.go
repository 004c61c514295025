// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package webhook

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/controlplane"
)

const (
	installed = "policygate-system"
	labelled  = "labelled"
	plain     = "plain"
	service   = "policygate-webhook"
)

// TestAPIServer holds against a real API server, as nobody else reads
// matchConditions, which Pods it asks about, and what becomes of them while
// nobody answers.
func TestAPIServer(t *testing.T) {
	assets := controlplane.Assets(t)
	config := controlplane.Start(t).Config
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{installed, labelled, plain} {
		_, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	// The label where Policy Gate must not be waited for has no effect.
	for _, ns := range []string{labelled, installed, metav1.NamespaceSystem} {
		got, err := client.CoreV1().Namespaces().Get(t.Context(), ns, metav1.GetOptions{})
		if err == nil {
			metav1.SetMetaDataLabel(&got.ObjectMeta, v1alpha1.KeyInject, v1alpha1.InjectNamespace)
			_, err = client.CoreV1().Namespaces().Update(t.Context(), got, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, components := range [][]string{nil, {"fail"}} {
		name := "as it is shipped, all Pods pass"
		if components != nil {
			name = "with the component fail, Pods of labelled namespaces are refused"
		}
		t.Run(name, func(t *testing.T) {
			// A port of its own, so that the configuration of before cannot be
			// taken for this one.
			silent := startSilent(t)
			configure(t, client, render(t, assets, components), silent.port())
			lead(t, client)
			await(t, client, silent, true)
			for pod, tc := range creations() {
				t.Run(pod, func(t *testing.T) { tc.try(t, client, silent, components != nil) })
			}
			if err := client.CoreV1().Services(installed).Delete(t.Context(), service, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			await(t, client, silent, false)
			t.Run("and so while the Service is gone", func(t *testing.T) {
				for pod, tc := range creations() {
					tc.asked = false // there is nobody to ask
					t.Run(pod, func(t *testing.T) { tc.try(t, client, silent, components != nil) })
				}
			})
		})
	}
}

// creation is a Pod that is created.
type creation struct {
	namespace string
	change    func(*corev1.Pod)
	// asked is whether the API server asks about it, refused whether it refuses
	// it under the component fail while nobody answers.
	asked, refused bool
}

func creations() map[string]creation {
	asking := func(p *corev1.Pod) { p.Annotations = map[string]string{v1alpha1.KeyInject: v1alpha1.ValueTrue} }
	hostNetwork := func(p *corev1.Pod) { p.Spec.HostNetwork = true }
	return map[string]creation{
		"a Pod of a labelled namespace":  {namespace: labelled, asked: true, refused: true},
		"one that asks there as well":    {namespace: labelled, change: asking, asked: true, refused: true},
		"one with a value that is wrong": {namespace: labelled, asked: true, refused: true, change: func(p *corev1.Pod) { p.Annotations = map[string]string{v1alpha1.KeyInject: ""} }},
		"one that says everything that conditions look at": {namespace: labelled, asked: true, refused: true, change: func(p *corev1.Pod) {
			p.Annotations = map[string]string{"example.org/x": "false"}
			p.Spec.OS, p.Spec.NodeSelector = &corev1.PodOS{Name: corev1.Linux}, map[string]string{corev1.LabelOSStable: "linux"}
			p.Spec.HostNetwork = false
		}},
		"one that opts out": {namespace: labelled, change: func(p *corev1.Pod) {
			p.Annotations = map[string]string{v1alpha1.KeyInject: v1alpha1.ValueFalse}
		}},
		"one on the host's network": {namespace: labelled, change: hostNetwork},
		"the mirror of a static one": {namespace: labelled, change: func(p *corev1.Pod) {
			p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "hash"}
			p.Spec.NodeName = "n1"
		}},
		"one of Windows": {namespace: labelled, change: func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }},
		"one for Windows nodes": {namespace: labelled, change: func(p *corev1.Pod) {
			p.Spec.NodeSelector = map[string]string{corev1.LabelOSStable: "windows"}
		}},
		"one of another namespace":                     {namespace: plain},
		"one of another namespace that asks":           {namespace: plain, change: asking, asked: true},
		"one on the host's network there that asks":    {namespace: plain, change: func(p *corev1.Pod) { asking(p); hostNetwork(p) }},
		"one of kube-system, though that is labelled":  {namespace: metav1.NamespaceSystem},
		"one of kube-system that asks":                 {namespace: metav1.NamespaceSystem, change: asking},
		"one of Policy Gate's own, though labelled":    {namespace: installed},
		"one of Policy Gate's own namespace that asks": {namespace: installed, change: asking},
	}
}

// try creates the Pod in a dry run, for which the webhook is asked as well.
func (a creation) try(t *testing.T, client kubernetes.Interface, silent *silent, fail bool) {
	t.Helper()
	before := silent.asked.Load()
	err := create(t, client, a)
	if asked := silent.asked.Load() > before; asked != a.asked {
		t.Errorf("asked about: %t, want %t", asked, a.asked)
	}
	if !fail || !a.refused {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	if err == nil || !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), `failed calling webhook "namespace.inject.policygate.io"`) {
		t.Errorf("error %v, want one that names the webhook that could not be called", err)
	}
}

func create(t *testing.T, client kubernetes.Interface, a creation) error {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app:1"}}},
	}
	if a.change != nil {
		a.change(pod)
	}
	_, err := client.CoreV1().Pods(a.namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// silent is what listens where no manager does: it closes every connection.
type silent struct {
	listener net.Listener
	asked    atomic.Int64
}

func startSilent(t *testing.T) *silent {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &silent{listener: listener}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			s.asked.Add(1)
			_ = conn.Close() // an answer of its own
		}
	}()
	t.Cleanup(func() {
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return s
}

func (s *silent) port() int32 { return int32(s.listener.Addr().(*net.TCPAddr).Port) }

// render returns the webhook's configuration as `make deploy` applies it.
func render(t *testing.T, assets string, components []string) *admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	// The overlay names what it lies over by its place, two directories down.
	root := filepath.Join("..", "build")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(root, "overlay-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	overlay, err := exec.CommandContext(t.Context(), "../hack/overlay.sh", append([]string{"policygate:test"}, components...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), filepath.Join(assets, "kubectl"), "kustomize", dir)
	cmd.Stderr = &stderr
	manifests, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	for document := range strings.SplitSeq(string(manifests), "\n---\n") {
		var config admissionregistrationv1.MutatingWebhookConfiguration
		if err := yaml.Unmarshal([]byte(document), &config); err == nil && config.Kind == "MutatingWebhookConfiguration" {
			return &config
		}
	}
	t.Fatal("no MutatingWebhookConfiguration is in what is deployed")
	return nil
}

// configure has the API server ask at a port of its own host.
func configure(t *testing.T, client kubernetes.Interface, config *admissionregistrationv1.MutatingWebhookConfiguration, port int32) {
	t.Helper()
	for i := range config.Webhooks {
		config.Webhooks[i].ClientConfig.Service.Port = &port
	}
	configs := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	if err := configs.Delete(t.Context(), config.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	if _, err := configs.Create(t.Context(), config, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// lead makes the Service, which the API server follows itself.
func lead(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	_, err := client.CoreV1().Services(installed).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: service},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// await returns once the API server asks, or does not ask any more, as it learns
// of configurations and Services by watches.
func await(t *testing.T, client kubernetes.Interface, silent *silent, asks bool) {
	t.Helper()
	probe := creations()["one of another namespace that asks"]
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		before := silent.asked.Load()
		if err := create(t, client, probe); err != nil {
			t.Fatal(err) // whatever is configured
		}
		if (silent.asked.Load() > before) == asks {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the API server asks about a Pod: %t, want %t", !asks, asks)
		}
	}
}

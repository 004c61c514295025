// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/testbed"
)

const (
	managerDeployment = "policygate-manager"
	leaderLease       = "policygate-leader"
	// overlap is long against a watch, and short enough to see a rotation's end.
	overlap = 10 * time.Second
	// pace is how often a Pod is created, realEvery how many of them are meant.
	// The others are dry runs on the server: these pass admission as any Pod
	// does, webhook included, and the answer is the Pod as it would be stored,
	// but nothing is started, which two processors could not keep up with
	// beside the managers' start.
	pace      = 200 * time.Millisecond
	realEvery = 5
)

// TestRollout replaces managers and certificates while Pods are created: nobody
// is refused, and nobody is let in without a gate.
func TestRollout(t *testing.T) {
	t.Parallel()
	f := start(t, testbed.Options{Name: "rollout", Nodes: 3, IPTables: cluster.IPTablesNFT})
	f.patchDeployment(t, fmt.Sprintf(`[{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--certificate-overlap=%s"}]`, overlap))
	f.rolledOut(t)
	f.patient(t)
	for _, scenario := range []struct {
		name string
		run  func(*testing.T, fixture)
	}{
		{"a rolling restart and a rotation lose no gate", rotateAndRestart},
		{"what must not be missed is not refused during a rolling restart either", restartUnderFail},
		{"while no manager answers, only labelled namespaces are refused under Fail", refusedUnderFail},
		{"Pods that were let in while no manager answered are found", ungatedAreFound},
	} {
		t.Run(scenario.name, func(t *testing.T) { scenario.run(t, f) })
	}
}

func rotateAndRestart(t *testing.T, f fixture) {
	before := f.bundle(t)
	if n := strings.Count(before, "BEGIN CERTIFICATE"); n != 1 {
		t.Fatalf("%d authorities are trusted, want one", n)
	}
	ns := f.namespace(t, injected)
	s := f.createSteadily(t, ns)
	f.rotate(t)
	f.restart(t)
	f.rolledOut(t)
	eventually(t, 2*time.Minute, "the former authority is dropped", func() (bool, string) {
		now := f.bundle(t)
		return strings.Count(now, "BEGIN CERTIFICATE") == 1 && now != before, now
	})
	s.stop(t, 200)
	s.check(t)
	if len(s.real) < 40 {
		t.Errorf("%d Pods were meant, want 40", len(s.real))
	}
	for _, name := range s.real {
		f.await(t, ns, name, time.Minute, "succeeded behind its gate", func(p *corev1.Pod) bool {
			return isOpen(p) && p.Status.Phase == corev1.PodSucceeded
		})
	}

	// Who connects from now on has never heard of the former authority.
	if _, err := f.Kubectl(t.Context(), "-n", testbed.Namespace, "rollout", "restart", "daemonset/policygate-agent"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Kubectl(t.Context(), "-n", testbed.Namespace, "rollout", "status", "daemonset/policygate-agent", "--timeout=3m"); err != nil {
		t.Fatal(err)
	}
	f.says(t, 0, []string{"doctor"})
	f.create(t, ns, pod{name: "after", labels: otherLabels, args: []string{"sleep", "10ms"}})
	f.await(t, ns, "after", time.Minute, "succeeded behind its gate", func(p *corev1.Pod) bool {
		return isOpen(p) && p.Status.Phase == corev1.PodSucceeded
	})
}

func restartUnderFail(t *testing.T, f fixture) {
	f.failurePolicy(t, admissionregistrationv1.Fail)
	ns := f.namespace(t, injected)
	f.refusesNothing(t, ns)
	s := f.createSteadily(t, ns)
	f.restart(t)
	f.rolledOut(t)
	s.stop(t, 60)
	s.check(t)
}

// outside are Pods that nobody may be kept from creating, whatever the state of
// Policy Gate, by name and namespace.
func outside(labelled, plain string) map[string]pod {
	asks := map[string]string{v1alpha1.KeyInject: v1alpha1.ValueTrue}
	return map[string]pod{
		plain + "/plain":             {},
		plain + "/asking":            {annotations: asks},
		labelled + "/host-network":   {change: func(p *corev1.Pod) { p.Spec.HostNetwork = true }},
		labelled + "/opted-out":      {annotations: map[string]string{v1alpha1.KeyInject: v1alpha1.ValueFalse}},
		"kube-system/asking":         {annotations: asks},
		testbed.Namespace + "/plain": {},
	}
}

func refusedUnderFail(t *testing.T, f fixture) {
	labelled, plain := f.namespace(t, injected), f.namespace(t, nil)
	f.failurePolicy(t, admissionregistrationv1.Fail)
	f.scale(t, 0)
	t.Cleanup(func() { f.failurePolicy(t, admissionregistrationv1.Ignore) })
	_, err := f.dryRun(t.Context(), labelled, pod{name: "refused", labels: otherLabels})
	if err == nil || !strings.Contains(err.Error(), `failed calling webhook "namespace.inject.policygate.io"`) {
		t.Errorf("a Pod of a labelled namespace: %v, want a refusal that names the webhook", err)
	}
	t.Log(err)
	for name, p := range outside(labelled, plain) {
		ns, name, _ := strings.Cut(name, "/")
		p.name = name
		if _, err := f.dryRun(t.Context(), ns, p); err != nil {
			t.Errorf("%s in %s: %v", name, ns, err)
		}
	}
	// The manager's own Pods come back by themselves.
	f.scale(t, 2)
	f.rolledOut(t)
	f.refusesNothing(t, labelled)
}

func ungatedAreFound(t *testing.T, f fixture) {
	labelled, plain := f.namespace(t, injected), f.namespace(t, nil)
	f.failurePolicy(t, admissionregistrationv1.Ignore)
	// By which the manager knows that the others were missed, and are not older
	// than the label. Times of creation are in seconds.
	f.refusesNothing(t, labelled)
	f.create(t, labelled, pod{name: "gated", labels: otherLabels, args: []string{"sleep", "10m"}})
	f.await(t, labelled, "gated", time.Minute, "is open", isOpen)
	f.scale(t, 0)
	missed := f.create(t, labelled, pod{name: "missed", labels: otherLabels, args: []string{"sleep", "10m"}})
	asked := f.create(t, plain, pod{
		name: "asked", labels: otherLabels, args: []string{"sleep", "10m"}, annotations: map[string]string{v1alpha1.KeyInject: v1alpha1.ValueTrue},
	})
	for _, p := range []*corev1.Pod{missed, asked} {
		if hasGate(p) {
			t.Errorf("%s/%s has a gate, though no manager runs", p.Namespace, p.Name)
		}
	}
	for name, p := range outside(labelled, plain) {
		ns, name, _ := strings.Cut(name, "/")
		p.name = name
		if _, err := f.dryRun(t.Context(), ns, p); err != nil {
			t.Errorf("%s in %s: %v", name, ns, err)
		}
	}
	f.scale(t, 2)
	f.rolledOut(t)
	// What the alert PolicyGateUngatedPods asks of each replica.
	for _, target := range f.targets(t) {
		if target.Job != managerDeployment {
			continue
		}
		eventually(t, 20*time.Second, target.Instance+" counts them", func() (bool, string) {
			text, err := page(t.Context(), "http://"+target.Address+"/metrics")
			return err == nil && strings.Contains(text, "\npolicygate_ungated_pods 2\n"), fmt.Sprintf("%v %s", err, text)
		})
	}
	f.says(t, doctorFinds, []string{"doctor"}, labelled+"/missed", plain+"/asked")
	f.warned(t, labelled, "missed", "Ungated: ", "its namespace has the label", "Create it anew")
	f.warned(t, plain, "asked", "Ungated: ", "it has the annotation")
	for _, p := range []*corev1.Pod{missed, asked} {
		f.delete(t, p.Namespace, p.Name)
		f.gone(t, p.Namespace, p.Name)
	}
	f.says(t, 0, []string{"doctor"})
}

// stream is Pods that are created at a steady pace until it is stopped.
type stream struct {
	ns      string
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex // guards what follows
	created int
	real    []string
	// wrong says of each Pod that was refused or let in without a gate what it is.
	wrong   []string
	latency []time.Duration
}

func (f fixture) createSteadily(t *testing.T, ns string) *stream {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &stream{ns: ns, cancel: cancel}
	t.Cleanup(func() { cancel(); s.running.Wait() })
	s.running.Go(func() {
		ticker := time.NewTicker(pace)
		defer ticker.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				// One that is slow must not keep the next from its turn, and
				// what was begun is finished.
				s.running.Go(func() { s.create(context.WithoutCancel(ctx), f, n) })
			}
		}
	})
	return s
}

func (s *stream) create(ctx context.Context, f fixture, n int) {
	p := pod{name: fmt.Sprintf("p%d", n), labels: otherLabels, args: []string{"sleep", "10ms"}}
	meant := n%realEvery == 0
	began := time.Now()
	var created *corev1.Pod
	var err error
	if meant {
		created, err = f.Client.CoreV1().Pods(s.ns).Create(ctx, p.object(s.ns), metav1.CreateOptions{})
	} else {
		created, err = f.dryRun(ctx, s.ns, p)
	}
	took := time.Since(began)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.created++
	s.latency = append(s.latency, took)
	switch {
	case err != nil:
		s.wrong = append(s.wrong, fmt.Sprintf("%s %s: rejected: %v", began.Format(time.TimeOnly), p.name, err))
		return
	case !hasGate(created) || !hasHold(created):
		s.wrong = append(s.wrong, fmt.Sprintf("%s %s: gate %t, hold %t", began.Format(time.TimeOnly), p.name, hasGate(created), hasHold(created)))
	}
	if meant {
		s.real = append(s.real, p.name)
	}
}

// stop ends the stream once it has created that many.
func (s *stream) stop(t *testing.T, least int) {
	t.Helper()
	eventually(t, 5*time.Minute, fmt.Sprintf("%d Pods are created", least), func() (bool, string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.created >= least, fmt.Sprint(s.created)
	})
	s.cancel()
	s.running.Wait()
}

// check fails the test for each Pod that was refused or has no gate.
func (s *stream) check(t *testing.T) {
	t.Helper()
	for _, w := range s.wrong {
		t.Error(w)
	}
	slices.Sort(s.latency)
	at := func(p float64) time.Duration { return s.latency[int(p*float64(len(s.latency)-1))] }
	t.Logf("%d Pods created, %d of them to stay; %d rejected or ungated; creation took %s at p50, %s at p99, %s at most",
		s.created, len(s.real), len(s.wrong), at(0.5), at(0.99), at(1))
}

func (f fixture) dryRun(ctx context.Context, ns string, p pod) (*corev1.Pod, error) {
	return f.Client.CoreV1().Pods(ns).Create(ctx, p.object(ns), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

// refusesNothing waits until Pods of a labelled namespace are let in with a gate.
func (f fixture) refusesNothing(t *testing.T, ns string) {
	t.Helper()
	eventually(t, 30*time.Second, "a Pod is let in, with a gate", func() (bool, string) {
		p, err := f.dryRun(t.Context(), ns, pod{name: "probe", labels: otherLabels})
		return err == nil && hasGate(p), fmt.Sprint(err)
	})
}

// bundle is what agents trust.
func (f fixture) bundle(t *testing.T) string {
	t.Helper()
	published, err := f.Client.CoreV1().ConfigMaps(testbed.Namespace).Get(t.Context(), "policygate-ca", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return published.Data["ca.crt"]
}

// rotate does what docs/troubleshooting.md says.
func (f fixture) rotate(t *testing.T) {
	t.Helper()
	_, err := f.Kubectl(t.Context(), "-n", testbed.Namespace, "annotate", "--overwrite", "configmap/policygate-ca",
		"policygate.io/rotate="+time.Now().UTC().Format("2006-01-02T15-04-05"))
	if err != nil {
		t.Fatal(err)
	}
}

func (f fixture) restart(t *testing.T) {
	t.Helper()
	if _, err := f.Kubectl(t.Context(), "-n", testbed.Namespace, "rollout", "restart", "deployment/"+managerDeployment); err != nil {
		t.Fatal(err)
	}
}

func (f fixture) patchDeployment(t *testing.T, patch string) {
	t.Helper()
	_, err := f.Client.AppsV1().Deployments(testbed.Namespace).Patch(t.Context(), managerDeployment, types.JSONPatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// rolledOut waits until every manager is new and ready, and no former one is
// left, not even one that ends.
func (f fixture) rolledOut(t *testing.T) {
	t.Helper()
	eventually(t, 3*time.Minute, "the managers are rolled out", func() (bool, string) {
		d, err := f.Client.AppsV1().Deployments(testbed.Namespace).Get(t.Context(), managerDeployment, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		pods := f.managers(t)
		return complete(d) && len(pods) == int(*d.Spec.Replicas), fmt.Sprintf("%d Pods, %+v", len(pods), d.Status)
	})
}

func complete(d *appsv1.Deployment) bool {
	want := *d.Spec.Replicas
	return d.Status.ObservedGeneration >= d.Generation && d.Status.Replicas == want &&
		d.Status.UpdatedReplicas == want && d.Status.AvailableReplicas == want
}

func (f fixture) managers(t *testing.T) []corev1.Pod {
	t.Helper()
	pods, err := f.Client.CoreV1().Pods(testbed.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + managerDeployment})
	if err != nil {
		t.Fatal(err)
	}
	return pods.Items
}

// scale sets the number of managers; with none it waits until none is left.
func (f fixture) scale(t *testing.T, replicas int) {
	t.Helper()
	f.patchDeployment(t, fmt.Sprintf(`[{"op":"replace","path":"/spec/replicas","value":%d}]`, replicas))
	if replicas > 0 {
		return
	}
	eventually(t, time.Minute, "the managers are gone", func() (bool, string) {
		left := len(f.managers(t))
		return left == 0, fmt.Sprint(left)
	})
}

// failurePolicy changes what the component fail does.
func (f fixture) failurePolicy(t *testing.T, policy admissionregistrationv1.FailurePolicyType) {
	t.Helper()
	patch := fmt.Sprintf(`[{"op":"test","path":"/webhooks/0/name","value":"namespace.inject.policygate.io"},
		{"op":"replace","path":"/webhooks/0/failurePolicy","value":%q}]`, policy)
	_, err := f.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(context.WithoutCancel(t.Context()), "policygate",
		types.JSONPatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// patient gives the webhook longer than the 2 s that it is shipped with, so that
// a processor that is busy with other things is not taken for a request that was
// lost: a connection that was cut fails at once, and one whose other end is gone
// is only noticed after 45 s.
func (f fixture) patient(t *testing.T) {
	t.Helper()
	const patch = `[{"op":"replace","path":"/webhooks/0/timeoutSeconds","value":10},{"op":"replace","path":"/webhooks/1/timeoutSeconds","value":10}]`
	_, err := f.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(t.Context(), "policygate", types.JSONPatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// page returns what is served at an address.
func page(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

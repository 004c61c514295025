// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package gate

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/policygate/policygate/api/programmed"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/ovn/fixture"
)

// servedPort is where each Pod listens from its start on.
const servedPort = 80

// pod is a Pod of the API with its network.
type pod struct {
	*fixture.Pod
	c *cluster
	// identity is what its hold compares with.
	identity programmed.Identity
	// started is when its hold, or without one its containers, had started.
	started time.Time
}

// namespace makes one whose Pods are gated, or not.
func (c *cluster) namespace(name string, gated bool) {
	c.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/metadata.name": name}}}
	if gated {
		ns.Labels[v1alpha1.KeyInject] = v1alpha1.InjectNamespace
	}
	c.must(c.api.Create(c.Context(), ns))
}

// pod makes a Pod with the label app of that value, as its node comes to run
// it: the webhook has its say, kube-ovn-controller gives it a port, kube-ovn-cni
// plugs it and waits for the port's own flows, and the kubelet starts the hold.
func (c *cluster) pod(namespace, name, app, node string) *pod {
	c.Helper()
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": app},
			// A frozen engine is not to be taken for a reason to start.
			Annotations: map[string]string{v1alpha1.KeyHold: v1alpha1.ValueTrue, v1alpha1.KeyTimeout: v1alpha1.MaxTimeout.String()}},
		Spec: corev1.PodSpec{
			NodeName: node, AutomountServiceAccountToken: new(false),
			Containers: []corev1.Container{{Name: "main", Image: "example.org/main", Ports: []corev1.ContainerPort{{ContainerPort: servedPort}}}},
		},
	}
	c.must(c.api.Create(c.Context(), object))
	p := &pod{c: c, Pod: c.ovn.AddPod(fixture.PodOptions{Namespace: namespace, Name: name, Node: node, Unplugged: true})}
	before := object.DeepCopy()
	for key, value := range p.Object(nil).Annotations {
		metav1.SetMetaDataAnnotation(&object.ObjectMeta, key, value)
	}
	c.must(c.api.Patch(c.Context(), object, client.MergeFrom(before)))
	c.controller.notice()
	c.must(p.Plug(c.Context()))
	c.must(p.WaitInstalled(c.Context()))
	c.must(p.Listen(servedPort))

	object.Status = p.Object(nil).Status
	held := len(object.Spec.InitContainers) > 0
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}
	if held {
		object.Status.Phase = corev1.PodPending
		object.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: v1alpha1.HoldContainerName, State: running, Started: new(true)}}
	} else {
		object.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", State: running, Started: new(true), Ready: true}}
	}
	object.Status.StartTime = new(metav1.Now())
	object.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}}
	c.must(c.api.Status().Update(c.Context(), object))
	p.started = time.Now()
	var err error
	p.identity, err = programmed.New(string(object.UID), []string{p.IP().String()}, c.bootID)
	c.must(err)
	if gated := len(object.Spec.ReadinessGates) > 0; gated != held || held != c.gated(namespace) {
		c.Fatalf("Pod %s: has a readiness gate: %v, a hold: %v", p.Key(), gated, held)
	}
	return p
}

func (c *cluster) gated(namespace string) bool {
	c.Helper()
	var ns corev1.Namespace
	c.must(c.api.Get(c.Context(), client.ObjectKey{Name: namespace}, &ns))
	return ns.Labels[v1alpha1.KeyInject] != ""
}

// delete removes the Pod and its network.
func (p *pod) delete() {
	p.c.Helper()
	p.c.must(p.c.api.Delete(p.c.Context(), p.object(), client.GracePeriodSeconds(0)))
	p.c.must(p.Delete(p.c.Context()))
	p.c.controller.notice()
}

// object names the Pod.
func (p *pod) object() *corev1.Pod {
	namespace, name, _ := strings.Cut(p.Key(), "/")
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// open reports whether the hold has ended and the gate is open, and what the
// condition says.
func (p *pod) open() (bool, string) {
	p.c.Helper()
	object := p.object()
	p.c.must(p.c.api.Get(p.c.Context(), client.ObjectKeyFromObject(object), object))
	ended := p.identity.Matches(object.Annotations[v1alpha1.KeyProgrammed])
	for _, condition := range object.Status.Conditions {
		if condition.Type != v1alpha1.ConditionProgrammed {
			continue
		}
		open := condition.Status == corev1.ConditionTrue
		if open != ended {
			p.c.Errorf("Pod %s: the condition is %s, and the hold has ended: %v", p.Key(), condition.Status, ended)
		}
		return open, fmt.Sprintf("%s: %s", condition.Reason, condition.Message)
	}
	return ended, "no condition"
}

// awaitOpen waits until the gate is open, and returns how long that took since
// the hold's start.
func (p *pod) awaitOpen() time.Duration {
	p.c.Helper()
	opened := ""
	p.c.eventually("the gate of "+p.Key()+" opens", func() string {
		open, says := p.open()
		if open {
			opened = says
			return ""
		}
		return says
	})
	took := time.Since(p.started)
	if !strings.HasPrefix(opened, v1alpha1.ReasonConfirmed+": ") {
		p.c.Errorf("the gate of %s opened as %s", p.Key(), opened)
	}
	return took
}

// awaitSays waits until the condition says all of these words, with the gate
// shut.
func (p *pod) awaitSays(words ...string) {
	p.c.Helper()
	p.c.eventually(fmt.Sprintf("the gate of %s says %q", p.Key(), words), func() string {
		open, says := p.open()
		if open {
			p.c.Fatalf("the gate of %s is open: %s", p.Key(), says)
		}
		for _, w := range words {
			if !strings.Contains(says, w) {
				return says
			}
		}
		p.c.Logf("%s says %s", p.Key(), says)
		return ""
	})
}

// awhile is several times what a gate takes to open once it may.
const awhile = 2 * time.Second

// staysShut watches the gate for a while.
func (p *pod) staysShut() {
	p.c.Helper()
	for began := time.Now(); time.Since(began) < awhile; time.Sleep(20 * time.Millisecond) {
		if open, says := p.open(); open {
			p.c.Fatalf("the gate of %s is open: %s", p.Key(), says)
		}
	}
}

// dials connects to another Pod's port and wants an outcome.
func (p *pod) dials(to *pod, want fixture.Outcome) {
	p.c.Helper()
	if got, err := p.Dial(to.Pod, servedPort); err != nil || got != want {
		p.c.Errorf("%s to %s is %q, %v, want %q", p.Key(), to.Key(), got, err, want)
	}
}

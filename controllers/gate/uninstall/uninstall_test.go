// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package uninstall

import (
	"cmp"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/policygate/policygate/api/v1alpha1"
)

const (
	gateType     = v1alpha1.ConditionProgrammed
	wantIdentity = "uid=p;ips=10.0.0.1;boot=boot-1"
)

func pod(change func(p *corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "job", UID: "p", ResourceVersion: "7"},
		Spec: corev1.PodSpec{
			NodeName:       "n1",
			ReadinessGates: []corev1.PodReadinessGate{{ConditionType: gateType}},
		},
		Status: corev1.PodStatus{
			PodIPs:     []corev1.PodIP{{IP: "10.0.0.1"}},
			Conditions: []corev1.PodCondition{{Type: gateType, Status: corev1.ConditionFalse}, {Type: corev1.PodReady}},
		},
	}
	change(p)
	return p
}

func node() *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1"},
		Status:     corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{BootID: "boot-1"}},
	}
}

// run releases with a clock that goes on by itself while ReleaseHeld waits.
func run(t *testing.T, client *fake.Clientset) (int, error) {
	t.Helper()
	clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				if clk.HasWaiters() {
					clk.Step(interval)
				}
				time.Sleep(time.Millisecond)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	return ReleaseHeld(t.Context(), Options{
		Client: client, ConditionType: gateType, Timeout: 10 * time.Second, Clock: clk, Log: logr.Discard(),
	})
}

func TestReleaseHeld(t *testing.T) {
	cases := map[string]struct {
		pod          *corev1.Pod
		wantReleased int
		wantErr      string
		wantOpen     bool
		wantValue    string // the annotation's if open, wantIdentity if empty
	}{
		"a held Pod is let go": {
			pod:          pod(func(*corev1.Pod) {}),
			wantReleased: 1,
			wantOpen:     true,
		},
		"a Pod whose gate was opened for another address is let go": {
			pod: pod(func(p *corev1.Pod) {
				p.Annotations = map[string]string{v1alpha1.KeyProgrammed: "uid=p;ips=10.0.0.9;boot=boot-1"}
				p.Status.Conditions[0].Status = corev1.ConditionTrue
			}),
			wantReleased: 1,
			wantOpen:     true,
		},
		"a Pod whose hold began after its gate had opened is let go, by another value": {
			pod: pod(func(p *corev1.Pod) {
				p.Annotations = map[string]string{v1alpha1.KeyProgrammed: wantIdentity}
				p.Status.Conditions[0].Status = corev1.ConditionTrue
				p.Status.InitContainerStatuses = []corev1.ContainerStatus{{
					Name:  v1alpha1.HoldContainerName,
					State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(time.Unix(900, 0))}},
				}}
			}),
			wantReleased: 1,
			wantOpen:     true,
			wantValue:    wantIdentity + ";again=1",
		},
		"a Pod whose gate is open is left alone": {
			pod: pod(func(p *corev1.Pod) {
				p.Annotations = map[string]string{v1alpha1.KeyProgrammed: wantIdentity}
				p.Status.Conditions[0].Status = corev1.ConditionTrue
			}),
			wantOpen: true,
		},
		"a Pod without our gate is left alone": {
			pod: pod(func(p *corev1.Pod) { p.Spec.ReadinessGates = nil }),
		},
		"a finished Pod is left alone": {
			pod: pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }),
		},
		"a Pod without an address is waited for, and named in the end": {
			pod:     pod(func(p *corev1.Pod) { p.Status.PodIPs = nil }),
			wantErr: "1 pods are still held after 10s, delete them or try again: shop/job",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset(node(), tc.pod)
			released, err := run(t, client)
			if released != tc.wantReleased {
				t.Errorf("released %d, want %d", released, tc.wantReleased)
			}
			if tc.wantErr == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("error = %v, want %q", err, tc.wantErr)
			}
			got, err := client.CoreV1().Pods("shop").Get(t.Context(), "job", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			open := got.Status.Conditions[0].Status == corev1.ConditionTrue && got.Annotations[v1alpha1.KeyProgrammed] == cmp.Or(tc.wantValue, wantIdentity)
			if open != tc.wantOpen {
				t.Errorf("open = %v, want %v: %v %v", open, tc.wantOpen, got.Annotations, got.Status.Conditions)
			}
			if len(got.Status.Conditions) != 2 {
				t.Errorf("other conditions were lost: %v", got.Status.Conditions)
			}
		})
	}
}

func TestReleaseHeldWaitsForAnAddress(t *testing.T) {
	waiting := pod(func(p *corev1.Pod) { p.Status.PodIPs = nil })
	client := fake.NewClientset(node(), waiting)
	lists := 0
	client.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		if lists++; lists == 3 {
			addressed := waiting.DeepCopy()
			addressed.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}}
			err := client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("pods"), addressed, "shop")
			if err != nil {
				t.Error(err)
			}
		}
		return false, nil, nil
	})
	if released, err := run(t, client); released != 1 || err != nil {
		t.Errorf("released %d, %v; want 1", released, err)
	}
}

func TestReleaseHeldAfterARefusal(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	cases := map[string]struct {
		refusal      error
		wantReleased int
		wantErr      string
	}{
		"a Pod that went meanwhile is no error": {
			refusal:      apierrors.NewNotFound(pods, "job"),
			wantReleased: 1,
		},
		"an outage is waited out": {
			refusal:      errors.New("connection refused"),
			wantReleased: 1,
		},
		"an administrator without the right is told at once": {
			refusal: apierrors.NewForbidden(pods, "job", errors.New("no")),
			wantErr: "forbidden",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset(node(), pod(func(*corev1.Pod) {}))
			refused := false
			client.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
				if refused {
					return false, nil, nil
				}
				refused = true
				return true, nil, tc.refusal
			})
			released, err := run(t, client)
			if released != tc.wantReleased {
				t.Errorf("released %d, want %d", released, tc.wantReleased)
			}
			if tc.wantErr == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("error = %v, want %q", err, tc.wantErr)
			}
		})
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func intOrString(port int) intstr.IntOrString { return intstr.FromInt(port) }

// probePod returns a Pod that runs the probe once.
func probePod(name, node string, args ...string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PodSpec{
			// Through the scheduler, which is part of what is tested.
			NodeSelector:                  map[string]string{corev1.LabelHostname: node},
			RestartPolicy:                 corev1.RestartPolicyNever,
			TerminationGracePeriodSeconds: new(int64),
			Containers: []corev1.Container{{
				Name: "probe", Image: probeImage, ImagePullPolicy: corev1.PullNever, Args: args,
			}},
		},
	}
}

func createPod(ctx context.Context, t *testing.T, c *Cluster, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	created, err := c.Client().CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return created
}

// awaitPod waits until a Pod is in a phase, and returns it.
func awaitPod(ctx context.Context, t *testing.T, c *Cluster, pod *corev1.Pod, want corev1.PodPhase) *corev1.Pod {
	t.Helper()
	var now *corev1.Pod
	poll(ctx, t, fmt.Sprintf("Pod %s to be %s", pod.Name, want), func() error {
		var err error
		if now, err = c.Client().CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{}); err != nil {
			return err
		}
		if now.Status.Phase != want {
			return fmt.Errorf("it is %s: %v", now.Status.Phase, now.Status.ContainerStatuses)
		}
		return nil
	})
	return now
}

// runJob runs the probe as a Job, which must succeed on its first try.
func runJob(ctx context.Context, t *testing.T, c *Cluster, name, node string, args []string) {
	t.Helper()
	pod := probePod(name, node, args...)
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: name}}
	job.Spec.BackoffLimit = new(int32)
	job.Spec.Template.Spec = pod.Spec
	if _, err := c.Client().BatchV1().Jobs("default").Create(ctx, job, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	poll(ctx, t, "Job "+name+" to succeed", func() error {
		now, err := c.Client().BatchV1().Jobs("default").Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if now.Status.Succeeded == 1 {
			return nil
		}
		return fmt.Errorf("its status is %+v", now.Status)
	})
}

// podLog returns a Pod's log, which the API server gets from kubelet.
func podLog(ctx context.Context, t *testing.T, c *Cluster, name string) string {
	t.Helper()
	log, err := c.Client().CoreV1().Pods("default").GetLogs(name, &corev1.PodLogOptions{}).DoRaw(ctx)
	if err != nil {
		t.Fatalf("get log of %s: %v", name, err)
	}
	return string(log)
}

// poll calls check until it succeeds, for 30 s at most: three times what a Pod's start takes
// on a busy machine with one CPU.
func poll(ctx context.Context, t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waited for %s: %v", what, err)
		case <-time.After(pollInterval):
		}
	}
}

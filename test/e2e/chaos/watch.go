// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// rewatch is the pause between two attempts. A reflector's own waits grow to
// half a minute, in which gates would open unseen.
const rewatch = 200 * time.Millisecond

// follow tells of every state of the workload's Pods, one after the other,
// until the context ends. A Pod that went while nothing was heard is told as
// deleted in its last known state.
func follow(ctx context.Context, client kubernetes.Interface, known func() map[types.UID]*corev1.Pod, tell func(p *corev1.Pod, deleted bool)) {
	for ctx.Err() == nil {
		// What went wrong shows as a gap, and the next attempt ends it.
		_ = followOnce(ctx, client, known, tell)
		select {
		case <-ctx.Done():
		case <-time.After(rewatch):
		}
	}
}

func followOnce(ctx context.Context, client kubernetes.Interface, known func() map[types.UID]*corev1.Pod, tell func(p *corev1.Pod, deleted bool)) error {
	pods := client.CoreV1().Pods("")
	listing, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := pods.List(listing, metav1.ListOptions{LabelSelector: runLabel})
	if err != nil {
		return fmt.Errorf("list Pods: %w", err)
	}
	gone := known()
	for i := range list.Items {
		delete(gone, list.Items[i].UID)
		tell(&list.Items[i], false)
	}
	for _, p := range gone {
		tell(p, true)
	}
	events, err := pods.Watch(ctx, metav1.ListOptions{LabelSelector: runLabel, ResourceVersion: list.ResourceVersion})
	if err != nil {
		return fmt.Errorf("watch Pods: %w", err)
	}
	defer events.Stop()
	for event := range events.ResultChan() {
		pod, ok := event.Object.(*corev1.Pod)
		if !ok {
			return fmt.Errorf("watch Pods: %v", event.Object)
		}
		tell(pod, event.Type == watch.Deleted)
	}
	return errors.New("the watch has ended")
}

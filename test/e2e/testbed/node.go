// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/policygate/policygate/test/cluster"
)

// StartNode starts a node that is off, see cluster.StartNode, and its engine.
func (t *Testbed) StartNode(ctx context.Context, node *cluster.Node, kubeletArgs ...string) error {
	if err := t.Cluster.StartNode(ctx, node, kubeletArgs...); err != nil {
		return err
	}
	return t.boot(ctx, node)
}

// Reboot is a power cut and a start of a node, see cluster.Reboot, with its
// engine.
func (t *Testbed) Reboot(ctx context.Context, node *cluster.Node) error {
	if err := t.Cluster.StopNode(ctx, node); err != nil {
		return err
	}
	return t.StartNode(ctx, node)
}

// boot does what a node needs beyond its cluster.
func (t *Testbed) boot(ctx context.Context, node *cluster.Node) error {
	if t.options.Boot != nil {
		if err := t.options.Boot(ctx, node); err != nil {
			return fmt.Errorf("boot %s: %w", node.Name, err)
		}
	}
	if e := t.Engine(node.Name); e != nil {
		return e.Start(ctx)
	}
	return t.startEngine(ctx, node)
}

// Part is a running container of Policy Gate: an agent or a manager's replica.
type Part struct {
	*cluster.Process
	Pod, Node string

	testbed   *Testbed
	container string
}

// Agent returns the agent of a node. It is an error if none runs.
func (t *Testbed) Agent(ctx context.Context, node string) (Part, error) {
	all, err := t.Agents(ctx)
	if err != nil {
		return Part{}, err
	}
	for _, p := range all {
		if p.Node == node {
			return p, nil
		}
	}
	return Part{}, fmt.Errorf("no agent runs on %s", node)
}

// Agents returns the agents that run, by the names of their Pods.
func (t *Testbed) Agents(ctx context.Context) ([]Part, error) {
	return t.parts(ctx, "agent")
}

// Managers returns the manager's replicas that run, by the names of their Pods.
func (t *Testbed) Managers(ctx context.Context) ([]Part, error) {
	return t.parts(ctx, "manager")
}

// parts returns the running containers of a name, in the Pods that are labelled
// after it.
func (t *Testbed) parts(ctx context.Context, container string) ([]Part, error) {
	pods, err := t.Client.CoreV1().Pods(Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=policygate-" + container,
	})
	if err != nil {
		return nil, fmt.Errorf("find %ss: %w", container, err)
	}
	var all []Part
	for _, pod := range pods.Items {
		if !runs(pod, container) {
			continue
		}
		process, err := t.Cluster.Container(ctx, Namespace, pod.Name, container)
		if err != nil {
			return nil, err
		}
		all = append(all, Part{
			Process: process, Pod: pod.Name, Node: pod.Spec.NodeName,
			testbed: t, container: container,
		})
	}
	return all, nil
}

func runs(pod corev1.Pod, container string) bool {
	for _, s := range pod.Status.ContainerStatuses {
		if s.Name == container {
			return s.State.Running != nil && pod.DeletionTimestamp == nil
		}
	}
	return false
}

// AwaitRestart waits until the part, which was killed, runs again: until its
// container has another process, or its Pod is gone, in whose place its owner
// makes another.
func (p Part) AwaitRestart(ctx context.Context) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		now, err := p.testbed.Cluster.Container(ctx, Namespace, p.Pod, p.container)
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		last = err
		return err == nil && now.Pid() != p.Pid(), nil
	})
	if err != nil {
		return fmt.Errorf("wait for %s of %s to run again: %w", p.container, p.Pod, errors.Join(err, last))
	}
	return nil
}

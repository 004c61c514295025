// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// nodeRebooted takes a node's power away. The end starts it, with an engine.
func nodeRebooted(ctx context.Context, bed *testbed.Testbed, random *rand.Rand) (*Fault, error) {
	nodes, err := nodesOn(bed)
	if err != nil {
		return nil, err
	}
	n := oneOf(random, nodes)
	if err := bed.Cluster.StopNode(ctx, n); err != nil {
		// Half stopped is no state to leave it in.
		ctx, cancel := mending(ctx)
		defer cancel()
		return nil, errors.Join(err, bed.StartNode(ctx, n))
	}
	return &Fault{
		Target: n.Name, Severs: without(n.Name), Rewrites: []string{n.Name},
		End: func(ctx context.Context) error {
			ctx, cancel := mending(ctx)
			defer cancel()
			return bed.StartNode(ctx, n)
		},
	}, nil
}

// sandboxKilled kills the sandbox of a gated Pod, before or after its gate has
// opened. A Pod that is to be restarted gets another one, with another address.
func sandboxKilled(ctx context.Context, bed *testbed.Testbed, random *rand.Rand) (*Fault, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	pods, err := bed.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("find gated Pods: %w", err)
	}
	victims := gated(pods.Items)
	random.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
	err = errors.New("no gated Pod has an address")
	for _, victim := range victims {
		// It may have ended meanwhile.
		if err = bed.Cluster.KillSandbox(ctx, victim.Namespace, victim.Name); err != nil {
			continue
		}
		return &Fault{
			Target: victim.Namespace + "/" + victim.Name,
			End:    func(ctx context.Context) error { return awaitSandbox(ctx, bed, victim) },
		}, nil
	}
	return nil, err
}

// gated returns the Pods with a gate that have an address and have not ended.
func gated(pods []corev1.Pod) []corev1.Pod {
	var all []corev1.Pod
	for _, p := range pods {
		if p.Status.PodIP == "" || p.DeletionTimestamp != nil || ended(p) {
			continue
		}
		for _, g := range p.Spec.ReadinessGates {
			if g.ConditionType == v1alpha1.ConditionProgrammed {
				all = append(all, p)
				break
			}
		}
	}
	return all
}

func ended(p corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// awaitSandbox waits until a Pod has an address that is not that of before, or
// will never have one.
func awaitSandbox(ctx context.Context, bed *testbed.Testbed, before corev1.Pod) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		now, err := bed.Client.CoreV1().Pods(before.Namespace).Get(ctx, before.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		if last = err; err != nil {
			return false, nil //nolint:nilerr // another fault may keep the API server from answering
		}
		return now.UID != before.UID || now.DeletionTimestamp != nil || ended(*now) ||
			now.Status.PodIP != "" && now.Status.PodIP != before.Status.PodIP, nil
	})
	if err != nil {
		return fmt.Errorf("wait for another sandbox of %s/%s: %w", before.Namespace, before.Name, errors.Join(err, last))
	}
	return nil
}

// reusePace is how often a node forgets which address it gave out last: several
// times while a Pod's sandbox is made.
const reusePace = 20 * time.Millisecond

// addressesReused has a node give the address that a Pod gives up to the next
// Pod at once.
func addressesReused(ctx context.Context, bed *testbed.Testbed, random *rand.Rand) (*Fault, error) {
	nodes, err := nodesOn(bed)
	if err != nil {
		return nil, err
	}
	n := oneOf(random, nodes)
	if err := n.LowestAddress(); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	stopped := make(chan error, 1)
	go func() {
		stopped <- wait.PollUntilContextCancel(ctx, reusePace, true, func(context.Context) (bool, error) {
			return false, n.LowestAddress()
		})
	}()
	return &Fault{Target: n.Name, End: func(context.Context) error {
		stop()
		if err := <-stopped; !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}}, nil
}

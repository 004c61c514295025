// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/api/v1alpha1"
)

// admissions is how many Pods of either kind are created to measure what the
// webhook takes: enough for a hundredth of them to be a few.
const admissions = 500

// Admission is how long it takes to create a Pod, in order of time.
type Admission struct {
	// Gated are those that the webhook is asked about, Plain the same Pods with
	// an annotation by which it is not.
	Gated, Plain []time.Duration
}

// Admission creates Pods one at a time, of either kind in turn, in dry runs,
// which differ from others by etcd's write alone: so the ratio is the worst.
func (c *Cluster) Admission(ctx context.Context) (*Admission, error) {
	out := &Admission{}
	for i := range 2 * admissions {
		pod := c.options.newGated(i / 2)
		into := &out.Gated
		if i%2 == 1 {
			into = &out.Plain
			metav1.SetMetaDataAnnotation(&pod.ObjectMeta, v1alpha1.KeyInject, v1alpha1.ValueFalse)
		}
		pod.Name = "admission"
		began := time.Now()
		created, err := c.control.client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		took := time.Since(began)
		if err != nil {
			return nil, fmt.Errorf("create a Pod in a dry run: %w", err)
		}
		if gated := len(created.Spec.ReadinessGates) > 0; gated != (into == &out.Gated) {
			return nil, errors.New("the webhook was asked about the wrong Pods, or did not answer")
		}
		*into = append(*into, took)
	}
	slices.Sort(out.Gated)
	slices.Sort(out.Plain)
	return out, nil
}

// print prints both, and their ratios.
func (a *Admission) print(line func(name, format string, args ...any)) {
	at := func(all []time.Duration, p float64) time.Duration { return all[int(p*float64(len(all)-1))] }
	describe := func(all []time.Duration) string {
		return fmt.Sprintf("p50 %s, p99 %s", at(all, 0.5).Round(time.Microsecond), at(all, 0.99).Round(time.Microsecond))
	}
	line("creating a Pod, without what etcd takes", "gated %s; plain %s; ratios %.1f and %.1f; %d of either", describe(a.Gated), describe(a.Plain),
		float64(at(a.Gated, 0.5))/float64(at(a.Plain, 0.5)), float64(at(a.Gated, 0.99))/float64(at(a.Plain, 0.99)), len(a.Gated))
}

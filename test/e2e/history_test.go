// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"

	"github.com/policygate/policygate/api/v1alpha1"
)

var policyStatuses = schema.GroupVersionResource{Group: "policygate.io", Version: "v1alpha1", Resource: "policystatuses"}

// history is what a watch showed of one PolicyStatus, in order: what somebody
// sees who polls is part of that.
type history struct {
	name string

	mu    sync.Mutex // guards the following
	seen  []v1alpha1.PolicyStatus
	gone  bool
	ended error // why nothing more will be seen
}

// watchStatus follows a PolicyStatus, which may not be there yet, until the
// test ends.
func (f fixture) watchStatus(t *testing.T, ns, name string) *history {
	t.Helper()
	client, err := dynamic.NewForConfig(f.Config)
	if err != nil {
		t.Fatal(err)
	}
	w, err := client.Resource(policyStatuses).Namespace(ns).Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	h := &history{name: name}
	var follower sync.WaitGroup
	follower.Go(func() { h.follow(w.ResultChan()) })
	t.Cleanup(func() {
		w.Stop()
		follower.Wait()
	})
	return h
}

func (h *history) follow(events <-chan watch.Event) {
	for e := range events {
		h.add(e)
	}
}

func (h *history) add(e watch.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	object, ok := e.Object.(*unstructured.Unstructured)
	if !ok {
		h.ended = fmt.Errorf("the watch ended with %+v", e.Object)
		return
	}
	var s v1alpha1.PolicyStatus
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, &s, true); err != nil {
		h.ended = err
		return
	}
	h.gone = e.Type == watch.Deleted
	if !h.gone {
		h.seen = append(h.seen, s)
	}
}

// deleted says whether the object is no more.
func (h *history) deleted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gone
}

// length is how many states were seen.
func (h *history) length() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.seen)
}

// since returns the states after the first n.
func (h *history) since(n int) []v1alpha1.PolicyStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.seen[n:])
}

// summaries returns what was said of nodes after the first n states, each as
// often as it changed.
func (h *history) summaries(n int) []string {
	var all []string
	for _, s := range h.since(n) {
		if text := s.Status.Nodes.Summary; text != "" {
			all = append(all, text)
		}
	}
	return slices.Compact(all)
}

// await is within a time that is long for all that is not lagging.
func (h *history) await(t *testing.T, what string, check func(v1alpha1.PolicyStatus) bool) v1alpha1.PolicyStatus {
	t.Helper()
	return h.within(t, 40*time.Second, what, check)
}

// within waits until the newest state passes check and returns it.
func (h *history) within(t *testing.T, timeout time.Duration, what string, check func(v1alpha1.PolicyStatus) bool) v1alpha1.PolicyStatus {
	t.Helper()
	var last v1alpha1.PolicyStatus
	began := time.Now()
	eventually(t, timeout, "PolicyStatus "+h.name+" "+what, func() (bool, string) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.ended != nil || len(h.seen) == 0 {
			return false, fmt.Sprintf("nothing was seen, error %v", h.ended)
		}
		last = h.seen[len(h.seen)-1]
		return check(last), describeStatus(last)
	})
	t.Logf("PolicyStatus %s %s, after %v", h.name, what, time.Since(began).Round(time.Millisecond))
	return last
}

// describeStatus says what a status says, for a failure's message.
func describeStatus(s v1alpha1.PolicyStatus) string {
	text, err := json.Marshal(s.Status)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func hasCondition(s v1alpha1.PolicyStatus, kind string, status metav1.ConditionStatus, reason string) bool {
	c := meta.FindStatusCondition(s.Status.Conditions, kind)
	return c != nil && c.Status == status && c.Reason == reason
}

// inForceOn says that a policy is in force, and on how many nodes.
func inForceOn(nodes string) func(v1alpha1.PolicyStatus) bool {
	return func(s v1alpha1.PolicyStatus) bool {
		return s.Status.Nodes.Summary == nodes && hasCondition(s, v1alpha1.PolicyProgrammed, metav1.ConditionTrue, v1alpha1.PolicyReasonInForce)
	}
}

// lags says that a node, and no other, lacks something.
func lags(s v1alpha1.PolicyStatus, node, reason string) bool {
	nodes := s.Status.LaggingNodes
	return len(nodes) == 1 && nodes[0].Name == node && nodes[0].Reason == reason && !nodes[0].Since.IsZero()
}

func observes(s v1alpha1.PolicyStatus, generation int64) bool {
	return s.Status.ObservedGeneration != nil && *s.Status.ObservedGeneration == generation
}

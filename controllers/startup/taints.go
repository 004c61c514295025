// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package startup

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/hub"
)

// DefaultKey is the taint's key in what Policy Gate ships.
const DefaultKey = "policygate.io/agent-not-ready"

// firstRetry and lastRetry bound the time before a node is tried again whose
// taint could not be removed.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// Nodes are the cluster's.
type Nodes interface {
	// Node returns the node of that name as it was known a moment ago, with its
	// UID, taints and boot id at least. Errors are those of
	// k8s.io/apimachinery/pkg/api/errors.
	Node(ctx context.Context, name string) (*corev1.Node, error)
	// Patch applies a JSON patch to it.
	Patch(ctx context.Context, name string, patch []byte) error
}

// Options are what Taints are made of; all fields but Log are required.
type Options struct {
	// Key is that of the taint, whatever its effect and value.
	Key   string
	Nodes Nodes
	Clock clock.WithTicker
	Log   logr.Logger
}

// Taints removes start-up taints. It is made by New and safe for concurrent
// use. As a hub.Sink it learns which nodes have an agent.
type Taints struct {
	options Options
	queue   workqueue.TypedRateLimitingInterface[string]

	mu sync.Mutex // guards agents
	// agents have the nodes whose agent is connected.
	agents map[string]agent
}

var _ hub.Sink = (*Taints)(nil)

// agent is what a node's agent says of its node.
type agent struct {
	bootID string
	// sees is true if it can see the node's dataplane.
	sees bool
}

// New returns Taints that do nothing before Start.
func New(o Options) *Taints {
	return &Taints{
		options: o,
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRetry, lastRetry),
			workqueue.TypedRateLimitingQueueConfig[string]{Clock: o.Clock},
		),
		agents: map[string]agent{},
	}
}

// Connected implements hub.Sink.
func (t *Taints) Connected(node string, hello hub.Hello) {
	t.mu.Lock()
	t.agents[node] = agent{bootID: hello.BootID, sees: hello.State.Unsupported == ""}
	t.mu.Unlock()
	t.queue.Add(node)
}

// Changed implements hub.Sink.
func (t *Taints) Changed(node string, state hub.State) {
	t.mu.Lock()
	if a, ok := t.agents[node]; ok {
		a.sees = state.Unsupported == ""
		t.agents[node] = a
	}
	t.mu.Unlock()
	t.queue.Add(node)
}

// Disconnected implements hub.Sink.
func (t *Taints) Disconnected(node string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.agents, node)
}

// Reported implements hub.Sink. Reports are not its business.
func (*Taints) Reported(string, *hubv1.Report) {}

// NodeChanged takes a node that was added or changed.
func (t *Taints) NodeChanged(n *corev1.Node) {
	if tainted(n, t.options.Key) {
		t.queue.Add(n.Name)
	}
}

// NeedLeaderElection has one replica alone write to nodes.
func (*Taints) NeedLeaderElection() bool { return true }

// Start removes taints until ctx ends; then it returns nil.
func (t *Taints) Start(ctx context.Context) error {
	defer context.AfterFunc(ctx, t.queue.ShutDown)()
	for {
		name, shutdown := t.queue.Get()
		if shutdown {
			return nil
		}
		if err := t.review(ctx, name); err != nil {
			t.options.Log.Error(err, "cannot remove the start-up taint, it is tried again", "node", name, "taint", t.options.Key)
			t.queue.AddRateLimited(name)
		} else {
			t.queue.Forget(name)
		}
		t.queue.Done(name)
	}
}

// review removes the taint of one node if it is time. What else has to happen
// first tells of itself: the node is looked at again then.
func (t *Taints) review(ctx context.Context, name string) error {
	t.mu.Lock()
	a, connected := t.agents[name]
	t.mu.Unlock()
	if !connected {
		return nil
	}
	node, err := t.options.Nodes.Node(ctx, name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read node: %w", err)
	}
	if !tainted(node, t.options.Key) || !a.serves(node) {
		return nil
	}
	patch, err := removal(node, t.options.Key)
	if err != nil {
		return err
	}
	switch err := t.options.Nodes.Patch(ctx, name, patch); {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("patch node: %w", err)
	}
	t.options.Log.Info("start-up taint removed: the node's agent is connected", "node", name, "taint", t.options.Key)
	return nil
}

// serves reports whether the agent can confirm what happens on the node: it
// sees the dataplane, and it is of the node's present boot. A machine that took
// over the name of another is not served by the other's agent, whose session
// may take a while to break.
func (a agent) serves(n *corev1.Node) bool {
	return a.sees && a.bootID == n.Status.NodeInfo.BootID
}

func tainted(n *corev1.Node, key string) bool {
	for i := range n.Spec.Taints {
		if n.Spec.Taints[i].Key == key {
			return true
		}
	}
	return false
}

// operation is one of a JSON patch.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// removal returns the JSON patch that removes the taints of that key from n and
// fails if n is another node by now, or its taints are others.
func removal(n *corev1.Node, key string) ([]byte, error) {
	patch := []operation{{Op: "test", Path: "/metadata/uid", Value: n.UID}}
	// From the end, as each removal moves those behind it.
	for i, taint := range slices.Backward(n.Spec.Taints) {
		if taint.Key == key {
			path := fmt.Sprintf("/spec/taints/%d", i)
			patch = append(patch, operation{Op: "test", Path: path, Value: taint}, operation{Op: "remove", Path: path})
		}
	}
	data, err := json.Marshal(patch)
	if err != nil {
		return nil, fmt.Errorf("marshal patch: %w", err)
	}
	return data, nil
}

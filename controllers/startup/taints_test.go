// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package startup

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/controllers/hub"
)

var (
	ours      = corev1.Taint{Key: DefaultKey, Effect: corev1.TaintEffectNoSchedule}
	another   = corev1.Taint{Key: "example.org/gpu", Value: "yes", Effect: corev1.TaintEffectNoSchedule}
	noEntry   = corev1.Taint{Key: DefaultKey, Value: "x", Effect: corev1.TaintEffectNoExecute}
	sees      = hub.Hello{BootID: "b1"}
	sightless = hub.Hello{BootID: "b1", State: hub.State{Unsupported: "an XDP program decides on interface eth0"}}
)

func tainting(taints ...corev1.Taint) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u1"},
		Spec:       corev1.NodeSpec{Taints: taints},
		Status:     corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{BootID: "b1"}},
	}
}

// fakeNodes has one node at most, and keeps what it is patched with.
type fakeNodes struct {
	node *corev1.Node
	// fail are the errors of the next patches.
	fail    []error
	patches []string
}

func (f *fakeNodes) Node(_ context.Context, name string) (*corev1.Node, error) {
	if f.node == nil || f.node.Name != name {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, name)
	}
	return f.node, nil
}

func (f *fakeNodes) Patch(_ context.Context, _ string, patch []byte) error {
	f.patches = append(f.patches, string(patch))
	if len(f.fail) == 0 {
		f.node = tainting()
		return nil
	}
	err := f.fail[0]
	f.fail = f.fail[1:]
	return err
}

func TestTaints(t *testing.T) {
	const removed = `[{"op":"test","path":"/metadata/uid","value":"u1"},` +
		`{"op":"test","path":"/spec/taints/0","value":{"key":"policygate.io/agent-not-ready","effect":"NoSchedule"}},{"op":"remove","path":"/spec/taints/0"}]`
	gone := apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, "n1")
	for name, tc := range map[string]struct {
		node *corev1.Node
		fail []error
		tell func(*Taints)
		want []string
	}{
		"a node whose agent connects loses the taint": {
			node: tainting(ours), tell: func(x *Taints) { x.Connected("n1", sees) }, want: []string{removed},
		},
		"a node that registers after its agent connected loses it": {
			node: tainting(ours),
			tell: func(x *Taints) { x.Connected("n1", sees); x.NodeChanged(tainting(ours)) }, want: []string{removed},
		},
		"other taints stay": {
			node: tainting(another, ours, another, noEntry), tell: func(x *Taints) { x.Connected("n1", sees) },
			want: []string{`[{"op":"test","path":"/metadata/uid","value":"u1"},` +
				`{"op":"test","path":"/spec/taints/3","value":{"key":"policygate.io/agent-not-ready","value":"x","effect":"NoExecute"}},{"op":"remove","path":"/spec/taints/3"},` +
				`{"op":"test","path":"/spec/taints/1","value":{"key":"policygate.io/agent-not-ready","effect":"NoSchedule"}},{"op":"remove","path":"/spec/taints/1"}]`},
		},
		"a node without an agent keeps it": {
			node: tainting(ours), tell: func(x *Taints) { x.NodeChanged(tainting(ours)) },
		},
		"another node's agent says nothing of this one": {
			node: tainting(ours), tell: func(x *Taints) { x.Connected("n2", sees); x.NodeChanged(tainting(ours)) },
		},
		"a node whose agent went away keeps it": {
			node: tainting(ours), tell: func(x *Taints) { x.Connected("n1", sees); x.Disconnected("n1") },
		},
		"a node whose dataplane cannot be seen keeps it": {
			node: tainting(ours), tell: func(x *Taints) { x.Connected("n1", sightless) },
		},
		"a node whose dataplane came into sight loses it": {
			node: tainting(ours), tell: func(x *Taints) { x.Connected("n1", sightless); x.Changed("n1", hub.State{}) }, want: []string{removed},
		},
		"what a node says whose agent is away counts for nothing": {
			node: tainting(ours), tell: func(x *Taints) { x.Changed("n1", hub.State{}) },
		},
		"the agent of an earlier boot does not speak for the machine": {
			node: tainting(ours), tell: func(x *Taints) { x.Connected("n1", hub.Hello{BootID: "b0"}) },
		},
		"a node without the taint is left alone": {
			node: tainting(another), tell: func(x *Taints) { x.Connected("n1", sees); x.NodeChanged(tainting(another)) },
		},
		"a node that is gone is left alone": {
			tell: func(x *Taints) { x.Connected("n1", sees) },
		},
		"a patch that fails is tried again": {
			node: tainting(ours), fail: []error{errors.New("the API server is away")},
			tell: func(x *Taints) { x.Connected("n1", sees) }, want: []string{removed, removed},
		},
		"a node that goes meanwhile is not": {
			node: tainting(ours), fail: []error{gone},
			tell: func(x *Taints) { x.Connected("n1", sees) }, want: []string{removed},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes := &fakeNodes{node: tc.node, fail: tc.fail}
				taints := New(Options{Key: DefaultKey, Nodes: nodes, Clock: clock.RealClock{}, Log: testr.New(t)})
				tc.tell(taints)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- taints.Start(ctx) }()
				clock.RealClock{}.Sleep(2 * lastRetry)
				cancel()
				if err := <-ended; err != nil {
					t.Errorf("Start: %v", err)
				}
				if diff := cmp.Diff(tc.want, nodes.patches); diff != "" {
					t.Errorf("patches (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestOnlyTheLeaderWrites(t *testing.T) {
	if !(&Taints{}).NeedLeaderElection() {
		t.Error("every replica would write to nodes")
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/controllers/expect"
)

// capturedNode is the node whose kernel was captured.
const capturedNode = "node1"

// objects are what an engine's rules were made from.
type objects struct {
	nodes      []*corev1.Node
	namespaces []*corev1.Namespace
	pods       []*corev1.Pod
	policies   []*networkingv1.NetworkPolicy
}

// parseObjects reads YAML documents. What the captures left out of them is
// added: UIDs, the nodes of Pods, that every Pod has a gate, and that every
// namespace's policies bind the Pods of others.
func parseObjects(t testing.TB, text []byte) *objects {
	t.Helper()
	o := &objects{}
	nodeAt := map[string]string{}
	for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
		document = bytes.TrimPrefix(document, []byte("---\n"))
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(document, &kind); err != nil {
			t.Fatal(err)
		}
		var into any
		switch kind.Kind {
		case "Node":
			o.nodes = append(o.nodes, &corev1.Node{})
			into = o.nodes[len(o.nodes)-1]
		case "Namespace":
			o.namespaces = append(o.namespaces, &corev1.Namespace{})
			into = o.namespaces[len(o.namespaces)-1]
		case "Pod":
			o.pods = append(o.pods, &corev1.Pod{})
			into = o.pods[len(o.pods)-1]
		case "NetworkPolicy":
			o.policies = append(o.policies, &networkingv1.NetworkPolicy{})
			into = o.policies[len(o.policies)-1]
		default:
			t.Fatalf("objects of kind %q are not used here", kind.Kind)
		}
		if err := yaml.UnmarshalStrict(document, into); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
	}
	for _, n := range o.nodes {
		for _, a := range n.Status.Addresses {
			nodeAt[a.Address] = n.Name
		}
	}
	for _, ns := range o.namespaces {
		ns.UID = types.UID("namespace " + ns.Name)
		if ns.Labels == nil {
			ns.Labels = map[string]string{}
		}
		ns.Labels[v1alpha1.KeyInject] = v1alpha1.InjectNamespace
	}
	for _, p := range o.pods {
		p.UID = types.UID(p.Namespace + "/" + p.Name)
		if p.Spec.NodeName = nodeAt[p.Status.HostIP]; p.Spec.NodeName == "" {
			p.Spec.NodeName = "node at " + p.Status.HostIP
		}
		p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: v1alpha1.ConditionProgrammed}}
	}
	for _, np := range o.policies {
		np.UID = types.UID("policy " + np.Namespace + "/" + np.Name)
	}
	return o
}

// index returns the objects as the manager holds them. Its Pods are peers of
// each other, as those that it finds when it starts.
func (o *objects) index(asked expect.Options) *coverage.Index {
	options := coverage.DefaultOptions()
	options.Expect = asked
	x := coverage.New(options)
	for _, n := range o.nodes {
		x.SetNode(n)
	}
	for _, ns := range o.namespaces {
		x.SetNamespace(ns)
	}
	for _, np := range o.policies {
		x.SetPolicy(np)
	}
	for _, p := range o.pods {
		x.SetPod(p)
	}
	return x
}

// cluster returns the objects without what an Index adds.
func (o *objects) cluster(t testing.TB) *expect.Cluster {
	t.Helper()
	c := expect.NewCluster()
	for _, n := range o.nodes {
		node := &expect.Node{Name: n.Name}
		for _, cidr := range n.Spec.PodCIDRs {
			node.PodCIDRs = append(node.PodCIDRs, prefix(cidr))
		}
		for _, a := range n.Status.Addresses {
			node.Addresses = append(node.Addresses, addr(a.Address))
		}
		c.SetNode(node)
	}
	for _, ns := range o.namespaces {
		c.SetNamespace(&expect.Namespace{Name: ns.Name, Labels: ns.Labels, Inject: true})
	}
	for _, np := range o.policies {
		policy, err := expect.NewPolicy(np)
		if err != nil {
			t.Fatal(err)
		}
		c.SetPolicy(policy)
	}
	for _, p := range o.pods {
		c.SetPod(expect.NewPod(p))
	}
	return c
}

// assigned is what the captured node is asked for one subject.
type assigned struct {
	subject      string
	expectations []expect.Expectation
}

// assignments returns what the captured node is asked for each Pod: for its
// own as subjects, and for others' as the node of their peers. Of the others
// it takes one in so many.
func (o *objects) assignments(t testing.TB, asked expect.Options, oneIn int) []assigned {
	t.Helper()
	x := o.index(asked)
	node := map[types.UID]string{}
	for _, p := range o.pods {
		node[p.UID] = p.Spec.NodeName
	}
	var all []assigned
	for i, uid := range x.Subjects() {
		if node[uid] != capturedNode && i%oneIn > 0 {
			continue
		}
		a, held := x.Assignment(uid)
		if !held || a.Span == nil {
			t.Fatalf("%s: nothing was computed: %v", uid, a.Notes)
		}
		if expectations, asked := a.PerNode[capturedNode]; asked {
			all = append(all, assigned{string(uid), expectations})
		}
	}
	return all
}

// name is an expectation as a person would look it up.
func (a assigned) name(e expect.Expectation) string {
	return fmt.Sprintf("%s: %s %s", a.subject, strings.TrimSpace(e.Why), e.Flow)
}

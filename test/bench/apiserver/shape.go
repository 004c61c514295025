// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/policygate/policygate/api/v1alpha1"
)

const (
	// writers make objects at a time.
	writers = 32
	// podsPerNamespace is the size of a namespace, and so, but for one that is
	// large, the most nodes that a Pod can wait for.
	podsPerNamespace = 25
	// largeShare is the part of all Pods that one namespace has.
	largeShare = 10
	// gatedLarge is how many gated Pods come for each one of the large
	// namespace.
	gatedLarge = 20
	// databasePort is what the policy of each namespace's databases admits.
	databasePort = 5432
)

// Shape is how large the cluster is.
type Shape struct {
	// Nodes is how many there are, each with an agent.
	Nodes int
	// Pods is how many run before Policy Gate is installed.
	Pods int
}

// Validate returns an error that says what is not usable, or nil.
func (s Shape) Validate() error {
	var errs []error
	if s.Nodes < 1 || s.Nodes > 1<<14 {
		errs = append(errs, fmt.Errorf("%d nodes: want 1 to %d", s.Nodes, 1<<14))
	}
	if s.Pods < podsPerNamespace {
		errs = append(errs, fmt.Errorf("%d Pods: want %d or more", s.Pods, podsPerNamespace))
	}
	return errors.Join(errs...)
}

// namespaces is how many there are. The first one is the large one.
func (s Shape) namespaces() int { return max(2, s.Pods/podsPerNamespace) }

// node returns the name of node i, counted round.
func (s Shape) node(i int) string { return fmt.Sprintf("node-%05d", i%s.Nodes) }

// namespaceName returns the name of namespace i.
func namespaceName(i int) string { return fmt.Sprintf("tenant-%04d", i) }

// bootID returns the boot id of a node.
func bootID(node string) string { return "boot-of-" + node }

// podRange returns the addresses of node i's Pods, a /24 of 10.0.0.0/8 beyond
// those of Services.
func podRange(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + i>>8), byte(i), 0}), 24)
}

// nodeAddress returns the address of node i, of 192.168.0.0/16.
func nodeAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 168, byte((i + 1) >> 8), byte(i + 1)})
}

func (s Shape) newNode(i int) *corev1.Node {
	name := s.node(i)
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name, corev1.LabelOSStable: "linux"}},
		Spec:       corev1.NodeSpec{PodCIDR: podRange(i).String(), PodCIDRs: []string{podRange(i).String()}},
		Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddress(i).String()}},
			NodeInfo:  corev1.NodeSystemInfo{BootID: bootID(name), OperatingSystem: "linux"},
		},
	}
}

// newPolicies returns the policies of a namespace: everything is denied but
// what comes from the same namespace, and its databases are open to its
// clients' port alone.
func newPolicies(namespace string) []*networkingv1.NetworkPolicy {
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: namespace, Name: name} }
	role := func(value string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"role": value}}
	}
	return []*networkingv1.NetworkPolicy{
		{ObjectMeta: meta("default-deny"), Spec: networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		}},
		{ObjectMeta: meta("same-namespace"), Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
				Key: "role", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"database"},
			}}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}}},
		}},
		{ObjectMeta: meta("database"), Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *role("database"),
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: role("client")}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromInt32(databasePort))}},
			}},
		}},
	}
}

// newPod returns a Pod on a node that no scheduler has chosen.
func newPod(namespace, name, node, role string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"role": role, "app": "sim"}},
		Spec: corev1.PodSpec{
			NodeName:                     node,
			AutomountServiceAccountToken: new(false),
			Containers: []corev1.Container{{
				Name: "main", Image: "example.org/main",
				Ports: []corev1.ContainerPort{{Name: "main", ContainerPort: databasePort}},
			}},
		},
	}
}

// newStanding returns Pod i of those that run before Policy Gate comes.
func (s Shape) newStanding(i int) *corev1.Pod {
	role := [...]string{"database", "client", "server", "server", "worker"}[i%5]
	// A step that is prime to most counts spreads a namespace over the nodes.
	return newPod(s.namespaceOf(i, largeShare), fmt.Sprintf("standing-%05d", i), s.node(i*7+i/s.Nodes), role)
}

// newGated returns Pod i of those that are gated: half of them of Jobs, which
// are held, half of Deployments, which wait for Ready alone.
func (s Shape) newGated(i int) *corev1.Pod {
	pod := newPod(s.namespaceOf(i, gatedLarge), fmt.Sprintf("gated-%06d", i), s.node(i*13+i/s.Nodes), "client")
	owner := metav1.OwnerReference{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "sim", UID: types.UID("replicaset")}
	if i%2 == 0 {
		owner = metav1.OwnerReference{APIVersion: "batch/v1", Kind: "Job", Name: "sim", UID: types.UID("job")}
		pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	}
	pod.OwnerReferences = []metav1.OwnerReference{owner}
	return pod
}

// namespaceOf returns the namespace of Pod i, if one in each share is of the
// large namespace.
func (s Shape) namespaceOf(i, share int) string {
	if i%share == 0 {
		return namespaceName(0)
	}
	return namespaceName(1 + i%(s.namespaces()-1))
}

// populate makes all that is there before Policy Gate is.
func (s Shape) populate(ctx context.Context, client kubernetes.Interface) error {
	core := client.CoreV1()
	err := parallel(ctx, s.Nodes, func(ctx context.Context, i int) error {
		_, err := core.Nodes().Create(ctx, s.newNode(i), metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("make the nodes: %w", err)
	}
	err = parallel(ctx, s.namespaces(), func(ctx context.Context, i int) error {
		name := namespaceName(i)
		_, err := core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{v1alpha1.KeyInject: v1alpha1.InjectNamespace},
		}}, metav1.CreateOptions{})
		errs := []error{err}
		for _, np := range newPolicies(name) {
			_, err := client.NetworkingV1().NetworkPolicies(name).Create(ctx, np, metav1.CreateOptions{})
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return fmt.Errorf("make the namespaces: %w", err)
	}
	err = parallel(ctx, s.Pods, func(ctx context.Context, i int) error {
		pod := s.newStanding(i)
		_, err := core.Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("make the Pods: %w", err)
	}
	return nil
}

// parallel calls f for 0 to n-1, some at a time, until one returns an error.
func parallel(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(writers, n) {
		group.Go(func() error {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(ctx, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

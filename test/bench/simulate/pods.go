// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/bench/store"
	"github.com/policygate/policygate/test/bench/world"
)

const (
	// sandboxLeast and sandboxMost bound the time from a Pod's placement to its
	// address: what a runtime and a network plugin take.
	sandboxLeast = 200 * time.Millisecond
	sandboxMost  = 800 * time.Millisecond
	// noticeMost is how long a kubelet takes at most to show a hold what the
	// gate says.
	noticeMost = 100 * time.Millisecond
	// again marks the annotation's value where it is written to wake a kubelet.
	again = ";again="
)

// job is a gated Pod that is to be.
type job struct {
	namespace string
	labels    map[string]string
	ports     []corev1.ContainerPort
	// life is how long it runs once its gate is open.
	life time.Duration
	// held: it is never opened, on node, which has no agent.
	held bool
	// late: its engines are late by up to so much. It runs on node. Others run
	// anywhere with an agent.
	late time.Duration
	node int
}

// placed reports whether the job says where it runs.
func (j *job) placed() bool { return j.held || j.late > 0 }

// passage is what became of a gated Pod.
type passage struct {
	uid                        types.UID
	created, addressed, opened time.Time
	reason                     string
	// late: its engines were late.
	late bool
	// requests counts the agents' patches, writes those that changed the Pod
	// other than to wake its kubelet, and messages the manager's.
	requests, writes, messages int
	opening                    world.Opening
	done                       chan struct{}
}

// pods keeps track of the gated Pods. It is what the agents patch.
type pods struct {
	cluster *cluster
	running sync.WaitGroup

	mu     sync.Mutex // guards what follows
	serial int
	byName map[types.NamespacedName]*passage
	ended  []*passage
	// messages are the times of the manager's patches.
	messages []time.Time
}

func newPods(c *cluster) *pods { return &pods{cluster: c, byName: map[types.NamespacedName]*passage{}} }

// PatchStatus implements reporter.Pods for every agent.
func (p *pods) PatchStatus(_ context.Context, namespace, name string, patch []byte) error {
	key := types.NamespacedName{Namespace: namespace, Name: name}
	changed, err := p.cluster.store.PatchStatus(namespace, name, patch)
	at := time.Now()
	p.mu.Lock()
	x := p.byName[key]
	first := false
	if x != nil {
		x.requests++
		if changed && !bytes.Contains(patch, []byte(again)) {
			x.writes++
		}
		if first = err == nil && x.opened.IsZero(); first {
			x.opened = at
		}
	}
	p.mu.Unlock()
	if first {
		opening := p.cluster.world.Opened(x.uid, at)
		p.mu.Lock()
		x.opening = opening
		p.mu.Unlock()
		close(x.done)
	}
	return err
}

// messageWritten counts a patch of the manager.
func (p *pods) messageWritten(namespace, name string, err error) {
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.messages = append(p.messages, time.Now())
	if x := p.byName[types.NamespacedName{Namespace: namespace, Name: name}]; x != nil {
		x.messages++
	}
}

// take returns the Pods that ended since the last call, and when the manager
// wrote messages.
func (p *pods) take() ([]*passage, []time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ended, messages := p.ended, p.messages
	p.ended, p.messages = nil, nil
	return ended, messages
}

// run has a gated Pod live its life, in its own time.
func (p *pods) run(ctx context.Context, j job, rng *rand.Rand) {
	seed := rng.Uint64()
	p.running.Go(func() { p.live(ctx, j, rand.New(rand.NewPCG(seed, 0))) })
}

func (p *pods) live(ctx context.Context, j job, rng *rand.Rand) {
	c := p.cluster
	node := rng.IntN(c.options.Nodes)
	if j.placed() {
		node = j.node
	}
	x := &passage{late: j.late > 0, done: make(chan struct{})}
	key := p.create(j, x)
	defer func() {
		c.store.Delete(store.Pods, key)
		c.fleet.Forget(string(x.uid))
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.byName, key)
		if !j.held {
			p.ended = append(p.ended, x)
		}
	}()
	c.store.UpdatePod(key, x.uid, func(pod *corev1.Pod) { pod.Spec.NodeName = c.names[node] })
	if !sleep(ctx, between(rng, sandboxLeast, sandboxMost)) {
		return
	}
	ip, release := c.address(node)
	defer release()
	p.mu.Lock()
	x.addressed = time.Now()
	p.mu.Unlock()
	c.store.UpdatePod(key, x.uid, func(pod *corev1.Pod) { hold(pod, ip, time.Now()) })
	var giveUp <-chan time.Time
	if !j.held {
		giveUp = time.After(c.options.Patience + j.late)
	}
	select {
	case <-x.done:
	case <-ctx.Done():
		return
	case <-giveUp:
		return
	}
	sleep(ctx, between(rng, 0, noticeMost))
	if pod := c.store.UpdatePod(key, x.uid, letGo); pod != nil {
		p.mu.Lock()
		x.reason = conditionOf(pod).Reason
		p.mu.Unlock()
	}
	sleep(ctx, j.life)
	c.store.UpdatePod(key, x.uid, func(pod *corev1.Pod) { pod.Status.Phase = corev1.PodSucceeded })
}

// create makes the Pod and begins to track it.
func (p *pods) create(j job, x *passage) types.NamespacedName {
	p.mu.Lock()
	p.serial++
	name := fmt.Sprintf("pod-%06d", p.serial)
	p.mu.Unlock()
	pod := newPod(j, name)
	pod.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: v1alpha1.ConditionProgrammed}}
	pod.Spec.InitContainers = []corev1.Container{{Name: v1alpha1.HoldContainerName}}
	pod.Status.Phase = corev1.PodPending
	if j.placed() {
		// Beyond all that it may wait.
		pod.Annotations = map[string]string{
			v1alpha1.KeyTimeout: v1alpha1.MaxTimeout.String(), v1alpha1.KeyOnTimeout: v1alpha1.OnTimeoutFail,
		}
	}
	created := time.Now()
	p.cluster.store.Create(pod)
	key := client.ObjectKeyFromObject(pod)
	p.mu.Lock()
	defer p.mu.Unlock()
	x.uid, x.created = pod.UID, created
	p.byName[key] = x
	return key
}

func newPod(j job, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: j.namespace, Name: name, Labels: j.labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Ports: j.ports}}},
	}
}

// hold is what the kubelet writes when the sandbox is there.
func hold(pod *corev1.Pod, ip string, now time.Time) {
	pod.Status.PodIP, pod.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	pod.Status.InitContainerStatuses = []corev1.ContainerStatus{{
		Name:  v1alpha1.HoldContainerName,
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(now)}},
	}}
}

// letGo is what the kubelet writes when the hold has ended.
func letGo(pod *corev1.Pod) {
	pod.Status.Phase = corev1.PodRunning
	for i := range pod.Status.InitContainerStatuses {
		state := &pod.Status.InitContainerStatuses[i].State
		if state.Running != nil {
			*state = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: state.Running.StartedAt}}
		}
	}
}

func conditionOf(pod *corev1.Pod) corev1.PodCondition {
	for _, c := range pod.Status.Conditions {
		if c.Type == v1alpha1.ConditionProgrammed {
			return c
		}
	}
	return corev1.PodCondition{}
}

// stand adds a Pod that has been there for long and is not gated.
func (c *cluster) stand(j job, node int) {
	c.pods.mu.Lock()
	c.pods.serial++
	name := fmt.Sprintf("standing-%06d", c.pods.serial)
	c.pods.mu.Unlock()
	pod := newPod(j, name)
	ip, _ := c.address(node)
	pod.Spec.NodeName = c.names[node]
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}
	c.store.Create(pod)
}

// sleep waits and reports whether ctx has not ended meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func between(rng *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rng.Int64N(int64(most-least)))
}

// addresses are those of one node's Pods.
type addresses struct {
	block int
	last  int
	taken map[int]bool
}

func (a *addresses) cidr() string { return fmt.Sprintf("10.%d.%d.0/24", a.block/256, a.block%256) }

// address gives out an address of a node, the one that was free the longest.
func (c *cluster) address(node int) (ip string, release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.addresses[node]
	if a.taken == nil {
		a.taken = map[int]bool{}
	}
	for {
		// From .2 to .249: the rest is never a Pod's.
		if a.last++; a.last < 2 || a.last > 249 {
			a.last = 2
		}
		if !a.taken[a.last] {
			break
		}
	}
	host := a.last
	a.taken[host] = true
	return fmt.Sprintf("10.%d.%d.%d", a.block/256, a.block%256, host), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(a.taken, host)
	}
}

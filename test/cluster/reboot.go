// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// powerTimeout bounds the removal of what a node leaves when it stops, which must not depend
// on a context that has ended. Ten times what it was seen to need with 50 Pods.
const powerTimeout = 30 * time.Second

// Reboot is StopNode and StartNode.
func (c *Cluster) Reboot(ctx context.Context, n *Node) error {
	if err := c.StopNode(ctx, n); err != nil {
		return err
	}
	return c.StartNode(ctx, n)
}

// StopNode takes a node's power away. The network to it is dead first, so that nobody hears of
// the rest; then all its processes and containers are killed, those of StartProcess and Command
// included, and what lives in memory is gone: its network namespace with the Pods', their
// rules, sets, routes, links and connections, its mounts, and /run. Its files below /var/lib
// and /var/log stay, as on a disk, and the Node object stays: the node controller finds out.
//
// It is no error if the node is off. ctx cannot stop it half way.
func (c *Cluster) StopNode(ctx context.Context, n *Node) error {
	n.power.Lock()
	defer n.power.Unlock()
	if err := c.powerOff(ctx, n); err != nil {
		return fmt.Errorf("stop node %s: %w", n.Name, err)
	}
	return nil
}

func (c *Cluster) powerOff(ctx context.Context, n *Node) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), powerTimeout)
	defer cancel()
	n.setHolder(nil) // nothing is to start in there any more
	if err := c.network().unplug(n.Name); err != nil {
		return err
	}
	if _, err := os.Stat(netnsPath(n.NetNS)); err == nil {
		// The connections of those who are killed below wait for an answer, which cannot
		// come, and keep the namespace with all its links: minutes by default.
		if err := setSysctls(n.NetNS, map[string]string{"net/ipv4/tcp_orphan_retries": "1"}); err != nil {
			return err
		}
	}
	// The runtime first, which could start more containers.
	if err := c.cgroups.killAll(ctx, c.cgroup(n.Name)); err != nil {
		return err
	}
	containers, err := n.containerCgroups()
	if err != nil {
		return err
	}
	cgroups := append([]string{c.cgroup(n.Name)}, containers...)
	for _, name := range cgroups {
		if err := c.cgroups.killAll(ctx, name); err != nil {
			return err
		}
	}
	if err := c.forget(ctx, n); err != nil {
		return err
	}
	var errs []error
	for _, name := range cgroups {
		errs = append(errs, c.cgroups.remove(ctx, name))
	}
	errs = append(errs, deleteNetNS(ctx, n.NetNS))
	return errors.Join(errs...)
}

// forget takes the processes of a node, which are dead, off the record.
func (c *Cluster) forget(ctx context.Context, n *Node) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, p := range c.processes {
		if p.cgroup != n.systemCgroup() && !strings.HasPrefix(name, n.Name+"-") {
			continue
		}
		// Children of this process become reaped.
		if err := p.Wait(ctx); err != nil && ctx.Err() != nil {
			return err
		}
		delete(c.processes, name)
		delete(c.state.Processes, name)
	}
	return c.state.save()
}

// StartNode starts a node that is off, be it after StopNode or for the first time, see
// Options.LateNodes. kubeletArgs are added to its kubelet's arguments, until it stops.
// --register-with-taints works at the first start only: kubelet makes the Node object then,
// unless there is one.
//
// The network namespace is made as Start makes it, so that settings of a test's own, such as
// sysctls and rules, are to be made again; containerd, kubelet and kube-proxy start. It returns
// when kubelet has reported the node Ready and the node controller has taken note. Processes
// that StartProcess started are for the caller to start again. After an error the node is off.
//
// After a StopNode it is what a reboot is to a real node: Pods that are bound to it get new
// sandboxes with new addresses. host-local keeps its reservations in /var/lib/cni/networks,
// which is on disk by default, while containerd's state in /run is gone: the addresses of the
// old sandboxes are taken until kubelet has removed those, and the next addresses are given
// out from where the range was before, not from its start. A test that wants them reused at
// once removes that directory's files before. Only the boot ID does not change, since it is
// the machine's, in kubelet's status as in /proc.
func (c *Cluster) StartNode(ctx context.Context, n *Node, kubeletArgs ...string) error {
	n.power.Lock()
	defer n.power.Unlock()
	if n.Running() {
		return fmt.Errorf("start node %s: it runs", n.Name)
	}
	if err := c.powerOn(ctx, n, kubeletArgs); err != nil {
		return fmt.Errorf("start node %s: %w", n.Name, errors.Join(err, c.powerOff(ctx, n)))
	}
	return nil
}

func (c *Cluster) powerOn(ctx context.Context, n *Node, kubeletArgs []string) error {
	_, err := os.Stat(filepath.Join(n.dir, "lib", "containerd"))
	first := errors.Is(err, os.ErrNotExist)
	if err := c.network().addNode(ctx, n.index); err != nil {
		return err
	}
	if err := n.startRuntime(ctx); err != nil {
		return err
	}
	if first {
		c.mu.Lock()
		archives := append([]string{c.pauseArchive()}, c.archives...)
		c.mu.Unlock()
		for _, tar := range archives {
			if err := n.loadImage(ctx, tar); err != nil {
				return err
			}
		}
	}
	began := time.Now()
	if err := n.startKubelet(ctx, kubeletArgs); err != nil {
		return err
	}
	return c.await(ctx, "node "+n.Name+" to be Ready", c.process(n.Name+"-kubelet"), func(ctx context.Context) error {
		node, err := c.client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if err := reportedSince(node, began); err != nil {
			return err
		}
		if len(node.Spec.PodCIDRs) == 0 { // kubelet made the object
			n.setPodCIDRs(node)
			if _, err := c.client.CoreV1().Nodes().Update(ctx, node, metav1.UpdateOptions{}); err != nil {
				return err
			}
		}
		return ready(node)
	})
}

// reportedSince reports it if kubelet has not told the node's condition after a time: the
// condition is then that of before the node went off.
func reportedSince(node *corev1.Node, began time.Time) error {
	// The API's times are whole seconds, rounded down. A report of before in the same second is
	// next to impossible: there are minutes between two, and containerd starts first.
	began = began.Truncate(time.Second)
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && !condition.LastHeartbeatTime.Time.Before(began) {
			return nil
		}
	}
	return errors.New("no report since the start of kubelet")
}

// LowestAddress makes host-local give the node's next Pod the lowest address that is free, by
// removing the mark from which it goes on through the range. Called all the time it makes the
// range behave as one that is nearly used up: the address that a Pod gives up goes to the next
// Pod at once. It is no error if there is no mark, or the node is off.
func (n *Node) LowestAddress() error {
	marks, err := filepath.Glob(filepath.Join(n.dir, "lib", "cni", "networks", "kube-bridge", "last_reserved_ip.*"))
	if err != nil {
		return fmt.Errorf("find the last address of %s: %w", n.Name, err)
	}
	for _, mark := range marks {
		if err := os.Remove(mark); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("forget the last address of %s: %w", n.Name, err)
		}
	}
	return nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/test/cluster/image"
)

// starter is a start in progress.
type starter struct {
	*Cluster
	began time.Time
}

// nodes returns the nodes that Start starts.
func (s starter) nodes() []*Node {
	return s.Cluster.nodes[:len(s.Cluster.nodes)-s.state.Options.LateNodes]
}

// progress reports that a step is done.
func (s starter) progress(format string, args ...any) {
	_, _ = fmt.Fprintf(s.state.Options.Progress, "%6.1fs  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// Start starts a cluster and returns when Pods can be created and all nodes are Ready. It
// first removes leftovers, see Cleanup. If it fails, or ctx ends, it removes what it had
// started, but for the logs. The cluster outlives ctx: it is there until Stop.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	began := time.Now()
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	if err := prepareMachine(ctx); err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	if err := Cleanup(ctx, o.Dir); err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	owner, err := identify(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	claimed, err := claim(state{Options: o, Owner: owner, Processes: map[string]identity{}}, usable)
	if err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	c, err := newCluster(claimed)
	if err != nil {
		return nil, fmt.Errorf("start cluster: %w", errors.Join(err, release(claimed)))
	}
	if err := (starter{Cluster: c, began: began}).start(ctx); err != nil {
		err = fmt.Errorf("start cluster %q: %w", o.Name, err)
		// ctx may be what ended the start; removing takes a second or two.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if removal := c.remove(ctx); removal != nil {
			err = fmt.Errorf("%w (and removing it: %w)", err, removal)
		}
		return nil, err
	}
	return c, nil
}

// prepareMachine checks what a cluster needs of the machine, and loads kernel modules.
func prepareMachine(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("this needs root, for network namespaces, mounts and containers")
	}
	if missing := MissingCommands(); len(missing) > 0 {
		return fmt.Errorf("commands are missing: %s (on Debian and Ubuntu \"cluster up\" installs them)", strings.Join(missing, ", "))
	}
	const bridgeFilter = "/proc/sys/net/bridge/bridge-nf-call-iptables"
	if _, err := os.Stat(bridgeFilter); err != nil {
		// Built in, or a module that nothing loads by itself. Others are loaded on use.
		output, modprobe := exec.CommandContext(ctx, "modprobe", "-a", "br_netfilter", "overlay").CombinedOutput()
		if _, err := os.Stat(bridgeFilter); err != nil {
			if modprobe != nil {
				modprobe = fmt.Errorf("modprobe: %w: %s", modprobe, output)
			}
			return fmt.Errorf("the kernel has no br_netfilter: %w", errors.Join(err, modprobe))
		}
	}
	return nil
}

// start brings up everything, what depends on nothing else at the same time.
func (s starter) start(ctx context.Context) error {
	if err := os.RemoveAll(s.state.dir()); err != nil {
		return fmt.Errorf("remove old files: %w", err)
	}
	if err := os.MkdirAll(s.Logs(), 0o755); err != nil {
		return fmt.Errorf("make directories: %w", err)
	}
	server := "https://" + apiServerAddr(s.state.plan())
	if err := writePKI(s.pki(""), s.state.plan(), s.state.Options.Nodes, server); err != nil {
		return err
	}
	var err error
	if s.client, err = newClient(s.pki("")); err != nil {
		return err
	}
	if err := s.network().create(ctx); err != nil {
		return err
	}
	for _, n := range s.nodes() {
		if err := s.network().addNode(ctx, n.index); err != nil {
			return err
		}
	}
	s.progress("network in slot %d, certificates", s.state.Slot)

	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.startControlPlane(groupCtx) })
	group.Go(func() error { return s.startRuntimes(groupCtx) })
	if err := group.Wait(); err != nil {
		return err
	}
	return s.startKubelets(ctx)
}

// startControlPlane starts etcd, the API server and its clients.
func (s starter) startControlPlane(ctx context.Context) error {
	if _, err := s.startControl(ctx, s.etcdArgs()); err != nil {
		return err
	}
	if err := s.StartAPIServer(ctx); err != nil {
		return err
	}
	s.progress("API server %s", s.APIServerAddr())
	for _, args := range [][]string{s.controllerManagerArgs(), s.schedulerArgs()} {
		if _, err := s.startControl(ctx, args); err != nil {
			return err
		}
	}
	return s.registerNodes(ctx)
}

// startRuntimes starts every node's containerd and loads the pause image.
func (s starter) startRuntimes(ctx context.Context) error {
	pause := filepath.Join(filepath.Dir(s.state.Options.KubeBinary), "pause")
	err := image.Write(ctx, s.pauseArchive(), image.Spec{
		Ref:        pauseImage,
		Entrypoint: []string{"/pause"},
		Files:      map[string]string{"/pause": pause},
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range s.nodes() {
		group.Go(func() error {
			if err := n.startRuntime(ctx); err != nil {
				return err
			}
			return n.loadImage(ctx, s.pauseArchive())
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	s.progress("containerd on %d nodes", len(s.nodes()))
	return nil
}

// pauseArchive is the archive of the pause image.
func (c *Cluster) pauseArchive() string { return c.path("pause.tar") }

// startRuntime starts the node's mount namespace and containerd, and returns once that is
// ready.
func (n *Node) startRuntime(ctx context.Context) error {
	if err := n.startHolder(ctx); err != nil {
		return err
	}
	if err := n.configure(); err != nil {
		return err
	}
	containerd, err := n.start(ctx, "containerd", containerdArgs(n))
	if err != nil {
		return err
	}
	return n.cluster.await(ctx, "containerd on "+n.Name, containerd, n.runtimeReady)
}

// registerNodes creates the Node objects, with the pod ranges that routes and CNI plugins are
// configured with; kubelets find and complete them.
func (s starter) registerNodes(ctx context.Context) error {
	for _, n := range s.nodes() {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{corev1.LabelHostname: n.Name}}}
		n.setPodCIDRs(node)
		_, err := s.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("register node %s: %w", n.Name, err)
		}
	}
	return nil
}

// setPodCIDRs completes a Node object's specification.
func (n *Node) setPodCIDRs(node *corev1.Node) {
	for _, prefix := range n.PodCIDRs {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, prefix.String())
	}
	node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
}

// startKubelet starts the node's kubelet, with additional arguments, and its kube-proxy.
func (n *Node) startKubelet(ctx context.Context, args []string) error {
	c := n.cluster
	// kubelet expects the root of its Pods' cgroups to be there before the first Pod.
	if err := c.cgroups.createEverywhere(c.cgroup(n.podsCgroup())); err != nil {
		return err
	}
	if _, err := n.start(ctx, "kubelet", append(kubeletArgs(n), args...)); err != nil {
		return err
	}
	if c.state.Options.NoKubeProxy {
		return nil
	}
	_, err := n.start(ctx, "kube-proxy", kubeProxyArgs(n))
	return err
}

// startKubelets starts kubelets and kube-proxies, and waits until Pods can run everywhere.
func (s starter) startKubelets(ctx context.Context) error {
	for _, n := range s.nodes() {
		if err := n.startKubelet(ctx, nil); err != nil {
			return err
		}
	}
	for _, n := range s.nodes() {
		err := s.await(ctx, "node "+n.Name+" to be Ready", s.process(n.Name+"-kubelet"), func(ctx context.Context) error {
			node, err := s.client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			return ready(node)
		})
		if err != nil {
			return err
		}
	}
	s.progress("%d nodes Ready", len(s.nodes()))
	// Without it no Pod can be created in the namespace.
	return s.await(ctx, "the default ServiceAccount", s.process("kube-controller-manager"), func(ctx context.Context) error {
		_, err := s.client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// ready reports why a node is not Ready, or not yet so for the node controller, if it is not.
// Taints of others, such as one that kubelet registered the node with, do not matter.
func ready(node *corev1.Node) error {
	for _, taint := range node.Spec.Taints {
		switch taint.Key {
		case corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable:
			return fmt.Errorf("taint %s", taint.ToString())
		}
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			if condition.Status == corev1.ConditionTrue {
				return nil
			}
			return fmt.Errorf("not Ready: %s", condition.Message)
		}
	}
	return fmt.Errorf("no Ready condition yet")
}

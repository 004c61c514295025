// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// criNamespace is where containerd keeps what belongs to Kubernetes.
const criNamespace = "k8s.io"

// LoadImage loads an image archive (docker-archive or OCI layout, in one tar) into the named
// nodes, or all if none are named: those that are off then get it by their first StartNode,
// for which the file must still be there. Pods use it with imagePullPolicy Never or
// IfNotPresent. It returns when kubelets can see it.
func (c *Cluster) LoadImage(ctx context.Context, tarPath string, nodes ...string) error {
	for _, name := range nodes {
		if c.node(name) == nil {
			return fmt.Errorf("load image %s: no node %q", tarPath, name)
		}
	}
	if len(nodes) == 0 {
		c.mu.Lock()
		c.archives = append(c.archives, tarPath)
		c.mu.Unlock()
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range c.nodes {
		if (len(nodes) == 0 && n.Running()) || slices.Contains(nodes, n.Name) {
			group.Go(func() error { return n.loadImage(ctx, tarPath) })
		}
	}
	return group.Wait()
}

// node returns the node with the given name, or nil.
func (c *Cluster) node(name string) *Node {
	for _, n := range c.nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// loadImage imports an archive and waits until it is visible through the CRI, which learns of
// images by containerd's events.
func (n *Node) loadImage(ctx context.Context, tarPath string) error {
	archive, err := os.Open(tarPath)
	if err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	defer archive.Close()
	// By standard input: the path may mean another file in the node.
	load := n.ctr(ctx, "images", "import", "-")
	load.Stdin = archive
	if output, err := load.CombinedOutput(); err != nil {
		return fmt.Errorf("load image %s into %s: %w: %s", tarPath, n.Name, err, output)
	}
	output, err := n.ctr(ctx, "images", "list", "--quiet").Output()
	if err != nil {
		return fmt.Errorf("list images of %s: %w", n.Name, err)
	}
	return n.withRuntime(func(conn *grpc.ClientConn) error {
		images := runtimeapi.NewImageServiceClient(conn)
		for ref := range strings.FieldsSeq(string(output)) {
			if strings.HasPrefix(ref, "sha256:") {
				continue // the CRI's own name for an image that has another
			}
			if err := awaitImage(ctx, images, ref); err != nil {
				return fmt.Errorf("load image %s into %s: %w", tarPath, n.Name, err)
			}
		}
		return nil
	})
}

func awaitImage(ctx context.Context, images runtimeapi.ImageServiceClient, ref string) error {
	for {
		response, err := images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		if err != nil {
			return fmt.Errorf("get status of %s: %w", ref, err)
		}
		if response.GetImage() != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", ref, ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}

// ctr returns a command of containerd's client.
func (n *Node) ctr(ctx context.Context, args ...string) *exec.Cmd {
	return n.Command(ctx, "ctr", append([]string{"--address", criSocket, "--namespace", criNamespace}, args...)...)
}

// runtimeReady reports whether containerd's CRI plugin and network are ready.
func (n *Node) runtimeReady(ctx context.Context) error {
	return n.withRuntime(func(conn *grpc.ClientConn) error {
		response, err := runtimeapi.NewRuntimeServiceClient(conn).Status(ctx, &runtimeapi.StatusRequest{})
		if err != nil {
			return err
		}
		for _, condition := range response.GetStatus().GetConditions() {
			if !condition.GetStatus() {
				return fmt.Errorf("%s is false: %s", condition.GetType(), condition.GetMessage())
			}
		}
		return nil
	})
}

// withRuntime calls f with a connection to the node's containerd.
func (n *Node) withRuntime(f func(*grpc.ClientConn) error) error {
	// The socket is in the node's mount namespace, which is there as its holder's root.
	holder, err := n.held()
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	target := fmt.Sprintf("unix:///proc/%d/root%s", holder.Pid(), criSocket)
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect to containerd of %s: %w", n.Name, err)
	}
	return errors.Join(f(conn), conn.Close())
}

// KillSandbox stops the sandbox of a Pod behind kubelet's back: its containers end and its
// address is given up. kubelet then makes a new sandbox, which has another address, since
// host-local goes round its range, and starts all containers anew, init containers first.
func (c *Cluster) KillSandbox(ctx context.Context, namespace, pod string) error {
	if err := c.killSandbox(ctx, namespace, pod); err != nil {
		return fmt.Errorf("kill sandbox of %s/%s: %w", namespace, pod, err)
	}
	return nil
}

func (c *Cluster) killSandbox(ctx context.Context, namespace, pod string) error {
	object, err := c.client.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
	if err != nil {
		return err
	}
	n := c.node(object.Spec.NodeName)
	if n == nil {
		return errors.New("the Pod has no node yet")
	}
	return n.withRuntime(func(conn *grpc.ClientConn) error {
		runtime := runtimeapi.NewRuntimeServiceClient(conn)
		list, err := runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
			State:         &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
			LabelSelector: map[string]string{"io.kubernetes.pod.uid": string(object.UID)},
		}})
		if err != nil {
			return fmt.Errorf("list sandboxes: %w", err)
		}
		if len(list.GetItems()) == 0 {
			return errors.New("it has none that is ready")
		}
		for _, sandbox := range list.GetItems() {
			if _, err := runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox.GetId()}); err != nil {
				return fmt.Errorf("stop sandbox %s: %w", sandbox.GetId(), err)
			}
		}
		return nil
	})
}

// Container returns the process of a Pod's container that runs, the first one of it: signals
// reach that alone. The name may be an init container's.
func (c *Cluster) Container(ctx context.Context, namespace, pod, container string) (*Process, error) {
	name := fmt.Sprintf("container %s of %s/%s", container, namespace, pod)
	object, err := c.client.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	n := c.node(object.Spec.NodeName)
	if n == nil {
		return nil, fmt.Errorf("find %s: the Pod has no node yet", name)
	}
	var p *Process
	err = n.withRuntime(func(conn *grpc.ClientConn) error {
		pid, err := containerPID(ctx, runtimeapi.NewRuntimeServiceClient(conn), map[string]string{
			"io.kubernetes.pod.uid":        string(object.UID),
			"io.kubernetes.container.name": container,
		})
		if err != nil {
			return err
		}
		who, err := identify(pid)
		p = &Process{name: name, identity: who}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	return p, nil
}

// containerPID returns the process ID of the one running container with the given labels.
func containerPID(ctx context.Context, runtime runtimeapi.RuntimeServiceClient, labels map[string]string) (int, error) {
	list, err := runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State:         &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
		LabelSelector: labels,
	}})
	if err != nil {
		return 0, fmt.Errorf("list containers: %w", err)
	}
	if len(list.GetContainers()) != 1 {
		return 0, fmt.Errorf("%d of it run", len(list.GetContainers()))
	}
	status, err := runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{
		ContainerId: list.GetContainers()[0].GetId(), Verbose: true,
	})
	if err != nil {
		return 0, fmt.Errorf("get status: %w", err)
	}
	// The CRI leaves what is verbose to the runtime: containerd says it in JSON.
	var info struct{ PID int }
	if err := json.Unmarshal([]byte(status.GetInfo()["info"]), &info); err != nil {
		return 0, fmt.Errorf("parse status: %w", err)
	}
	if info.PID <= 0 {
		return 0, errors.New("it has no process")
	}
	return info.PID, nil
}

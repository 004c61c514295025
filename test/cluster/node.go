// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
)

// Node is one node of a cluster.
type Node struct {
	PlannedNode
	// NetNS is the name of the node's network namespace, as "ip netns" shows it.
	NetNS string

	cluster *Cluster
	index   int // in the plan
	dir     string
	// power is held while the node starts or stops.
	power sync.Mutex

	mu sync.Mutex // protects the following fields
	// holder keeps the node's mount namespace; nil while the node is off.
	holder *Process
}

// Running says whether the node is on: it is not before StartNode if it is one of
// Options.LateNodes, nor from StopNode to StartNode.
func (n *Node) Running() bool {
	_, err := n.held()
	return err == nil
}

// held returns the process that keeps the node's mount namespace.
func (n *Node) held() (*Process, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.holder == nil {
		return nil, fmt.Errorf("node %s is off", n.Name)
	}
	return n.holder, nil
}

func (n *Node) setHolder(p *Process) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.holder = p
}

// criSocket is where containerd listens, in a node's mount namespace.
const criSocket = "/run/containerd/containerd.sock"

// holderScript sets up the mount namespace that it is started in, as root of the directory
// $0, says so, and stays. What is mounted in there goes with the last process in there.
//
//   - /sys is that of the node's network namespace, with the machine's cgroups.
//   - /run is empty: its own xtables.lock, containerd socket and Pods' network namespaces.
//   - /var/lib and /var/log are the node's, so that kubelet, containerd and CNI plugins can
//     have their usual paths, and hostPath volumes find them there.
//
// The mounts are shared at the end, as kubelet expects of a node's.
const holderScript = "" +
	"set -e\n" +
	"cd \"$0\"\n" +
	"mount --rbind /sys/fs/cgroup cgroup\n" +
	"mount -t sysfs sysfs /sys\n" + //nolint:dupword // a type and a source
	"mount --rbind cgroup /sys/fs/cgroup\n" +
	"umount -l cgroup\n" +
	"mount -t tmpfs -o mode=755 tmpfs /run\n" +
	"mkdir /run/lock /run/netns\n" +
	"mount --bind lib /var/lib\n" +
	"mount --bind log /var/log\n" +
	"mount --make-rshared /\n" +
	"echo ready\n" +
	"exec sleep infinity\n"

// startHolder makes the node's mount namespace.
func (n *Node) startHolder(ctx context.Context) error {
	for _, sub := range []string{"cgroup", "lib", "log", "bin", "cni"} {
		if err := os.MkdirAll(filepath.Join(n.dir, sub), 0o755); err != nil {
			return fmt.Errorf("make directories of %s: %w", n.Name, err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start holder of %s: %w", n.Name, err)
	}
	defer r.Close()
	// The script's "ready" goes to a descriptor of its own; its log must not hold it.
	l := launch{
		name: n.Name + "-holder",
		argv: []string{
			"unshare", "--mount", "--propagation=private", "--",
			"/bin/sh", "-c", holderScript, n.dir,
		},
		netns: n.NetNS,
	}
	holder, err := n.cluster.runTo(ctx, l, n.systemCgroup(), w)
	w.Close()
	if err != nil {
		return err
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("start holder of %s: %w", n.Name, err)
	}
	if line != "ready\n" {
		return fmt.Errorf("set up mounts of %s: %s", n.Name, logTail(holder.Log()))
	}
	n.setHolder(holder)
	return ctx.Err()
}

// systemCgroup is the cgroup of the node's own processes, relative to the cluster's. The
// containers have another: with cgroup v2 only leaves hold processes.
func (n *Node) systemCgroup() string { return filepath.Join(n.Name, "system") }

// podsCgroup is the cgroup of the node's containers, relative to the cluster's.
func (n *Node) podsCgroup() string { return filepath.Join(n.Name, "pods") }

// containerCgroups returns the cgroups of all containers that the node's runtime knows of. A
// kubelet without cgroups per QoS class names no parent for a Pod's, so containerd puts each
// below one that is called as its own namespace, beside the cluster's and not below it.
func (n *Node) containerCgroups() ([]string, error) {
	var found []string
	for _, kind := range []string{"sandboxes", "containers"} {
		dir := filepath.Join(n.dir, "lib", "containerd", "io.containerd.grpc.v1.cri", kind)
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list containers of %s: %w", n.Name, err)
		}
		for _, entry := range entries {
			found = append(found, filepath.Join("k8s.io", entry.Name()))
		}
	}
	return found, nil
}

// env is the environment of the node's processes: its choice of iptables comes first.
func (n *Node) env() []string {
	return []string{"PATH=" + filepath.Join(n.dir, "bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

// Command returns a command that runs in the node: in its network and mount namespaces, with
// its iptables first in PATH, ended by Cluster.Stop at the latest. The files below /run,
// /var/lib and /var/log are the node's own, and the working directory is /. The process is
// the named program itself, so that signals and ctx's end reach it. If the cluster's cgroup is
// gone or the node is off, running the command fails.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	l, err := n.launch(name, append([]string{name}, args...))
	if err != nil {
		return &exec.Cmd{Path: name, Args: append([]string{name}, args...), Err: err}
	}
	l.cgroupProcs = n.cluster.cgroupProcs(n.systemCgroup())
	return l.command(ctx)
}

// launch returns the launch of a process in the node. It is an error if the node is off.
func (n *Node) launch(name string, argv []string) (launch, error) {
	holder, err := n.held()
	if err != nil {
		return launch{}, err
	}
	return launch{name: name, argv: argv, env: n.env(), netns: n.NetNS, mountOf: holder.Pid()}, nil
}

// start starts one of the node's own components. Its log is called after the node and it.
func (n *Node) start(ctx context.Context, component string, argv []string) (*Process, error) {
	l, err := n.launch(n.Name+"-"+component, argv)
	if err != nil {
		return nil, err
	}
	return n.cluster.run(ctx, l, n.systemCgroup())
}

// configure writes the node's configuration files, and its iptables commands.
func (n *Node) configure() error {
	o := n.cluster.state.Options
	plugins, err := cniPluginDir()
	if err != nil {
		return err
	}
	snapshotter, err := snapshotterFor(n.dir)
	if err != nil {
		return err
	}
	files := map[string]string{
		"containerd.toml":             containerdConfig(n, plugins, snapshotter),
		"cni/10-kube-bridge.conflist": cniConfig(n),
		"kubelet.yaml":                kubeletConfig(n),
		"kube-proxy.yaml":             kubeProxyConfig(n),
		// There is no DNS; without a server to ask, look-ups fail at once.
		"resolv.conf": "# This cluster has no DNS.\n",
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("configure %s: %w", n.Name, err)
		}
	}
	return linkIPTables(filepath.Join(n.dir, "bin"), o.IPTables)
}

// linkIPTables fills dir with the iptables commands of one variant under their plain names.
func linkIPTables(dir, variant string) error {
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			target, err := exec.LookPath(family + "-" + variant + suffix)
			if err != nil {
				return fmt.Errorf("choose iptables: %w", err)
			}
			// The program looks at the name that it is called by, so the links lead to the
			// program, and not to a link of another name.
			if target, err = filepath.EvalSymlinks(target); err != nil {
				return fmt.Errorf("choose iptables: %w", err)
			}
			if err := os.Symlink(target, filepath.Join(dir, family+suffix)); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("choose iptables: %w", err)
			}
		}
	}
	return nil
}

// cniPluginDir returns the directory of the CNI plugins: Debian's, or the upstream default.
func cniPluginDir() (string, error) {
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin"} {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("find CNI plugins: no bridge plugin in /usr/lib/cni or /opt/cni/bin")
}

// snapshotterFor returns the containerd snapshotter for a directory: an overlay cannot have
// its upper layer on another overlay, which is what a container's root file system is.
func snapshotterFor(dir string) (string, error) {
	const overlayMagic = 0x794c7630 // OVERLAYFS_SUPER_MAGIC in linux/magic.h
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return "", fmt.Errorf("stat file system of %s: %w", dir, err)
	}
	if stat.Type == overlayMagic {
		return "native", nil
	}
	return "overlayfs", nil
}

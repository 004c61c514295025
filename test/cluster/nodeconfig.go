// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
)

// pauseImage is the name that the pause image is loaded under, on each node.
const pauseImage = "policygate.io/test/pause:1"

// containerdConfig returns a configuration that containerd 1.6 and later read. Its files are
// at their usual places, which are the node's own.
func containerdConfig(n *Node, plugins, snapshotter string) string {
	return fmt.Sprintf(`version = 2
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  disable_apparmor = true
  # A kubelet without the right to lower scores (in a container) still works.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = %q
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
`, pauseImage, snapshotter, plugins, filepath.Join(n.dir, "cni"))
}

// cniConfig returns the CNI configuration that kube-router and others use: a bridge called
// kube-bridge, addresses from the node's own ranges.
func cniConfig(n *Node) string {
	type object = map[string]any
	var ranges [][]object
	var routes []object
	for _, prefix := range n.PodCIDRs {
		ranges = append(ranges, []object{{"subnet": prefix.String()}})
		anywhere := "0.0.0.0/0"
		if prefix.Addr().Is6() {
			anywhere = "::/0"
		}
		routes = append(routes, object{"dst": anywhere})
	}
	config := object{
		"cniVersion": "0.3.1",
		"name":       "kube-bridge",
		"plugins": []object{{
			"type":        "bridge",
			"bridge":      "kube-bridge",
			"isGateway":   true,
			"hairpinMode": true, // a Pod reaches itself through its Service
			"ipam":        object{"type": "host-local", "ranges": ranges, "routes": routes},
		}},
	}
	content, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		panic(err) // maps of strings, numbers and booleans
	}
	return string(content)
}

// kubeletConfig returns the kubelet's configuration.
func kubeletConfig(n *Node) string {
	c := n.cluster
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %[1]s}}
authorization: {mode: Webhook}
tlsCertFile: %[2]s
tlsPrivateKeyFile: %[3]s
containerRuntimeEndpoint: unix://%[4]s
resolvConf: %[5]s
# Pods' cgroups are made by nobody but the runtime, see containerCgroups: the machine's are not
# this kubelet's to arrange.
cgroupDriver: cgroupfs
cgroupRoot: %[6]s
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
# Nodes share a disk that may be nearly full: evict at the last moment, and keep images,
# since there is no registry to get them back from.
evictionHard: {memory.available: 50Mi, nodefs.available: 1%%, nodefs.inodesFree: 1%%, imagefs.available: 1%%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
# Tests kill containers more often than programs crash.
crashLoopBackOff: {maxContainerRestartPeriod: 1s}
# Tests start dozens of Pods at once.
maxPods: 250
serializeImagePulls: false
registryPullQPS: 0
kubeAPIQPS: 50
kubeAPIBurst: 100
eventRecordQPS: 50
`, c.pki("ca.crt"), c.pki("kubelet-serving-"+n.Name+".crt"), c.pki("kubelet-serving-"+n.Name+".key"),
		criSocket, filepath.Join(n.dir, "resolv.conf"), "/"+c.cgroup(n.podsCgroup()))
}

// kubeProxyConfig returns kube-proxy's configuration.
func kubeProxyConfig(n *Node) string {
	c := n.cluster
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: %s
clientConnection: {kubeconfig: %s}
clusterCIDR: %q
# nf_conntrack_max is the machine's, and read-only in a namespace.
conntrack: {maxPerCore: 0, min: 0}
`, n.Name, c.pki("proxy.kubeconfig"), joined(c.state.plan().PodRange()))
}

// containerdArgs returns the node's containerd command.
func containerdArgs(n *Node) []string {
	return []string{"containerd", "--config", filepath.Join(n.dir, "containerd.toml")}
}

// kubeletArgs returns the node's kubelet command.
func kubeletArgs(n *Node) []string {
	c := n.cluster
	args := []string{
		c.state.Options.KubeBinary, "kubelet",
		"--config=" + filepath.Join(n.dir, "kubelet.yaml"),
		"--kubeconfig=" + c.pki("kubelet-"+n.Name+".kubeconfig"),
		"--hostname-override=" + n.Name,
		"--node-ip=" + strings.Join(n.addresses(), ","),
	}
	return append(args, c.state.Options.KubeletArgs...)
}

// kubeProxyArgs returns the node's kube-proxy command.
func kubeProxyArgs(n *Node) []string {
	return []string{
		n.cluster.state.Options.KubeBinary, "kube-proxy",
		"--config=" + filepath.Join(n.dir, "kube-proxy.yaml"),
	}
}

func (n *Node) addresses() []string {
	var texts []string
	for _, addr := range n.IPs {
		texts = append(texts, addr.String())
	}
	return texts
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/test/cluster/image"
)

const probeImage = "policygate.io/test/probe:1"

// ownerDirEnv makes TestHelperOwner start a cluster in the directory that it holds.
const ownerDirEnv = "POLICYGATE_TEST_OWNER_DIR"

// TestClusterRuns starts real clusters. It needs root, and minutes for the first build.
func TestClusterRuns(t *testing.T) {
	// No skip: a run that silently leaves this out would pass for one that tried it.
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root, for network namespaces, mounts and containers")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Minute)
	defer cancel()
	kube := buildKube(ctx, t)
	dir := t.TempDir()
	probe := buildProbe(ctx, t, dir)
	before := traces(t, dir)

	abandonCluster(ctx, t, dir, kube)
	if after := traces(t, dir); after == before {
		t.Fatal("a killed owner left nothing behind: the check for leftovers sees nothing")
	}
	a := startCluster(ctx, t, Options{Name: "test-a", Dir: dir, KubeBinary: kube, DualStack: true, Nodes: 3, LateNodes: 1})
	if all, err := List(); err != nil || strings.Contains(fmt.Sprint(all), "test-orphan") {
		t.Errorf("after Start the leftover of a killed owner is still listed: %v, %v", all, err)
	}
	b := startCluster(ctx, t, Options{Name: "test-b", Dir: dir, KubeBinary: kube, Nodes: 1, IPTables: IPTablesLegacy})
	var namespaces []string
	for _, c := range []*Cluster{a, b} {
		if err := c.LoadImage(ctx, probe); err != nil {
			t.Fatal(err)
		}
		namespaces = append(namespaces, namespaceIDs(t, c)...)
	}

	t.Run("traffic", func(t *testing.T) { testTraffic(ctx, t, a) })
	t.Run("sandbox", func(t *testing.T) { testSandbox(ctx, t, b) })
	t.Run("nodes", func(t *testing.T) { testNodes(ctx, t, a, b) })
	t.Run("packages", func(t *testing.T) { testPackages(ctx, t, b) })
	t.Run("fault", func(t *testing.T) { testFault(ctx, t, b) })
	t.Run("container", func(t *testing.T) { testContainer(ctx, t, b) })
	t.Run("cut", func(t *testing.T) { testCut(ctx, t, a) })
	t.Run("reboot", func(t *testing.T) { testReboot(ctx, t, a) })
	t.Run("late node", func(t *testing.T) { testLateNode(ctx, t, a) })

	var containers []string
	for _, c := range []*Cluster{a, b} {
		of, err := c.containerCgroups()
		if err != nil {
			t.Fatal(err)
		}
		containers = append(containers, of...)
		if err := c.Stop(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if len(containers) == 0 {
		t.Error("the clusters had no container: the check for theirs sees nothing")
	}
	for _, container := range containers {
		if left, err := filepath.Glob("/proc/[0-9]*/cgroup"); err != nil {
			t.Fatal(err)
		} else if i := slices.IndexFunc(left, func(file string) bool {
			content, _ := os.ReadFile(file) // gone if it cannot be read
			return namesCgroup(string(content), container)
		}); i >= 0 {
			t.Errorf("after Stop container %s still has a process: %s", container, left[i])
		}
	}
	if after := traces(t, dir); after != before {
		t.Errorf("after Stop there is\n%s\nbefore Start there was\n%s", after, before)
	}
	for _, id := range namespaces {
		if users := namespaceUsers(t, id); users != "" {
			t.Errorf("after Stop the namespace %s has processes: %s", id, users)
		}
	}
}

// testTraffic checks the paths that tests of policies use, in both families.
func testTraffic(ctx context.Context, t *testing.T, c *Cluster) {
	server := probePod("server", "n2", "serve", ":8080")
	server.Labels = map[string]string{"app": "server"}
	server.Spec.RestartPolicy = corev1.RestartPolicyAlways
	server = awaitPod(ctx, t, c, createPod(ctx, t, c, server), corev1.PodRunning)
	both := corev1.IPFamilyPolicyRequireDualStack
	service, err := c.Client().CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "server"},
		Spec: corev1.ServiceSpec{
			IPFamilyPolicy: &both,
			Selector:       map[string]string{"app": "server"},
			Ports:          []corev1.ServicePort{{Port: 80, TargetPort: intOrString(8080)}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(c.HostIPs()[0], "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go answer(listener)

	targets := []string{"dial", listener.Addr().String()}
	for _, ip := range service.Spec.ClusterIPs {
		targets = append(targets, net.JoinHostPort(ip, "80"))
	}
	for _, ip := range server.Status.PodIPs {
		addr := net.JoinHostPort(ip.IP, "8080")
		targets = append(targets, addr)
		// A Pod is Running a moment before its program listens.
		poll(ctx, t, "the host to reach a Pod", func() error {
			conn, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, "tcp", addr)
			if err != nil {
				return err
			}
			return conn.Close()
		})
	}
	if len(targets) != 6 {
		t.Errorf("targets %v are not the host, two Service and two Pod addresses", targets[1:])
	}
	runJob(ctx, t, c, "client", "n1", targets)
}

// testSandbox checks that a Pod whose sandbox is killed comes back with another address.
func testSandbox(ctx context.Context, t *testing.T, c *Cluster) {
	pod := probePod("phoenix", "n1", "serve", ":8080")
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	pod = awaitPod(ctx, t, c, createPod(ctx, t, c, pod), corev1.PodRunning)
	if err := c.KillSandbox(ctx, pod.Namespace, pod.Name); err != nil {
		t.Fatal(err)
	}
	poll(ctx, t, "the Pod to have another address", func() error {
		now, err := c.Client().CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if now.Status.PodIP == "" || now.Status.PodIP == pod.Status.PodIP {
			return fmt.Errorf("address %q, before %q", now.Status.PodIP, pod.Status.PodIP)
		}
		return nil
	})
}

// testNodes checks what nodes have of their own.
func testNodes(ctx context.Context, t *testing.T, nft, legacy *Cluster) {
	for _, tc := range []struct {
		node *Node
		want string
	}{{nft.Nodes()[0], "nf_tables"}, {legacy.Nodes()[0], "legacy"}} {
		if got := nodeOutput(ctx, t, tc.node, "iptables", "--version"); !strings.Contains(got, tc.want) {
			t.Errorf("iptables --version says %q, want %q in it", got, tc.want)
		}
		if rules := nodeOutput(ctx, t, tc.node, "iptables-save", "-t", "nat"); !strings.Contains(rules, "KUBE-SERVICES") {
			t.Errorf("with %s iptables kube-proxy's chains are not there:\n%s", tc.want, rules)
		}
	}
	// A host's file, a node's file and the file in a hostPath volume: the last two are one.
	const file = "/run/policygate-test"
	for _, n := range nft.Nodes()[:2] { // the third is off
		nodeOutput(ctx, t, n, "sh", "-c", "echo "+n.Name+" > "+file)
	}
	if _, err := os.Stat(file); err == nil {
		t.Errorf("%s of a node is the machine's", file)
	}
	pod := probePod("reader", "n1", "cat", file)
	pod.Spec.Volumes = []corev1.Volume{{Name: "run", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/run"}}}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "run", MountPath: "/run"}}
	createPod(ctx, t, nft, pod)
	awaitPod(ctx, t, nft, pod, corev1.PodSucceeded)
	if got := podLog(ctx, t, nft, "reader"); got != "n1\n" {
		t.Errorf("the hostPath volume on n1 has %q, want that of n1", got)
	}
	loaded, err := Load("test-a", nft.state.Options.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := nodeOutput(ctx, t, loaded.Nodes()[1], "cat", file); got != "n2\n" {
		t.Errorf("a loaded cluster's n2 has %q", got)
	}
}

// testPackages checks that an image of Debian packages runs.
func testPackages(ctx context.Context, t *testing.T, c *Cluster) {
	cache := filepath.Join(filepath.Dir(c.state.Options.KubeBinary), "..", "rootfs")
	rootfs, err := image.Rootfs(ctx, cache, "iptables")
	if err != nil {
		t.Fatal(err)
	}
	const ref = "policygate.io/test/iptables:1"
	archive := filepath.Join(t.TempDir(), "iptables.tar")
	if err := image.Write(ctx, archive, image.Spec{Ref: ref, Rootfs: rootfs, Entrypoint: []string{"/usr/sbin/iptables-nft-save"}}); err != nil {
		t.Fatal(err)
	}
	if err := c.LoadImage(ctx, archive, "n1"); err != nil {
		t.Fatal(err)
	}
	pod := probePod("iptables", "n1", "--version")
	pod.Spec.Containers[0].Image = ref
	createPod(ctx, t, c, pod)
	awaitPod(ctx, t, c, pod, corev1.PodSucceeded)
	if got := podLog(ctx, t, c, "iptables"); !strings.Contains(got, "nf_tables") {
		t.Errorf("iptables-nft-save --version in a Pod says %q", got)
	}
}

// testFault checks that the API server and other processes can be stopped and started.
func testFault(ctx context.Context, t *testing.T, c *Cluster) {
	if err := c.StopAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Client().CoreV1().Nodes().List(ctx, metav1.ListOptions{}); err == nil {
		t.Error("a stopped API server answers")
	}
	if err := c.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	p, err := c.StartProcess(ctx, c.Nodes()[0], "shell", []string{"sh", "-c", "echo $GREETING; exit 3"}, []string{"GREETING=hello"})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(ctx); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("Wait says %v, want exit status 3", err)
	}
	if log, err := os.ReadFile(p.Log()); err != nil || string(log) != "hello\n" {
		t.Errorf("log is %q, %v", log, err)
	}
	// Left running, so that Stop has to end it.
	p, err = c.StartProcess(ctx, nil, "sleep", []string{"sleep", "3600"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p.Exited() {
		t.Error("a process in the host's namespaces has exited")
	}
}

// TestHelperOwner is the process that abandonCluster kills.
func TestHelperOwner(t *testing.T) {
	dir := os.Getenv(ownerDirEnv)
	if dir == "" {
		return // run as a test it has nothing to do
	}
	o := Options{Name: "test-orphan", Dir: dir, KubeBinary: os.Getenv("POLICYGATE_TEST_KUBE"), Nodes: 1}
	if _, err := Start(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {}
}

// abandonCluster has another process start a cluster and get killed.
func abandonCluster(ctx context.Context, t *testing.T, dir, kube string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestHelperOwner$")
	cmd.Env = append(os.Environ(), ownerDirEnv+"="+dir, "POLICYGATE_TEST_KUBE="+kube)
	output, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the owner of the abandoned cluster was not killed: %v: %s", err, output)
	}
}

func startCluster(ctx context.Context, t *testing.T, o Options) *Cluster {
	t.Helper()
	o.Progress = t.Output()
	c, err := Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's own Stop comes first; this is for its failures.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err := c.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return c
}

func buildKube(ctx context.Context, t *testing.T) string {
	t.Helper()
	dir, err := DefaultBuildDir(ctx)
	if err != nil {
		t.Fatal(err)
	}
	kube, err := Build(ctx, dir, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	return kube
}

// buildProbe returns the archive of probeImage.
func buildProbe(ctx context.Context, t *testing.T, dir string) string {
	t.Helper()
	binary := filepath.Join(dir, "probe")
	if err := goBuild(ctx, ".", "./testdata/probe", binary, "", nil); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "probe.tar")
	err := image.Write(ctx, archive, image.Spec{
		Ref: probeImage, Entrypoint: []string{"/probe"}, User: "65532:65532",
		Files: map[string]string{"/probe": binary},
	})
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// traces lists what is on the machine of the clusters with the given directory: processes,
// mounts, network namespaces, interfaces, cgroups, registry entries.
func traces(t *testing.T, dir string) string {
	t.Helper()
	var found []string
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range cmdlines {
		line, _ := os.ReadFile(file) // gone if it cannot be read
		groups, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cgroup"))
		if strings.Contains(string(groups), "/policygate/test-") || strings.Contains(string(line), dir+"/test-") {
			found = append(found, "process "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) || strings.Contains(line, "pgate-test") || strings.Contains(line, "containerd") {
			found = append(found, "mount "+line)
		}
	}
	for _, pattern := range []string{
		"/run/netns/pgate-test-*", "/sys/fs/cgroup/policygate/test-*", "/sys/fs/cgroup/*/policygate/test-*",
		registryDir + "/test-*", "/var/lib/cni", "/var/lib/kubelet", "/var/log/pods", "/run/containerd",
	} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, files...)
	}
	return strings.Join(found, "\n")
}

// namespaceIDs returns the network and mount namespaces of a cluster's nodes. They are held
// until the end of the test, since the kernel gives the number of one that is gone to the next.
func namespaceIDs(t *testing.T, c *Cluster) []string {
	t.Helper()
	var ids []string
	for _, n := range c.Nodes() {
		if !n.Running() {
			continue
		}
		for _, kind := range []string{"net", "mnt"} {
			link := filepath.Join("/proc", strconv.Itoa(n.holder.Pid()), "ns", kind)
			held, err := os.Open(link)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { held.Close() })
			id, err := os.Readlink(link)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
	}
	return ids
}

// namespaceUsers returns the processes in a namespace.
func namespaceUsers(t *testing.T, id string) string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/ns/*")
	if err != nil {
		t.Fatal(err)
	}
	var users []string
	for _, link := range links {
		if got, err := os.Readlink(link); err == nil && got == id {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(link), "..", "cmdline"))
			users = append(users, fmt.Sprintf("%s %q", link, line))
		}
	}
	return strings.Join(users, " ")
}

func nodeOutput(ctx context.Context, t *testing.T, n *Node, name string, args ...string) string {
	t.Helper()
	output, err := n.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v on %s: %v: %s", name, args, n.Name, err, output)
	}
	return string(output)
}

// answer says hello to whoever connects, as the probe does.
func answer(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, "hello")
		conn.Close()
	}
}

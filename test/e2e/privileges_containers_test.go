// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/test/e2e/testbed"
)

// confinement is what the kernel says of a process.
type confinement struct {
	UID, Effective, Permitted, Inheritable, Bounding, Ambient, NoNewPrivs, Seccomp string
	// Root is what became of a write to /.
	Root string
	// Mounts are what is mounted of the node, with ro or rw; what every
	// container gets of its runtime is left out.
	Mounts []string
	// Listens is where it listens.
	Listens []string
}

// containersAreConfined reads what the kernel holds the running processes to.
func containersAreConfined(t *testing.T, f fixture) {
	const none, netAdmin = "0000000000000000", "0000000000001000"
	readOnly := syscall.EROFS.Error()
	tokens := func(also ...string) []string {
		return slices.Sorted(slices.Values(append(also, "/var/run/secrets/kubernetes.io/serviceaccount ro")))
	}
	for account, want := range map[string]confinement{
		agentAccount: {
			UID: "0", Effective: netAdmin, Permitted: netAdmin, Inheritable: none, Bounding: netAdmin, Ambient: none,
			NoNewPrivs: "1", Seccomp: "2", Root: readOnly,
			Mounts: tokens("/run/xtables.lock ro", "/var/run/secrets/policygate ro"),
			// The testbed's deployment has the component prometheus/ports.
			Listens: []string{"*:9445"},
		},
		managerAccount: {
			UID: "65532", Effective: none, Permitted: none, Inheritable: none, Bounding: none, Ambient: none,
			NoNewPrivs: "1", Seccomp: "2", Root: readOnly,
			Mounts:  tokens(),
			Listens: []string{"*:8080", "*:8081", "*:9443", "*:9444", "127.0.0.1:9446"},
		},
	} {
		pods := f.podsOf(t, account)
		for _, p := range pods {
			pid := processOf(t, p.Status.ContainerStatuses[0].ContainerID)
			if got := confinementOf(t, pid); !reflect.DeepEqual(got, want) {
				t.Errorf("%s on %s:\n%+v, want\n%+v", p.Name, p.Spec.NodeName, got, want)
			}
			tokensAreItsOwn(t, p, pid)
		}
		t.Logf("%s: %d Pods: %+v", account, len(pods), want)
		paths := []string{}
		for _, v := range pods[0].Spec.Volumes {
			if v.HostPath != nil {
				paths = append(paths, v.HostPath.Path+" "+string(*v.HostPath.Type))
			}
		}
		wantPaths := map[string][]string{agentAccount: {"/run/xtables.lock FileOrCreate"}, managerAccount: {}}
		if !slices.Equal(paths, wantPaths[account]) {
			t.Errorf("%s has %q of the host, want %q", account, paths, wantPaths[account])
		}
	}
	for _, account := range accounts()[2:] {
		a, err := f.Client.CoreV1().ServiceAccounts(testbed.Namespace).Get(t.Context(), account, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if a.AutomountServiceAccountToken == nil || *a.AutomountServiceAccountToken {
			t.Errorf("%s: its token is mounted into Pods, and none runs as it", account)
		}
	}
}

func (f fixture) podsOf(t *testing.T, account string) []corev1.Pod {
	t.Helper()
	pods, err := f.Client.CoreV1().Pods(testbed.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + account})
	if err != nil || len(pods.Items) == 0 {
		t.Fatalf("the Pods of %s: %v, %d", account, err, len(pods.Items))
	}
	return pods.Items
}

// processOf returns the process of a container.
func processOf(t *testing.T, containerID string) string {
	t.Helper()
	_, id, _ := strings.Cut(containerID, "://")
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		// Processes end while one looks.
		if cgroup, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup")); err == nil && strings.Contains(string(cgroup), id) {
			return filepath.Join("/proc", e.Name())
		}
	}
	t.Fatalf("no process is in the cgroup of container %q", containerID)
	return ""
}

func confinementOf(t *testing.T, proc string) confinement {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	uid := strings.Fields(fields["Uid"])
	c := confinement{
		UID: uid[0], Effective: fields["CapEff"], Permitted: fields["CapPrm"], Inheritable: fields["CapInh"],
		Bounding: fields["CapBnd"], Ambient: fields["CapAmb"], NoNewPrivs: fields["NoNewPrivs"], Seccomp: fields["Seccomp"],
		Mounts: mountsOf(t, proc), Listens: listening(t, proc),
	}
	if len(slices.Compact(slices.Clone(uid))) != 1 { // real, effective, saved, and of the filesystem
		c.UID = fields["Uid"]
	}
	// Through the process' own mounts, whose flags hold for everybody.
	err = os.WriteFile(filepath.Join(proc, "root", "written"), nil, 0o600)
	c.Root = fmt.Sprint(errors.Unwrap(err))
	return c
}

// mountsOf returns what of a process' mounts is neither a filesystem of the
// kernel's nor one that the runtime gives to every container.
func mountsOf(t *testing.T, proc string) []string {
	t.Helper()
	file, err := os.Open(filepath.Join(proc, "mountinfo"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	given := []string{"/", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
	var mounts []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		// proc_pid_mountinfo(5): the fifth field is the mount point, the sixth
		// its options.
		fields := strings.Fields(lines.Text())
		point := strings.Replace(fields[4], "/run/secrets", "/var/run/secrets", 1)
		point = strings.Replace(point, "/var/var/", "/var/", 1)
		if slices.Contains(given, point) || slices.ContainsFunc([]string{"/proc", "/sys", "/dev"}, func(kernel string) bool {
			return point == kernel || strings.HasPrefix(point, kernel+"/")
		}) {
			continue
		}
		option, _, _ := strings.Cut(fields[5], ",")
		mounts = append(mounts, point+" "+option)
	}
	return slices.Sorted(slices.Values(mounts))
}

// listening returns the TCP addresses at which a process listens.
func listening(t *testing.T, proc string) []string {
	t.Helper()
	own := map[string]bool{}
	descriptors, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range descriptors {
		if to, err := os.Readlink(filepath.Join(proc, "fd", d.Name())); err == nil && strings.HasPrefix(to, "socket:[") {
			own[strings.Trim(to, "socket:[]")] = true
		}
	}
	found := map[string]bool{}
	for _, family := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(filepath.Join(proc, "net", family))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			// Documentation/networking/proc_net_tcp.rst: local address, state
			// (0A is LISTEN) and inode.
			fields := strings.Fields(line)
			if len(fields) < 10 || fields[3] != "0A" || !own[fields[9]] {
				continue
			}
			host, port, _ := strings.Cut(fields[1], ":")
			number, err := strconv.ParseUint(port, 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case strings.Trim(host, "0") == "":
				host = "*"
			case host == "0100007F":
				host = "127.0.0.1"
			}
			found[fmt.Sprintf("%s:%d", host, number)] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// tokensAreItsOwn holds that nobody but the process' user reads its tokens.
func tokensAreItsOwn(t *testing.T, p corev1.Pod, proc string) {
	t.Helper()
	dirs := []string{"/var/run/secrets/kubernetes.io/serviceaccount"}
	if p.Spec.ServiceAccountName == agentAccount {
		dirs = append(dirs, "/var/run/secrets/policygate")
	}
	for _, dir := range dirs {
		// The links within are relative, so they stay below the process' root.
		info, err := os.Stat(filepath.Join(proc, "root", dir, "token"))
		if err != nil {
			t.Error(err)
			continue
		}
		if info.Mode().Perm()&^fs.FileMode(0o600) != 0 {
			t.Errorf("%s of %s has mode %v, want that its user alone reads it", dir, p.Name, info.Mode())
		}
	}
}

// managerIsRestricted creates the manager's Pod where only restricted ones may
// be, and the agent's, which shows that it matters.
func managerIsRestricted(t *testing.T, f fixture) {
	ns := f.namespace(t, map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
	dryRun := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	for account, restricted := range map[string]bool{managerAccount: true, agentAccount: false} {
		_, err := f.Client.CoreV1().ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		template := f.podsOf(t, account)[0]
		spec := template.Spec.DeepCopy()
		// The scheduler's choice, and what admission has put in.
		spec.NodeName = ""
		_, err = f.Client.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: account}, Spec: *spec}, dryRun)
		t.Logf("%s in a restricted namespace: %v", account, err)
		if restricted && err != nil {
			t.Errorf("the manager's Pod is not restricted: %v", err)
		}
		if !restricted && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "NET_ADMIN")) {
			t.Errorf("the agent's Pod: %v, want that Pod Security forbids it", err)
		}
	}
}

// portsAreLimited connects to the manager's Pods from Pods of both nodes: what
// the shipped NetworkPolicies leave is reached, nothing else is, and what needs
// the ports has them.
func portsAreLimited(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	strangers := []*corev1.Pod{
		f.server(t, ns, "stranger-a", f.serverNode, otherLabels),
		f.server(t, ns, "stranger-b", f.clientNode, otherLabels),
	}
	for _, manager := range f.podsOf(t, managerAccount) {
		for _, stranger := range strangers {
			for port, open := range map[int]bool{9443: true, 9444: true, 8080: true, 8081: false, 9446: false} {
				address := net.JoinHostPort(manager.Status.PodIP, strconv.Itoa(port))
				eventually(t, eventuallyEqual, fmt.Sprintf("from %s, %s is reached: %t", stranger.Spec.NodeName, address, open), func() (bool, string) {
					d := f.dialFrom(t, stranger, address)
					return d.OK == open, d.Error
				})
			}
		}
	}
	// The webhook answers, and the agents of both nodes confirm.
	for _, node := range f.Cluster.Nodes() {
		name := "gated-" + node.Name
		if created := f.create(t, ns, pod{name: name, node: node, labels: otherLabels, args: []string{"sleep", "10m"}}); !hasGate(created) {
			t.Errorf("%s has no gate: the webhook did not answer", name)
		}
		f.await(t, ns, name, eventuallyEqual, "is open", isOpen)
	}
	status, err := f.Kubectl(t.Context(), "-n", testbed.Namespace, "get", "policystatus")
	if err != nil || !strings.Contains(status, "policygate-manager") {
		t.Errorf("the status of our own policies: %v, %s", err, status)
	}
	t.Logf("our own policies:\n%s", status)
}

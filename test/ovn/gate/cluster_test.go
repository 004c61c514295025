// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/controlplane"
	"github.com/policygate/policygate/test/installation"
	"github.com/policygate/policygate/test/ovn/engine"
	"github.com/policygate/policygate/test/ovn/fixture"
)

const (
	// hubAddress is where agents find the hub: EndpointSlices have no addresses
	// of the loopback. It is one for documentation (RFC 5737).
	hubAddress = "192.0.2.9"
	// agentMetrics is where an agent serves on its node, and northboundMetrics
	// is beside it.
	agentMetrics      = "127.0.0.1:9445"
	northboundMetrics = "127.0.0.1:9447"
	// nobody owns the sockets of Open vSwitch, as in Kube-OVN.
	nobody = 65534
	// patience is how long anything may take on a machine that others use.
	patience = time.Minute
)

// cluster is Policy Gate with two nodes of OVN.
type cluster struct {
	*testing.T
	ovn *fixture.Fixture
	// api and client are an administrator's.
	api        client.Client
	client     kubernetes.Interface
	config     *rest.Config
	controller *controller
	manager    *installation.Manager
	bootID     string
	// directory holds executables, tokens and logs.
	directory string
	processes []*installation.Process
}

// start brings everything up until the test's end, and returns once each agent
// has a session.
func start(t *testing.T) *cluster {
	t.Helper()
	ctrl.SetLogger(logr.Discard())
	began := time.Now()
	c := &cluster{T: t, ovn: fixture.Start(t, fixture.Options{Nodes: 2})}
	c.directory = t.TempDir()
	for _, d := range []string{c.directory, filepath.Dir(c.directory)} {
		c.must(os.Chmod(d, 0o755)) // others read what is theirs in it
	}
	root, err := installation.Root()
	c.must(err)
	c.must(installation.Build(t.Context(), root, c.directory, "manager", "agent", "northbound"))
	c.startAPI()
	c.controller = startController(t, c.api, c.ovn, engine.Release116())
	t.Cleanup(c.showLogs)
	c.startManager(root)
	for _, n := range c.ovn.Nodes() {
		c.addNode(n)
	}
	for _, n := range c.ovn.Nodes() {
		c.startAgent(n)
	}
	c.startNorthbound(c.ovn.Node("n1"))
	t.Logf("all was up after %v", time.Since(began))
	return c
}

func (c *cluster) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// eventually polls until check returns "", and fails with its last words if it
// does not in time.
func (c *cluster) eventually(what string, check func() string) {
	c.Helper()
	began := time.Now()
	for {
		words := check()
		if words == "" {
			return
		}
		if time.Since(began) > patience {
			c.Fatalf("%s: not within %v: %s", what, patience, words)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *cluster) startAPI() {
	c.Helper()
	env := controlplane.Start(c.T)
	c.config = rest.CopyConfig(env.Config)
	c.config.QPS, c.config.Burst = 1000, 1000 // the test's own requests are not to wait
	c.must(os.WriteFile(c.kubeconfig(), env.KubeConfig, 0o600))
	scheme := runtime.NewScheme()
	c.must(clientgoscheme.AddToScheme(scheme))
	c.must(v1alpha1.AddToScheme(scheme))
	var err error
	c.api, err = client.New(c.config, client.Options{Scheme: scheme})
	c.must(err)
	c.client, err = kubernetes.NewForConfig(c.config)
	c.must(err)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	c.must(err)
	c.bootID = strings.TrimSpace(string(boot))
}

// kubeconfig is the path of an administrator's.
func (c *cluster) kubeconfig() string { return filepath.Join(c.directory, "admin.kubeconfig") }

// startManager installs the overlay for Kube-OVN and runs the manager as its
// Deployment there does.
func (c *cluster) startManager(root string) {
	c.Helper()
	// The namespace is there before what config/ installs into it, for the
	// manager's Pod, to whose ports the webhook leads.
	pod := productPod("policygate-manager-0", installation.ManagerAccount, "")
	c.must(c.api.Create(c.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: installation.Namespace}}))
	c.must(c.api.Create(c.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: installation.ManagerAccount}}))
	_, token, err := installation.CreatePod(c.Context(), c.client, pod)
	c.must(err)
	c.manager, err = installation.NewManager(c.Context(), c.directory, filepath.Join(c.directory, "manager"), pod.Name, c.config, token)
	c.must(err)
	c.must(installation.Install(c.Context(), installation.Options{
		Client: c.client, Kubectl: filepath.Join(controlplane.Assets(c.T), "kubectl"), Kubeconfig: c.kubeconfig(),
		Directory: filepath.Join(root, "config", "overlays", "kube-ovn"), WebhookPort: c.manager.WebhookPort(),
	}))
	c.must(c.manager.Start("--kube-ovn", "--watch-services"))
	c.Cleanup(func() {
		if err := c.manager.Stop(); err != nil {
			c.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(c.Context(), patience)
	defer cancel()
	c.must(c.manager.AwaitReady(ctx))
	hub := netip.MustParseAddrPort(c.manager.Hub)
	c.must(c.api.Create(c.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: installation.Namespace, Name: "policygate-hub-0",
			Labels: map[string]string{discoveryv1.LabelServiceName: "policygate-hub"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{hubAddress}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: installation.Namespace, Name: pod.Name},
		}},
		Ports: []discoveryv1.EndpointPort{{Name: new("hub"), Port: new(int32(hub.Port()))}},
	}))
}

// addNode makes the Node, and has the node reach API server and hub.
func (c *cluster) addNode(n *fixture.Node) {
	c.Helper()
	node := n.Object()
	node.Labels = map[string]string{corev1.LabelOSStable: "linux", corev1.LabelHostname: n.Name()}
	c.must(c.api.Create(c.Context(), node))
	node.Status = n.Object().Status
	node.Status.NodeInfo = corev1.NodeSystemInfo{BootID: c.bootID, OperatingSystem: "linux"}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}}
	c.must(c.api.Status().Update(c.Context(), node))

	var out []byte
	var err error
	n.Enter(func() {
		out, err = exec.Command("ip", "address", "add", hubAddress+"/32", "dev", "lo").CombinedOutput()
	})
	if err != nil {
		c.Fatalf("%v: %s", err, out)
	}
	proxy(c.T, n, net.JoinHostPort(hubAddress, fmt.Sprint(netip.MustParseAddrPort(c.manager.Hub).Port())), c.manager.Hub)
	server, err := url.Parse(c.config.Host)
	if err != nil || server.Hostname() != "127.0.0.1" {
		server, err = url.Parse("https://" + c.config.Host)
	}
	c.must(err)
	proxy(c.T, n, server.Host, server.Host)
}

// startAgent runs the agent of a node as its DaemonSet does for Kube-OVN, and
// awaits its session.
func (c *cluster) startAgent(n *fixture.Node) {
	c.Helper()
	c.give(n)
	c.run(n, productPod("policygate-agent-"+n.Name(), installation.AgentAccount, n.Name()), agentMetrics,
		"agent", "--node-name="+n.Name(), "--ovs-run-dir="+n.RunDir(), "--xtables-lock=")
}

// startNorthbound runs what sees the northbound database, beside the agent of a
// node, whose way to the hub it uses.
func (c *cluster) startNorthbound(n *fixture.Node) {
	c.Helper()
	c.own(c.ovn.Northbound())
	c.run(n, productPod("policygate-northbound-0", "policygate-northbound", n.Name()), northboundMetrics,
		"northbound", "--northbound=unix:"+c.ovn.Northbound())
}

// give makes the sockets of a node's Open vSwitch those of Kube-OVN's user. It
// has to be repeated when vswitchd has started anew.
func (c *cluster) give(n *fixture.Node) {
	c.Helper()
	sockets, err := filepath.Glob(filepath.Join(n.RunDir(), "*"))
	c.must(err)
	for _, s := range sockets {
		if info, err := os.Stat(s); err == nil && (info.Mode().Type() == os.ModeSocket || strings.HasSuffix(s, ".pid")) {
			c.own(s)
		}
	}
}

// own gives a file to Kube-OVN's user, who may also come to it.
func (c *cluster) own(file string) {
	c.Helper()
	c.must(os.Chown(file, nobody, nobody))
	for dir := filepath.Dir(file); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		c.must(os.Chmod(dir, 0o711))
	}
}

// run runs a command of the product on a node, as an ordinary user without any
// capability and as the Pod, until the test's end, and awaits that it is ready.
func (c *cluster) run(n *fixture.Node, pod *corev1.Pod, metrics, command string, flags ...string) {
	c.Helper()
	hub, api, err := installation.CreatePod(c.Context(), c.client, pod)
	c.must(err)
	token, kubeconfig := filepath.Join(c.directory, pod.Name+".token"), filepath.Join(c.directory, pod.Name+".kubeconfig")
	c.must(os.WriteFile(token, []byte(hub), 0o400))
	c.must(installation.WriteKubeconfig(kubeconfig, c.config, api))
	for _, f := range []string{token, kubeconfig} {
		c.must(os.Chown(f, nobody, nobody))
	}
	var network *os.File
	n.Enter(func() { network, err = os.Open("/proc/thread-self/ns/net") })
	c.must(err)
	defer network.Close()
	p, err := installation.Start(c.directory, installation.Command{
		Name: pod.Name, Network: network, Credential: &syscall.Credential{Uid: nobody, Gid: nobody},
		Argv: append([]string{filepath.Join(c.directory, command), "--namespace=" + installation.Namespace, "--token-file=" + token,
			"--kubeconfig=" + kubeconfig, "--metrics-bind-address=" + metrics}, flags...),
	})
	c.must(err)
	c.processes = append(c.processes, p)
	c.Cleanup(func() {
		if err := p.Stop(); err != nil {
			c.Error(err)
		}
	})
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	c.must(err)
	for _, line := range []string{"\nUid:\t65534\t65534\t65534\t65534\n", "\nCapPrm:\t0000000000000000\n", "\nCapEff:\t0000000000000000\n", "\nCapAmb:\t0000000000000000\n"} {
		if !strings.Contains(string(status), line) {
			c.Fatalf("%s has not %q:\n%s", pod.Name, line, status)
		}
	}
	c.eventually(pod.Name+" has a session", func() string {
		if err := p.Err(); err != nil {
			c.Fatal(err)
		}
		if _, err := get(n, "http://"+metrics+"/readyz"); err != nil {
			return fmt.Sprintf("%v\n%s", err, p.Tail())
		}
		return ""
	})
}

// get returns what is served on a node.
func get(n *fixture.Node, url string) (string, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
		n.Enter(func() { conn, err = net.Dial(network, address) })
		return conn, err
	}}
	response, err := (&http.Client{Transport: transport}).Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return string(body), err
}

// traces returns how many packets the agents had vswitchd trace so far, and how
// long that took.
func (c *cluster) traces() (count, seconds float64) {
	c.Helper()
	for _, n := range c.ovn.Nodes() {
		metrics, err := get(n, "http://"+agentMetrics+"/metrics")
		c.must(err)
		for line := range strings.Lines(metrics) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			number, err := strconv.ParseFloat(value, 64)
			switch {
			case err != nil:
			case strings.HasPrefix(name, "policygate_agent_ovn_traces_total{"):
				count += number
			case name == "policygate_agent_ovn_trace_seconds_sum":
				seconds += number
			}
		}
	}
	return count, seconds
}

// productPod is a Pod of the product, for its token.
func productPod(name, account, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: installation.Namespace, Name: name},
		Spec: corev1.PodSpec{
			NodeName: node, HostNetwork: true, ServiceAccountName: account,
			Containers: []corev1.Container{{Name: "main", Image: "example.org/policygate"}},
		},
	}
}

// showLogs shows the ends of all logs if the test has failed.
func (c *cluster) showLogs() {
	if !c.Failed() {
		return
	}
	if c.manager != nil && c.manager.Process != nil {
		c.Logf("log of the manager:\n%s", c.manager.Process.Tail())
	}
	for _, p := range c.processes {
		c.Logf("log of %s:\n%s", filepath.Base(p.Log()), p.Tail())
	}
}

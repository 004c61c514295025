// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
)

const (
	apiServerPort = "6443"
	// startTimeout bounds each step of a start. Ten times what the slowest, the API server
	// on one shared CPU, was seen to need.
	startTimeout = 90 * time.Second
	// pollInterval is the time between two looks at something that is about to happen.
	pollInterval = 50 * time.Millisecond
)

// joined returns values separated by commas, as the flags of Kubernetes want lists.
func joined[T fmt.Stringer](values []T) string {
	texts := make([]string, len(values))
	for i, value := range values {
		texts[i] = value.String()
	}
	return strings.Join(texts, ",")
}

// APIServerAddr returns the address and port of the API server, reachable from nodes, Pods
// and the namespace that called Start.
func (c *Cluster) APIServerAddr() netip.AddrPort {
	return netip.MustParseAddrPort(apiServerAddr(c.state.plan()))
}

func apiServerAddr(plan Plan) string {
	return net.JoinHostPort(plan.ControlPlane()[0].String(), apiServerPort)
}

func (c *Cluster) etcdArgs() []string {
	return []string{
		"etcd", "--name=etcd", "--data-dir=" + c.path("etcd"),
		// The namespace's loopback: nobody but the API server is in there.
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=etcd=http://127.0.0.1:2380",
		// The data need not survive the machine, and a shared disk's fsync is slow.
		"--unsafe-no-fsync",
	}
}

func (c *Cluster) apiServerArgs() []string {
	plan := c.state.plan()
	args := []string{
		"kube-apiserver",
		"--etcd-servers=http://127.0.0.1:2379",
		"--secure-port=" + apiServerPort,
		"--advertise-address=" + plan.ControlPlane()[0].String(),
		"--service-cluster-ip-range=" + joined(plan.ServiceRange()),
		"--allow-privileged=true",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--tls-cert-file=" + c.pki("apiserver.crt"),
		"--tls-private-key-file=" + c.pki("apiserver.key"),
		"--client-ca-file=" + c.pki("ca.crt"),
		"--kubelet-client-certificate=" + c.pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + c.pki("apiserver-kubelet-client.key"),
		"--kubelet-certificate-authority=" + c.pki("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + c.pki("sa.key"),
		"--service-account-signing-key-file=" + c.pki("sa.key"),
		"--proxy-client-cert-file=" + c.pki("front-proxy-client.crt"),
		"--proxy-client-key-file=" + c.pki("front-proxy-client.key"),
		"--requestheader-client-ca-file=" + c.pki("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		// Webhook Services are called at their endpoints: the control plane has routes to
		// Pods and no kube-proxy.
		"--enable-aggregator-routing=true",
	}
	return append(args, c.state.Options.APIServerArgs...)
}

func (c *Cluster) controllerManagerArgs() []string {
	plan := c.state.plan()
	args := []string{
		"kube-controller-manager",
		"--kubeconfig=" + c.pki("controller-manager.kubeconfig"),
		"--authentication-kubeconfig=" + c.pki("controller-manager.kubeconfig"),
		"--authorization-kubeconfig=" + c.pki("controller-manager.kubeconfig"),
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--use-service-account-credentials=true",
		"--root-ca-file=" + c.pki("ca.crt"),
		"--service-account-private-key-file=" + c.pki("sa.key"),
		"--cluster-signing-cert-file=" + c.pki("ca.crt"),
		"--cluster-signing-key-file=" + c.pki("ca.key"),
		// registerNodes sets the ranges, since routes and CNI configuration must know them
		// before there is a node.
		"--allocate-node-cidrs=false",
		"--cluster-cidr=" + joined(plan.PodRange()),
		"--service-cluster-ip-range=" + joined(plan.ServiceRange()),
		// The default of 20 a second holds up a test that makes 30 Jobs at once.
		"--kube-api-qps=100", "--kube-api-burst=200",
	}
	return append(args, c.state.Options.ControllerManagerArgs...)
}

func (c *Cluster) schedulerArgs() []string {
	return []string{
		"kube-scheduler",
		"--kubeconfig=" + c.pki("scheduler.kubeconfig"),
		"--authentication-kubeconfig=" + c.pki("scheduler.kubeconfig"),
		"--authorization-kubeconfig=" + c.pki("scheduler.kubeconfig"),
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
	}
}

// startControl starts a component in the control plane's namespace.
func (c *Cluster) startControl(ctx context.Context, args []string) (*Process, error) {
	return c.run(ctx, launch{name: args[0], argv: append([]string{c.state.Options.KubeBinary}, args...), netns: c.network().controlPlaneNS()}, "cp")
}

// StartAPIServer starts the API server after a StopAPIServer, and returns once it is ready. It
// is an error if it runs.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	if p := c.APIServer(); p != nil && !p.Exited() {
		return fmt.Errorf("start API server: it runs as process %d", p.Pid())
	}
	p, err := c.startControl(ctx, c.apiServerArgs())
	if err != nil {
		return err
	}
	return c.await(ctx, "the API server to be ready", p, func(ctx context.Context) error {
		_, err := c.client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// StopAPIServer kills the API server, as a crash would, and returns once it is gone. Nothing
// else is stopped. It is no error if it does not run.
func (c *Cluster) StopAPIServer(ctx context.Context) error {
	if p := c.APIServer(); p != nil {
		return p.Kill(ctx)
	}
	return nil
}

// APIServer returns the API server's process, the last one that was started.
func (c *Cluster) APIServer() *Process { return c.process("kube-apiserver") }

// Etcd returns etcd's process.
func (c *Cluster) Etcd() *Process { return c.process("etcd") }

// await calls check until it succeeds. It fails, with the tail of the process' log, if the
// process ends or startTimeout passes before.
func (c *Cluster) await(ctx context.Context, what string, p *Process, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if p.Exited() {
			return fmt.Errorf("wait for %s: %s has ended; the end of %s:\n%s", what, p.name, p.Log(), logTail(p.Log()))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last: %w); the end of %s:\n%s", what, ctx.Err(), err, p.Log(), logTail(p.Log()))
		case <-time.After(pollInterval):
		}
	}
}

// newClient returns an administrator's client for the cluster whose keys are in pkiDir.
func newClient(pkiDir string) (*kubernetes.Clientset, error) {
	config, err := restConfig(filepath.Join(pkiDir, "admin.kubeconfig"))
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	return client, nil
}

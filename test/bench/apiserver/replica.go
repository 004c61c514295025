// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	// pollInterval is how often something is asked that nothing tells.
	pollInterval = 50 * time.Millisecond
	// requestTimeout bounds a question to a process on this machine.
	requestTimeout = 5 * time.Second
	// leaderMetric is what controller-runtime says of the Lease.
	leaderMetric = `leader_election_master_status{name="policygate-leader"} 1`
)

// replica is one replica of the manager, which may run or not. It keeps its
// name, its ports and its identity over restarts.
type replica struct {
	name       string
	dir        string
	executable string
	kubeconfig string
	hub        string
	health     string
	metrics    string
	webhook    string
	process    *process
	// ready: it has said so since it was started. killed: it was ended on
	// purpose.
	ready, killed bool
}

// newReplica returns one that does not run yet. Its token must be bound to a
// Pod of its name, so that the audit log tells replicas apart.
func newReplica(ctx context.Context, dir, executable, name string, admin *rest.Config, token string) (*replica, error) {
	r := &replica{name: name, dir: dir, executable: executable, kubeconfig: filepath.Join(dir, name+".kubeconfig")}
	for _, address := range []*string{&r.hub, &r.health, &r.metrics, &r.webhook} {
		listener, err := listenBelow(ctx)
		if err != nil {
			return nil, fmt.Errorf("find a port for %s: %w", name, err)
		}
		// Held until all are found, so that they differ.
		defer listener.Close()
		*address = listener.Addr().String()
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["sim"] = &clientcmdapi.Cluster{Server: admin.Host, CertificateAuthorityData: admin.CAData}
	config.AuthInfos["manager"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["sim"] = &clientcmdapi.Context{Cluster: "sim", AuthInfo: "manager"}
	config.CurrentContext = "sim"
	if err := clientcmd.WriteToFile(*config, r.kubeconfig); err != nil {
		return nil, fmt.Errorf("write %s: %w", r.kubeconfig, err)
	}
	return r, nil
}

// listenBelow listens at a port below those that Linux gives to connections
// that name none (ip_local_port_range, 32768 to 60999): the manager listens
// there seconds later, and again after each restart, beside thousands of
// connections.
func listenBelow(ctx context.Context) (net.Listener, error) {
	var err error
	for range 100 {
		var listener net.Listener
		listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000)))
		if err == nil {
			return listener, nil
		}
	}
	return nil, err
}

// stop asks the manager to end, and waits until it has.
func (r *replica) stop() error {
	r.ready, r.killed = false, true
	return r.process.stop()
}

// kill ends the manager without a warning.
func (r *replica) kill() {
	r.ready, r.killed = false, true
	r.process.kill()
}

// start runs the manager as its Deployment does, but for the addresses.
func (r *replica) start() error {
	_, port, err := net.SplitHostPort(r.webhook)
	if err != nil {
		return err
	}
	r.killed = false
	r.process, err = start(r.dir, r.name, []string{
		r.executable, "--namespace=" + installed, "--hold-image=example.org/policygate",
		"--hub-bind-address=" + r.hub, "--health-probe-bind-address=" + r.health,
		"--metrics-bind-address=" + r.metrics, "--webhook-port=" + port, "--trace-bind-address=0",
	}, []string{"KUBECONFIG=" + r.kubeconfig})
	return err
}

// awaitReady returns when the replica says that it is ready.
func (r *replica) awaitReady(ctx context.Context) error {
	err := r.await(ctx, "ready", func() bool { return get(ctx, "http://"+r.health+"/readyz") != "" })
	r.ready = err == nil
	return err
}

// leads reports whether the replica says that it is the leader.
func (r *replica) leads(ctx context.Context) bool {
	return !r.process.exited() && strings.Contains(get(ctx, "http://"+r.metrics+"/metrics"), leaderMetric)
}

// await returns when cond does, or with an error when ctx ends or the process
// does.
func (r *replica) await(ctx context.Context, what string, cond func() bool) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for !cond() {
		if r.process.exited() {
			return fmt.Errorf("%s has ended before it was %s: %w\n%s", r.name, what, r.process.err, r.process.tail())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not %s: %w\n%s", r.name, what, ctx.Err(), r.process.tail())
		case <-ticker.C:
		}
	}
	return nil
}

// get returns the body of a page, or "" if there is none.
func get(ctx context.Context, url string) string {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return ""
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return ""
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}

// writeFile is for secrets.
func writeFile(path, content string) error { return os.WriteFile(path, []byte(content), 0o600) }

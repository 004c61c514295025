// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package installation

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
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

// Manager is one replica of the manager, which may run or not. It keeps its
// name, its ports and its identity over restarts.
type Manager struct {
	Name string
	// Hub, Health, Metrics and Webhook are addresses of the loopback.
	Hub, Health, Metrics, Webhook string
	// Process is what was started last, or nil.
	Process *Process
	// Ready: it has said so since it was started. Killed: it was ended on
	// purpose.
	Ready, Killed bool

	dir        string
	executable string
	kubeconfig string
}

// NewManager returns one that does not run yet, and keeps its files in dir.
// Its token must be bound to a Pod of its name, so that the audit log tells
// replicas apart. admin says where the API server is.
func NewManager(ctx context.Context, dir, executable, name string, admin *rest.Config, token string) (*Manager, error) {
	m := &Manager{Name: name, dir: dir, executable: executable, kubeconfig: filepath.Join(dir, name+".kubeconfig")}
	for _, address := range []*string{&m.Hub, &m.Health, &m.Metrics, &m.Webhook} {
		listener, err := listenBelow(ctx)
		if err != nil {
			return nil, fmt.Errorf("find a port for %s: %w", name, err)
		}
		// Held until all are found, so that they differ.
		defer listener.Close()
		*address = listener.Addr().String()
	}
	return m, WriteKubeconfig(m.kubeconfig, admin, token)
}

// WriteKubeconfig writes one that has the token, for the API server that admin
// is a configuration of. Nobody else may read it.
func WriteKubeconfig(path string, admin *rest.Config, token string) error {
	config := clientcmdapi.NewConfig()
	config.Clusters["sim"] = &clientcmdapi.Cluster{Server: admin.Host, CertificateAuthorityData: admin.CAData}
	config.AuthInfos["account"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["sim"] = &clientcmdapi.Context{Cluster: "sim", AuthInfo: "account"}
	config.CurrentContext = "sim"
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
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

// Stop asks the manager to end, and waits until it has.
func (m *Manager) Stop() error {
	m.Ready, m.Killed = false, true
	return m.Process.Stop()
}

// Kill ends the manager without a warning.
func (m *Manager) Kill() {
	m.Ready, m.Killed = false, true
	m.Process.Kill()
}

// Start runs the manager as its Deployment does, but for the addresses. flags
// are added to those.
func (m *Manager) Start(flags ...string) error {
	m.Killed = false
	var err error
	m.Process, err = Start(m.dir, Command{Name: m.Name, Argv: append([]string{
		m.executable, "--namespace=" + Namespace, "--hold-image=example.org/policygate",
		"--hub-bind-address=" + m.Hub, "--health-probe-bind-address=" + m.Health,
		"--metrics-bind-address=" + m.Metrics, "--webhook-port=" + strconv.Itoa(m.WebhookPort()), "--trace-bind-address=0",
	}, flags...), Env: []string{"KUBECONFIG=" + m.kubeconfig}})
	return err
}

// WebhookPort is the port of Webhook.
func (m *Manager) WebhookPort() int { return int(netip.MustParseAddrPort(m.Webhook).Port()) }

// AwaitReady returns when the replica says that it is ready.
func (m *Manager) AwaitReady(ctx context.Context) error {
	err := m.await(ctx, "ready", func() bool { return get(ctx, "http://"+m.Health+"/readyz") != "" })
	m.Ready = err == nil
	return err
}

// Leads reports whether the replica says that it is the leader.
func (m *Manager) Leads(ctx context.Context) bool {
	return !m.Process.Exited() && strings.Contains(m.Scrape(ctx), leaderMetric)
}

// Scrape returns its metrics, or "" if there are none.
func (m *Manager) Scrape(ctx context.Context) string { return get(ctx, "http://"+m.Metrics+"/metrics") }

// await returns when cond does, or with an error when ctx ends or the process
// does.
func (m *Manager) await(ctx context.Context, what string, cond func() bool) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for !cond() {
		if err := m.Process.Err(); err != nil {
			return fmt.Errorf("%s is not %s: %w", m.Name, what, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not %s: %w\n%s", m.Name, what, ctx.Err(), m.Process.Tail())
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

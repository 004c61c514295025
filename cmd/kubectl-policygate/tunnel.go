// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// managerLabels select the manager's Pods.
const managerLabels = "app.kubernetes.io/name=policygate-manager"

// manager is a replica that can be asked.
type manager struct {
	namespace, name string
	port            int32
}

// findManagers returns the replicas that are ready, at least one.
func (a *asking) findManagers(ctx context.Context, client kubernetes.Interface) ([]manager, error) {
	pods, err := client.CoreV1().Pods(a.installNamespace).List(ctx, metav1.ListOptions{LabelSelector: managerLabels})
	if err != nil {
		return nil, a.explained(fmt.Errorf("find the manager: %w", err))
	}
	return readyManagers(pods.Items, a.installNamespace)
}

// readyManagers returns those of the Pods that are ready and have the port, by
// name; an error if there is none.
func readyManagers(pods []corev1.Pod, namespace string) ([]manager, error) {
	if len(pods) == 0 {
		return nil, fmt.Errorf("namespace %s has no Pod with the label %s: is Policy Gate installed there? See --install-namespace",
			namespace, managerLabels)
	}
	pods = slices.SortedFunc(slices.Values(pods), func(a, b corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	ready := 0
	var managers []manager
	for i := range pods {
		p := &pods[i]
		if p.DeletionTimestamp != nil || !isReady(p) {
			continue
		}
		ready++
		if port := portOf(p); port != 0 {
			managers = append(managers, manager{namespace: p.Namespace, name: p.Name, port: port})
		}
	}
	switch {
	case len(managers) > 0:
		return managers, nil
	case ready > 0:
		return nil, fmt.Errorf("no Pod of the manager in namespace %s has a port named %s: is it older than this command?",
			namespace, tracev1.PortName)
	}
	return nil, fmt.Errorf("none of the manager's %d Pods in namespace %s is ready", len(pods), namespace)
}

// portOf returns the port of the Pod that answers questions, or 0.
func portOf(p *corev1.Pod) int32 {
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if port.Name == tracev1.PortName {
				return port.ContainerPort
			}
		}
	}
	return 0
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// tunnel is a port of this machine's loopback that leads to the manager's.
type tunnel struct {
	address string
	stop    chan struct{}
	// ended is closed after err was set.
	ended chan struct{}
	err   error
}

// openTunnel forwards a port as kubectl port-forward does: through a websocket,
// or SPDY where the API server or a proxy on the way knows no better. Whoever
// connects to it still has to do with the manager's TLS and token.
func (c *counter) openTunnel(ctx context.Context, m manager) (*tunnel, error) {
	url := c.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(m.namespace).Name(m.name).SubResource("portforward").URL()
	roundTripper, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		return nil, fmt.Errorf("make the port-forward's client: %w", err)
	}
	overSPDY := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, url)
	overWebsocket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, c.config)
	if err != nil {
		return nil, fmt.Errorf("make the port-forward's client: %w", err)
	}
	dialer := portforward.NewFallbackDialerForStreaming(overWebsocket, overSPDY, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	t := &tunnel{stop: make(chan struct{}), ended: make(chan struct{})}
	ready := make(chan struct{})
	forwarder, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", m.port)},
		t.stop, ready, io.Discard, io.Discard)
	if err != nil {
		return nil, fmt.Errorf("make the port-forward: %w", err)
	}
	go func() {
		defer close(t.ended)
		t.err = forwarder.ForwardPorts()
	}()
	select {
	case <-t.ended:
		return nil, c.explained(fmt.Errorf("forward a port to Pod %s/%s: %w", m.namespace, m.name, t.err))
	case <-ctx.Done():
		close(t.stop)
		return nil, fmt.Errorf("forward a port to Pod %s/%s: %w", m.namespace, m.name, ctx.Err())
	case <-ready:
	}
	ports, err := forwarder.GetPorts()
	if err == nil && len(ports) != 1 {
		err = errors.New("it is not open")
	}
	if err != nil {
		t.close()
		return nil, fmt.Errorf("forward a port to Pod %s/%s: %w", m.namespace, m.name, err)
	}
	t.address = net.JoinHostPort("127.0.0.1", strconv.Itoa(int(ports[0].Local)))
	return t, nil
}

// close ends the tunnel and waits for its end.
func (t *tunnel) close() {
	close(t.stop)
	<-t.ended
}

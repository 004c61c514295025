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
	"k8s.io/client-go/rest"
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

// findManager returns a replica that is ready. Agents are connected to each,
// so any does.
func findManager(ctx context.Context, client kubernetes.Interface, namespace string) (manager, error) {
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: managerLabels})
	if err != nil {
		return manager{}, explained(fmt.Errorf("find the manager: %w", err), namespace)
	}
	return pickManager(pods.Items, namespace)
}

// pickManager returns the first of the Pods by name that is ready and has the
// port.
func pickManager(pods []corev1.Pod, namespace string) (manager, error) {
	if len(pods) == 0 {
		return manager{}, fmt.Errorf("namespace %s has no Pod with the label %s: is Policy Gate installed there? See --install-namespace",
			namespace, managerLabels)
	}
	pods = slices.SortedFunc(slices.Values(pods), func(a, b corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	ready := 0
	for i := range pods {
		p := &pods[i]
		if p.DeletionTimestamp != nil || !isReady(p) {
			continue
		}
		ready++
		for _, c := range p.Spec.Containers {
			for _, port := range c.Ports {
				if port.Name == tracev1.PortName {
					return manager{namespace: p.Namespace, name: p.Name, port: port.ContainerPort}, nil
				}
			}
		}
	}
	if ready > 0 {
		return manager{}, fmt.Errorf("no Pod of the manager in namespace %s has a port named %s: is it older than this command?",
			namespace, tracev1.PortName)
	}
	return manager{}, fmt.Errorf("none of the manager's %d Pods in namespace %s is ready", len(pods), namespace)
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
func openTunnel(ctx context.Context, config *rest.Config, client kubernetes.Interface, m manager) (*tunnel, error) {
	url := client.CoreV1().RESTClient().Post().Resource("pods").Namespace(m.namespace).Name(m.name).SubResource("portforward").URL()
	roundTripper, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, fmt.Errorf("make the port-forward's client: %w", err)
	}
	overSPDY := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, url)
	overWebsocket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, config)
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
		return nil, explained(fmt.Errorf("forward a port to Pod %s/%s: %w", m.namespace, m.name, t.err), m.namespace)
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

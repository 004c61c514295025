// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// A minute is longer than the API server's leases live and than a Pod's timeout
// by default.
func apiServerGone(t *testing.T, f fixture) {
	const outage = time.Minute
	ns, server, thaw := f.heldOnServer(t, f.clientNode, f.otherNode)
	lasting := func(name, onTimeout string) {
		f.create(t, ns, pod{name: name, node: f.clientNode, labels: clientLabels, args: []string{"sleep", "10m"}, annotations: map[string]string{
			v1alpha1.KeyTimeout: "30s", v1alpha1.KeyOnTimeout: onTimeout,
		}})
	}
	lasting("starts", v1alpha1.OnTimeoutStart)
	lasting("fails", v1alpha1.OnTimeoutFail)
	f.await(t, ns, "starts", 20*time.Second, "is held", isHeld)
	f.await(t, ns, "fails", 20*time.Second, "is held", isHeld)
	before := f.restarts(t)
	f.create(t, ns, pod{name: "meanwhile", node: f.otherNode, labels: clientLabels, args: []string{"dial", at(server)},
		annotations: map[string]string{v1alpha1.KeyTimeout: "5m"}})
	f.await(t, ns, "meanwhile", 20*time.Second, "has a node", func(p *corev1.Pod) bool { return p.Spec.NodeName != "" })

	if err := f.Cluster.StopAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(outage)
	if err := f.Cluster.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}

	f.stayHeld(t, ns, "client-0", "client-1")
	// The timeouts ran out meanwhile: the one has started, with its own node's
	// confirmation, the other has failed.
	f.await(t, ns, "starts", 60*time.Second, "runs and is partially confirmed", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodRunning && isOpen(p) && gateOf(p).Reason == v1alpha1.ReasonPartiallyConfirmed &&
			strings.Contains(gateOf(p).Message, f.serverNode.Name)
	})
	failed := f.await(t, ns, "fails", 60*time.Second, "failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if state := failed.Status.InitContainerStatuses[0].State.Terminated; state == nil || state.ExitCode != v1alpha1.HoldTimeoutExitCode || isOpen(failed) {
		t.Errorf("%s: want exit code %d, and its gate never opened", describe(failed), v1alpha1.HoldTimeoutExitCode)
	}
	thaw()
	for _, name := range []string{"client-0", "client-1", "meanwhile"} {
		allOK(t, name, f.dials(t, ns, name, 2*time.Minute))
	}
	f.leads(t)
	for container, times := range f.restarts(t) {
		// The leader ends when its Lease does, and starts anew.
		if times > before[container]+1 {
			t.Errorf("%s was restarted %d times", container, times-before[container])
		}
	}
}

// restarts returns how often each container of Policy Gate was restarted.
func (f fixture) restarts(t *testing.T) map[string]int32 {
	t.Helper()
	pods, err := f.Client.CoreV1().Pods(testbed.Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]int32{}
	for _, p := range pods.Items {
		for _, s := range p.Status.ContainerStatuses {
			all[p.Name+"/"+s.Name] = s.RestartCount
		}
	}
	return all
}

// leads waits until a manager that runs holds the Lease and renews it.
func (f fixture) leads(t *testing.T) {
	t.Helper()
	f.renewed(t, testbed.Namespace, leaderLease, 60*time.Second)
}

// renewed waits until whoever holds a Lease renews it.
func (f fixture) renewed(t *testing.T, ns, name string, timeout time.Duration) {
	t.Helper()
	var first *metav1.MicroTime
	eventually(t, timeout, "Lease "+ns+"/"+name+" is renewed", func() (bool, string) {
		lease, err := f.Client.CoordinationV1().Leases(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || lease.Spec.HolderIdentity == nil || lease.Spec.RenewTime == nil {
			return false, fmt.Sprint(err)
		}
		if first == nil {
			first = lease.Spec.RenewTime
		}
		return lease.Spec.RenewTime.After(first.Time), *lease.Spec.HolderIdentity
	})
}

// settles waits until no replica and no agent looks after anything that is not
// confirmed.
func (f fixture) settles(t *testing.T) {
	t.Helper()
	for _, target := range f.targets(t) {
		metrics := []string{"policygate_gates_shut", "policygate_expectations_pending"}
		if target.Job == "policygate-agent" {
			metrics = []string{`policygate_agent_assignments{confirmed="false"}`}
		}
		for _, metric := range metrics {
			eventually(t, 40*time.Second, fmt.Sprintf("%s of %s is 0", metric, target.Instance), func() (bool, string) {
				value, err := scrape(target.Address, metric)
				return err == nil && value == 0, fmt.Sprint(value, err)
			})
		}
	}
}

// scrape reads one metric.
func scrape(address, metric string) (float64, error) {
	response, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if value, found := strings.CutPrefix(lines.Text(), metric+" "); found {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("%s shows no %s: %w", address, metric, io.EOF)
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/testbed"
	"github.com/policygate/policygate/test/engine"
)

// A server and its client come in the sync in which the engine of the server's
// node dies: new sets, and rules that know neither.
func engineCrashed(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	crash := f.rest(t, f.serverNode)
	f.create(t, ns, pod{
		name: "server", node: f.serverNode, labels: serverLabels, args: []string{"serve", fmt.Sprintf(":%d", servedPort)},
		annotations: map[string]string{v1alpha1.KeyHold: v1alpha1.ValueFalse},
	})
	server := f.await(t, ns, "server", 30*time.Second, "has an address", hasAddress)
	f.create(t, ns, pod{name: "client", node: f.clientNode, labels: clientLabels, args: []string{"dial", at(server)}})
	client := f.await(t, ns, "client", 30*time.Second, "has an address", hasAddress)
	// The engine's own watch may be a little behind.
	time.Sleep(time.Second)
	crash()
	if f.EngineKind == testbed.EngineTest {
		out, err := f.serverNode.Command(t.Context(), "sh", "-c", "ipset list; iptables-save -t filter").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if text := string(out); !strings.Contains(text, "\n"+client.Status.PodIP+" ") || strings.Contains(text, " "+server.Status.PodIP+"/32 ") {
			t.Fatalf("the engine did not die between its sets and its rules:\n%s", out)
		}
	}
	f.awaits(t, ns, "client", f.serverNode)
	f.stayHeld(t, ns, "client")
	f.await(t, ns, "server", 20*time.Second, "is shut", isShut)
	if err := f.Engine(f.serverNode.Name).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	allOK(t, "client", f.dials(t, ns, "client", 60*time.Second))
	f.await(t, ns, "server", 30*time.Second, "is open", isOpen)
}

// rest has an engine write nothing until the returned function is called, which
// has it begin a sync and die in the middle of it.
func (f fixture) rest(t *testing.T, node *cluster.Node) (crash func()) {
	t.Helper()
	e := f.Engine(node.Name)
	t.Cleanup(func() {
		if err := e.Start(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if f.EngineKind == testbed.EngineTest {
		f.control(t, node, engine.Control{Freeze: true})
		return func() {
			f.control(t, node, engine.Control{Crash: engine.CrashBetween})
			// Its status says that it crashed.
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := e.Process().Wait(ctx); err == nil || ctx.Err() != nil {
				t.Fatalf("the engine did not crash: %v", err)
			}
			f.control(t, node, engine.Control{})
		}
	}
	thaw := f.freeze(t, node)
	return func() {
		thaw()
		// It runs a tool only in a sync.
		eventually(t, 20*time.Second, "the engine is in a sync", func() (bool, string) { return hasChild(e.Process().Pid()), "" })
		if err := e.Kill(t.Context()); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
	}
}

func hasChild(pid int) bool {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		if content, err := os.ReadFile(list); err == nil && len(content) > 0 {
			return true
		}
	}
	return false
}

// succeed deletes a Pod and creates the next one of its node at its address.
func (f fixture) succeed(t *testing.T, ns string, former *corev1.Pod, next pod) *corev1.Pod {
	t.Helper()
	f.delete(t, ns, former.Name)
	f.gone(t, ns, former.Name)
	f.nextAddress(t, next.node, former.Status.PodIP)
	f.create(t, ns, next)
	second := f.await(t, ns, next.name, 20*time.Second, "has an address", hasAddress)
	if second.Status.PodIP != former.Status.PodIP {
		t.Fatalf("%s has address %s, want that of %s, %s", next.name, second.Status.PodIP, former.Name, former.Status.PodIP)
	}
	return second
}

// The former Pod was let out nowhere, by rules of its own node that are there
// still, and in nowhere.
func deniedAddressReused(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.apply(t, ns, policy("deny-other", networkingv1.PolicyTypeEgress, otherLabels, nil))
	f.create(t, ns, pod{name: "first", node: f.clientNode, labels: otherLabels, args: []string{"sleep", "10m"}})
	first := f.await(t, ns, "first", 30*time.Second, "is open", isOpen)
	thaw := f.freeze(t, f.clientNode)
	second := f.succeed(t, ns, first, pod{name: "second", node: f.clientNode, labels: clientLabels, args: []string{"dial", "-for", "2s", at(server)}})
	f.awaits(t, ns, "second", f.clientNode)
	if d := f.dialFrom(t, second, at(server)); d.OK {
		t.Fatal("the frozen node lets the address out already, which leaves nothing to show")
	}
	f.stayHeld(t, ns, "second")
	thaw()
	allOK(t, "second", f.dials(t, ns, "second", 60*time.Second))
}

func serverAddressReused(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	stranger := f.server(t, ns, "stranger", f.clientNode, otherLabels)
	open := f.server(t, ns, "open", f.serverNode, otherLabels)
	f.admits(t, stranger, open, true)
	thaw := f.freeze(t, f.serverNode)
	server := f.succeed(t, ns, open, pod{
		name: "server", node: f.serverNode, labels: serverLabels, args: []string{"serve", fmt.Sprintf(":%d", servedPort)},
		annotations: map[string]string{v1alpha1.KeyHold: v1alpha1.ValueFalse, v1alpha1.KeyTimeout: "5m"},
	})
	f.create(t, ns, pod{name: "client", node: f.clientNode, labels: clientLabels, args: []string{"dial", "-for", "2s", at(server)}})
	f.awaits(t, ns, "client", f.serverNode)
	// Its node sends to the former Pod's interface until the server has spoken.
	f.admits(t, server, stranger, true)
	f.admits(t, stranger, server, true)
	for range 10 {
		if p := f.get(t, ns, "server"); isOpen(p) {
			t.Fatalf("open as its predecessor was: %s", describe(p))
		}
		time.Sleep(100 * time.Millisecond)
	}
	f.stayHeld(t, ns, "client")
	thaw()
	f.await(t, ns, "server", 60*time.Second, "is open", isOpen)
	for range 5 {
		if f.dialFrom(t, stranger, at(server)).OK {
			t.Error("the stranger is let in to a server whose gate is open")
		}
		// The kernel answers six refusals at once and then one a second.
		time.Sleep(200 * time.Millisecond)
	}
	allOK(t, "client", f.dials(t, ns, "client", 60*time.Second))
}

// The one replica there is misses the deletion of a client and the creation of
// a stranger at its address, and has to list both. The server's node has not
// heard of it either.
func watchGap(t *testing.T, f fixture) {
	proxy := f.behindProxy(t, "pods", 0)
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.create(t, ns, pod{name: "first", node: f.clientNode, labels: clientLabels, args: []string{"sleep", "10m"}})
	first := f.await(t, ns, "first", 40*time.Second, "is open", isOpen)
	thaw := f.freeze(t, f.serverNode)
	proxy.Interrupt()
	second := f.succeed(t, ns, first, pod{name: "second", node: f.clientNode, labels: otherLabels, args: []string{"dial", "-for", "2s", at(server)}})
	// A client and its server, of which nobody saw which had its address first.
	f.create(t, ns, pod{name: "z-server", node: f.otherNode, labels: serverLabels, args: []string{"serve", fmt.Sprintf(":%d", servedPort)},
		annotations: map[string]string{v1alpha1.KeyInject: v1alpha1.ValueFalse}})
	late := f.await(t, ns, "z-server", 20*time.Second, "has an address", hasAddress)
	thawLate := f.freeze(t, f.otherNode)
	f.create(t, ns, pod{name: "a-client", node: f.clientNode, labels: clientLabels, args: []string{"dial", at(late)},
		annotations: map[string]string{v1alpha1.KeyTimeout: "5m"}})
	f.await(t, ns, "a-client", 20*time.Second, "has an address", hasAddress)
	proxy.Resume()

	f.awaits(t, ns, "second", f.serverNode)
	if d := f.dialFrom(t, second, at(server)); !d.OK {
		t.Fatalf("the frozen node refuses the address already, which leaves nothing to show: %s", d.Error)
	}
	f.await(t, ns, "a-client", 30*time.Second, "waits for the node of a server that is older", func(p *corev1.Pod) bool {
		return isHeld(p) && isShut(p) && strings.Contains(gateOf(p).Message, "waiting for "+f.otherNode.Name)
	})
	f.stayHeld(t, ns, "second", "a-client")
	thaw()
	thawLate()
	for _, d := range f.dials(t, ns, "second", 60*time.Second) {
		if d.OK {
			t.Error("the second Pod was let in as if it were the first")
		}
	}
	allOK(t, "a-client", f.dials(t, ns, "a-client", 60*time.Second))
}

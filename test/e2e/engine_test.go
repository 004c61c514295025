// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/testbed"
	"github.com/policygate/policygate/test/engine"
)

// calm puts every engine back to how a healthy one behaves.
func (f fixture) calm(t *testing.T) {
	t.Helper()
	for _, node := range f.Cluster.Nodes() {
		if err := f.Engine(node.Name).Thaw(); err != nil {
			t.Fatal(err)
		}
		f.control(t, node, engine.Control{})
	}
}

// control sets the test engine's switches; other engines have none.
func (f fixture) control(t *testing.T, node *cluster.Node, c engine.Control) {
	t.Helper()
	if f.EngineKind != testbed.EngineTest {
		return
	}
	if err := f.Engine(node.Name).Set(c); err != nil {
		t.Fatal(err)
	}
}

func lasting(d time.Duration) metav1.Duration { return metav1.Duration{Duration: d} }

func controlHalfProgrammed(lag time.Duration) engine.Control {
	return engine.Control{HalfProgrammed: true, Lag: lasting(lag)}
}

func controlStaleSync(after, lag time.Duration) engine.Control {
	return engine.Control{StaleSync: lasting(after), Lag: lasting(lag)}
}

func controlFlushed() engine.Control { return engine.Control{FlushPodChains: true} }

// freeze stops a node's engine, whichever it is, until the returned function
// is called or the test ends.
func (f fixture) freeze(t *testing.T, node *cluster.Node) func() {
	t.Helper()
	if err := f.Engine(node.Name).Freeze(); err != nil {
		t.Fatal(err)
	}
	thaw := sync.OnceFunc(func() {
		if err := f.Engine(node.Name).Thaw(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(thaw)
	return thaw
}

// slow makes a node's engine late by that much in every sync. The real one
// cannot be told to: it is stopped until the returned function is called,
// which for the test engine is not needed.
func (f fixture) slow(t *testing.T, node *cluster.Node, lag time.Duration) func() {
	t.Helper()
	if f.EngineKind == testbed.EngineTest {
		f.control(t, node, engine.Control{Lag: lasting(lag)})
		return func() {}
	}
	thaw := f.freeze(t, node)
	time.AfterFunc(lag, thaw)
	return thaw
}

// lag makes a node's engine, whichever it is, late by that much from now on.
func (f fixture) lag(t *testing.T, node *cluster.Node, lag time.Duration) {
	t.Helper()
	time.AfterFunc(lag, f.freeze(t, node))
}

// nudge makes every engine sync, and concerns nobody.
func (f fixture) nudge(t *testing.T) {
	t.Helper()
	f.apply(t, f.namespace(t, nil), policy("nudge", networkingv1.PolicyTypeIngress, otherLabels, nil))
}

// flush empties the chain of a Pod's rules on its node.
func (f fixture) flush(t *testing.T, node *cluster.Node, of *corev1.Pod) {
	t.Helper()
	// kube-router's own table is there in its nftables mode alone.
	const script = `set -e
table="ip kube-router-filter-ipv4"
if nft list table $table >/dev/null 2>&1; then
  chain=$(nft list chain $table KUBE-ROUTER-FORWARD | sed -n "s/.*ip daddr $1 .*jump \(KUBE-POD-FW-[A-Z0-9]*\).*/\1/p" | head -n 1)
  nft flush chain $table "${chain:?no chain in kube-router-filter-ipv4 is for $1}"
else
  chain=$(iptables -w -S KUBE-ROUTER-FORWARD | sed -n "s,.*-d $1/32 .*-j \(KUBE-POD-FW-[A-Z0-9]*\).*,\1,p" | head -n 1)
  iptables -w -F "${chain:?no chain of KUBE-ROUTER-FORWARD is for $1}"
fi`
	if out, err := node.Command(t.Context(), "sh", "-c", script, "sh", of.Status.PodIP).CombinedOutput(); err != nil {
		t.Fatalf("flush the rules of %s on %s: %v: %s", of.Name, node.Name, err, out)
	}
}

// admits dials until a server lets a Pod in, or does not.
func (f fixture) admits(t *testing.T, from, server *corev1.Pod, want bool) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("%s lets %s in: %t", server.Name, from.Name, want), func() (bool, string) {
		d := f.dialFrom(t, from, at(server))
		return d.OK == want, fmt.Sprintf("%+v", d)
	})
}

// settled waits until a server's isolation is in force: a stranger on another
// node is refused.
func (f fixture) settled(t *testing.T, ns string, server *corev1.Pod) {
	t.Helper()
	node := f.clientNode
	if server.Spec.NodeName == node.Name {
		node = f.serverNode
	}
	f.create(t, ns, pod{
		name: "settled-" + server.Name, node: node, labels: otherLabels, args: []string{"sleep", "10m"},
		annotations: map[string]string{"policygate.io/inject": "false"},
	})
	stranger := f.await(t, ns, "settled-"+server.Name, 20*time.Second, "runs", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodRunning && hasAddress(p)
	})
	policies, err := f.Client.NetworkingV1().NetworkPolicies(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	isolated := false
	for _, p := range policies.Items {
		if p.Spec.PodSelector.MatchLabels["app"] == server.Labels["app"] && len(p.Spec.Ingress) > 0 {
			isolated = true
		}
	}
	if !isolated {
		return
	}
	eventually(t, 20*time.Second, "a stranger is refused by "+server.Name, func() (bool, string) {
		d := f.dialFrom(t, stranger, at(server))
		time.Sleep(200 * time.Millisecond)
		return !d.OK, "it is let in"
	})
}

// gone waits until a Pod is no more.
func (f fixture) gone(t *testing.T, ns, name string) {
	t.Helper()
	eventually(t, 30*time.Second, "Pod "+name+" is gone", func() (bool, string) {
		_, err := f.Client.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		return apierrors.IsNotFound(err), fmt.Sprint(err)
	})
}

// nextAddress makes the address plugin of a node give out that address next,
// as it does by itself after a round through the range.
func (f fixture) nextAddress(t *testing.T, node *cluster.Node, ip string) {
	t.Helper()
	before := netip.MustParseAddr(ip).Prev()
	const script = `set -e
set -- "$1" "$2" $(ls -d /var/lib/cni/networks/*/)
[ $# -eq 3 ] || { echo "want one network, got: $*" >&2; exit 1; }
for wait in $(seq 100); do [ -e "$3/$2" ] || break; sleep 0.2; done
[ ! -e "$3/$2" ] || { echo "address $2 is still taken" >&2; exit 1; }
printf %s "$1" > "$3/last_reserved_ip.0"`
	out, err := node.Command(t.Context(), "sh", "-c", script, "sh", before.String(), ip).CombinedOutput()
	if err != nil {
		t.Fatalf("set the next address of %s: %v: %s", node.Name, err, out)
	}
}

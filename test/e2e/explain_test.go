// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
	"github.com/policygate/policygate/api/v1alpha1"
)

// kubectlExplains has a Pod wait for an address to come into a set, and asks
// what it waits for.
func kubectlExplains(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	// Another client, so that the rule is there and only its set lacks something.
	f.server(t, ns, "known", f.clientNode, clientLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.settled(t, ns, server)
	f.admits(t, f.get(t, ns, "known"), server, true)
	thaw := f.freeze(t, f.serverNode)
	f.create(t, ns, pod{name: "client", node: f.clientNode, labels: clientLabels, args: []string{"dial", at(server)}})
	client := f.await(t, ns, "client", 20*time.Second, "is held, and waits for the frozen node", func(p *corev1.Pod) bool {
		return isHeld(p) && isShut(p) && strings.Contains(gateOf(p).Message, f.serverNode.Name)
	})

	ask := []string{"explain", "-n", ns, "pod/client"}
	f.says(t, explainv1.ExitHeld, ask, f.serverNode.Name, ns+"/allow-client", client.Status.PodIP, "KUBE-SRC-")
	_, stdout, stderr := f.plugin(t, append(ask, "-o", "json")...)
	var e explainv1.Explanation
	if err := json.Unmarshal([]byte(stdout), &e); err != nil {
		t.Fatalf("%v in %q, stderr %q", err, stdout, stderr)
	}
	miss := missing(e, f.serverNode.Name, client.Status.PodIP, ns+"/allow-client")
	if e.State != explainv1.Held || miss == nil || !strings.Contains(miss.Rule, miss.Set) || !strings.HasPrefix(miss.Set, "KUBE-SRC-") {
		t.Errorf("it names no rule whose set lacks the client:\n%s", stdout)
	}
	thaw()
	allOK(t, "client", f.dials(t, ns, "client", 40*time.Second))
	f.says(t, explainv1.ExitNotHeld, ask)
}

// missing returns the rule that would let a source in, as an explanation says,
// if but a set on the node had it; nil if none.
func missing(e explainv1.Explanation, node, source, policy string) *tracev1.NearMiss {
	for _, n := range e.Nodes {
		for _, l := range n.Lacks {
			if n.Name != node || !n.Holds || l.Flow == nil || l.Flow.Source != source || l.Want != tracev1.Allowed || !strings.Contains(l.Why, policy) || l.Now == nil {
				continue
			}
			for _, m := range l.Now.NearMisses {
				if m.Element == source {
					return &m
				}
			}
		}
	}
	return nil
}

// says runs the plugin until it says all the words with the given exit status:
// an agent's answer may be of a moment ago.
func (f fixture) says(t *testing.T, status int, args []string, words ...string) {
	t.Helper()
	var stdout, stderr string
	eventually(t, 20*time.Second, "kubectl policygate "+strings.Join(args, " "), func() (bool, string) {
		var got int
		got, stdout, stderr = f.plugin(t, args...)
		for _, word := range words {
			if !strings.Contains(stdout, word) {
				return false, fmt.Sprintf("no %q; exit status %d, stderr %q\n%s", word, got, stderr, stdout)
			}
		}
		return got == status, fmt.Sprintf("exit status %d, want %d; stderr %q\n%s", got, status, stderr, stdout)
	})
	t.Logf("kubectl policygate %s\n%s%s", strings.Join(args, " "), stdout, stderr)
}

// doctorFinds is how kubectl policygate doctor exits if something is not in
// order.
const doctorFinds = 2

// kubectlDoctors is asked of a cluster in which nothing is wrong, and then
// something. What it says of an agent that is gone is agentAbsent's.
func kubectlDoctors(t *testing.T, f fixture) {
	f.says(t, 0, []string{"doctor"})
	ns := f.namespace(t, nil)
	f.create(t, ns, pod{name: "early", labels: otherLabels, args: []string{"sleep", "10m"}})
	label := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, v1alpha1.KeyInject, v1alpha1.InjectNamespace)
	if _, err := f.Client.CoreV1().Namespaces().Patch(t.Context(), ns, types.MergePatchType, label, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	f.says(t, doctorFinds, []string{"doctor"}, ns+"/early")
	f.delete(t, ns, "early")
	f.gone(t, ns, "early")
	f.says(t, 0, []string{"doctor"})
}

// kubectlDocuments asks for the documentation of every field.
func kubectlDocuments(t *testing.T, f fixture) {
	for path, object := range map[string]reflect.Type{
		"":                       reflect.TypeFor[v1alpha1.PolicyStatus](),
		".status":                reflect.TypeFor[v1alpha1.PolicyStatusStatus](),
		".status.nodes":          reflect.TypeFor[v1alpha1.NodeCounts](),
		".status.pods":           reflect.TypeFor[v1alpha1.PodCounts](),
		".status.laggingNodes":   reflect.TypeFor[v1alpha1.LaggingNode](),
		".status.deviations":     reflect.TypeFor[v1alpha1.Deviation](),
		".status.lastProgrammed": reflect.TypeFor[v1alpha1.LastProgrammed](),
	} {
		out, err := f.Kubectl(t.Context(), "explain", "policystatus"+path)
		if err != nil {
			t.Error(err)
			continue
		}
		if path == ".status" {
			t.Log("\n" + out)
		}
		for field := range object.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name == "" { // those of every object
				continue
			}
			described := regexp.MustCompile(`(?m)^  ` + name + `\t<.*\n    [^<\n]{10}`)
			if !described.MatchString(out) {
				t.Errorf("policystatus%s: field %s is not described in\n%s", path, name, out)
			}
		}
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// kubectlTraces asks as a person does, with the plugin's executable, and holds
// each answer against a packet.
func kubectlTraces(t *testing.T, f fixture) {
	ns := f.namespace(t, nil)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	client := f.server(t, ns, "client", f.clientNode, clientLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.settled(t, ns, server)
	stranger := f.get(t, ns, "settled-server")
	both := []string{f.clientNode.Name, f.serverNode.Name}

	t.Run("an allowed connection", func(t *testing.T) {
		answer := f.traced(t, tracev1.Allowed, "-n", ns, client.Name, fmt.Sprintf("%s:%d", server.Name, servedPort))
		if got := nodesOf(answer); fmt.Sprint(got) != fmt.Sprint(both) {
			t.Errorf("the nodes asked are %v, want %v", got, both)
		}
		if d := f.dialFrom(t, client, at(server)); !d.OK {
			t.Errorf("it is refused: %s", d.Error)
		}
	})
	t.Run("a denied connection, by address", func(t *testing.T) {
		answer := f.traced(t, tracev1.Denied, stranger.Status.PodIP, at(server))
		nodes := answer.Flows[0].Nodes
		if last := nodes[len(nodes)-1]; last.Name != f.serverNode.Name || last.Verdict != tracev1.Denied || len(last.Hops) != 1 || len(last.Hops[0].Steps) == 0 {
			t.Errorf("the server's node says %+v, want that it denies, and by which rules", last)
		}
		if answer.Flows[0].SourceName != "Pod "+ns+"/"+stranger.Name {
			t.Errorf("the source is called %q", answer.Flows[0].SourceName)
		}
		if d := f.dialFrom(t, stranger, at(server)); d.OK {
			t.Error("it is let in")
		}
	})
	t.Run("a connection to a Service cannot be told", func(t *testing.T) {
		service, err := f.Client.CoreV1().Services(ns).Create(t.Context(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "server"},
			Spec:       corev1.ServiceSpec{Selector: serverLabels, Ports: []corev1.ServicePort{{Port: servedPort}}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		answer := f.traced(t, tracev1.Inconclusive, "-n", ns, client.Name, atIP(service.Spec.ClusterIP))
		if reason := answer.Flows[0].Nodes[0].Reason; !strings.HasPrefix(reason, "DestinationRewritten") {
			t.Errorf("the reason is %q, want that the destination is rewritten", reason)
		}
	})
	t.Run("a ServiceAccount without the right is refused", func(t *testing.T) {
		status, stdout, stderr := f.plugin(t, "trace", "-n", ns, client.Name, fmt.Sprintf("%s:%d", server.Name, servedPort), "--service-account=default")
		want := `403 Forbidden: "system:serviceaccount:policygate-system:default" may not create traces.policygate.io`
		if status != tracev1.ExitError || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("exit status %d, stdout %q, stderr %q; want 1 and %q", status, stdout, stderr, want)
		}
	})
	t.Run("a person needs the shipped Role and no more", func(t *testing.T) {
		ask := []string{"trace", "--as=alice", "-n", ns, client.Name, fmt.Sprintf("%s:%d", server.Name, servedPort)}
		status, _, stderr := f.plugin(t, ask...)
		if want := "the Role policygate-trace-user in namespace policygate-system allows it"; status != tracev1.ExitError || !strings.Contains(stderr, want) {
			t.Errorf("without it: exit status %d, stderr %q; want 1 and %q", status, stderr, want)
		}
		bindings := f.Client.RbacV1().RoleBindings(testbed.Namespace)
		_, err := bindings.Create(t.Context(), &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "alice"},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "policygate-trace-user"},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "alice"}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := bindings.Delete(context.Background(), "alice", metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		})
		f.traced(t, tracev1.Allowed, ask[1:]...)
	})
	t.Run("a Pod that does not exist is named", func(t *testing.T) {
		status, _, stderr := f.plugin(t, "trace", "-n", ns, "nobody", fmt.Sprintf("%s:%d", server.Name, servedPort))
		if status != tracev1.ExitError || !strings.Contains(stderr, "there is no Pod nobody in namespace "+ns) {
			t.Errorf("exit status %d, stderr %q", status, stderr)
		}
	})
}

// traced runs trace until it says what is wanted, which is soon: the rules of
// the moment may be the engine's last. It returns the answer.
func (f fixture) traced(t *testing.T, want tracev1.Verdict, args ...string) tracev1.Answer {
	t.Helper()
	var answer tracev1.Answer
	eventually(t, 20*time.Second, "trace "+strings.Join(args, " "), func() (bool, string) {
		status, stdout, stderr := f.plugin(t, append([]string{"trace", "-o", "json"}, args...)...)
		answer = tracev1.Answer{}
		if err := json.Unmarshal([]byte(stdout), &answer); err != nil || len(answer.Flows) == 0 || len(answer.Flows[0].Nodes) == 0 {
			return false, fmt.Sprintf("exit status %d, %v in %q, stderr %q", status, err, stdout, stderr)
		}
		return answer.Verdict == want && status == want.ExitStatus(), stdout
	})
	status, text, _ := f.plugin(t, append([]string{"trace"}, args...)...)
	t.Logf("exit status %d\n%s", status, text)
	if !strings.Contains(text, "\n"+string(want)+": ") {
		t.Errorf("the text does not say %s:\n%s", want, text)
	}
	return answer
}

func nodesOf(answer tracev1.Answer) []string {
	var names []string
	for _, n := range answer.Flows[0].Nodes {
		names = append(names, n.Name)
	}
	return names
}

// plugin runs kubectl-policygate.
func (f fixture) plugin(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), f.Plugin(), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+f.Cluster.Kubeconfig())
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	err := cmd.Run()
	if failed := (*exec.ExitError)(nil); err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), problems.String()
}

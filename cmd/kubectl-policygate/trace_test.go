// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

const namespace = "policygate-system"

func TestTheCommandLineBecomesAQuestion(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want tracev1.Question
	}{
		"Pods of the default namespace": {
			args: []string{"backup", "mysql:3306"},
			want: tracev1.Question{Source: "shop/backup", Destination: "shop/mysql", Port: 3306, Protocol: "tcp"},
		},
		"Pods of others": {
			args: []string{"batch/backup", "db/mysql:3306"},
			want: tracev1.Question{Source: "batch/backup", Destination: "db/mysql", Port: 3306, Protocol: "tcp"},
		},
		"addresses": {
			args: []string{"10.0.0.1", "10.0.0.2:53", "--protocol", "UDP"},
			want: tracev1.Question{Source: "10.0.0.1", Destination: "10.0.0.2", Port: 53, Protocol: "udp"},
		},
		"IPv6": {
			args: []string{"fd00::1", "[fd00::2]:53", "--family=IPv6"},
			want: tracev1.Question{Source: "fd00::1", Destination: "fd00::2", Port: 53, Protocol: "tcp", Family: tracev1.IPv6},
		},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := parse(tc.args, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			got, err := o.question("shop")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("question (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheNamespaceIsTheFlagsOrTheKubeconfigs(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "config")
	text := `{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":"https://192.0.2.1"}}],
"contexts":[{"name":"c","context":{"cluster":"c","namespace":"shop"}}]}`
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, flags := range map[string][]string{"shop": nil, "batch": {"-n", "batch"}} {
		o, err := parse(append([]string{"a", "b:1", "--kubeconfig", kubeconfig}, flags...), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, err := o.config.Namespace(); err != nil || got != want {
			t.Errorf("with %q: %q, %v; want %q", flags, got, err, want)
		}
	}
}

func TestRun(t *testing.T) {
	for name, tc := range map[string]struct {
		args   []string
		status int
		out    string // in stdout or stderr
	}{
		"no command":             {status: 0, out: "Usage: kubectl policygate COMMAND"},
		"help":                   {args: []string{"--help"}, status: 0, out: "trace    what would become"},
		"another command":        {args: []string{"explain"}, status: 1, out: `command "explain": want trace`},
		"help of trace":          {args: []string{"trace", "-h"}, status: 0, out: "exit status is 0 if"},
		"no arguments":           {args: []string{"trace"}, status: 1, out: "0 arguments: want SRC and DST:PORT"},
		"no port":                {args: []string{"trace", "a", "b"}, status: 1, out: `destination "b" has no port`},
		"a bad output":           {args: []string{"trace", "a", "b:1", "-o", "yaml"}, status: 1, out: `--output "yaml": want text or json`},
		"a bad protocol":         {args: []string{"trace", "a", "b:1", "--protocol", "icmp"}, status: 1, out: `protocol "icmp": want tcp, udp or sctp`},
		"a bad family":           {args: []string{"trace", "a", "b:1", "--family", "ipv5"}, status: 1, out: `family "ipv5": want ipv4 or ipv6`},
		"a bad namespace":        {args: []string{"trace", "a", "b:1", "--install-namespace", "A"}, status: 1, out: `--install-namespace "A"`},
		"a bad ServiceAccount":   {args: []string{"trace", "a", "b:1", "--service-account", "A"}, status: 1, out: `--service-account "A"`},
		"a bad Pod":              {args: []string{"trace", "a/b/c", "b:1"}, status: 1, out: `source "a/b/c": want an IP address or namespace/pod`},
		"a kubeconfig not there": {args: []string{"trace", "a", "b:1", "--kubeconfig", "/no/such"}, status: 1, out: "read the kubeconfig"},
		"a flag not known":       {args: []string{"trace", "--color"}, status: 1, out: "unknown flag: --color"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if got := run(t.Context(), tc.args, &stdout, &stderr); got != tc.status {
				t.Errorf("exit status %d, want %d", got, tc.status)
			}
			if all := stdout.String() + stderr.String(); !strings.Contains(all, tc.out) {
				t.Errorf("printed %q, want %q in it", all, tc.out)
			}
		})
	}
}

func TestEveryFlagOfOursSaysWhy(t *testing.T) {
	var help bytes.Buffer
	if _, err := parse([]string{"--help"}, &help); !errors.Is(err, pflag.ErrHelp) {
		t.Fatal(err)
	}
	for _, flag := range []string{"--protocol", "--family", "-o, --output", "--install-namespace", "--service-account", "--kubeconfig", "--context", "-n, --namespace"} {
		if !strings.Contains(help.String(), flag) {
			t.Errorf("help does not name %s:\n%s", flag, help.String())
		}
	}
}

func TestTheTokenIsForTracesAlone(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("create", "serviceaccounts", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if action.GetSubresource() != "token" || action.GetNamespace() != namespace {
			return false, nil, nil
		}
		request := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest)
		want := authenticationv1.TokenRequestSpec{Audiences: []string{"policygate-trace"}, ExpirationSeconds: new(int64(600))}
		if diff := cmp.Diff(want, request.Spec); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{Token: "t"}}, nil
	})
	if got, err := newToken(t.Context(), client, namespace, "policygate-tracer"); err != nil || got != "t" {
		t.Errorf("token %q, %v", got, err)
	}
}

func TestErrorsOfTheAPISayWhatToDo(t *testing.T) {
	resource := schema.GroupResource{Resource: "x"}
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"forbidden":        {apierrors.NewForbidden(resource, "y", nil), "Role policygate-trace-user in namespace policygate-system allows it"},
		"not found":        {apierrors.NewNotFound(resource, "y"), "is Policy Gate installed in namespace policygate-system?"},
		"any other":        {apierrors.NewTimeoutError("slow", 1), "slow"},
		"keeps what it is": {apierrors.NewForbidden(resource, "y", nil), `x "y" is forbidden`},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			client.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, tc.err })
			_, tokenErr := newToken(t.Context(), client, namespace, "a")
			_, rootsErr := roots(t.Context(), client, namespace)
			_, managerErr := findManager(t.Context(), client, namespace)
			for _, err := range []error{tokenErr, rootsErr, managerErr} {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error %v, want one with %q", err, tc.want)
				}
			}
		})
	}
}

func TestRootsOfAnEmptyBundleAreAnError(t *testing.T) {
	client := fake.NewClientset(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "policygate-ca"}})
	if _, err := roots(t.Context(), client, namespace); err == nil || !strings.Contains(err.Error(), "has the manager started?") {
		t.Errorf("error %v", err)
	}
}

func TestPickManager(t *testing.T) {
	pod := func(name string, ready bool, port string, change func(*corev1.Pod)) corev1.Pod {
		p := corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
				{Name: "hub", ContainerPort: 1}, {Name: port, ContainerPort: 9446},
			}}}},
		}
		if ready {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		if change != nil {
			change(&p)
		}
		return p
	}
	ends := func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }
	for name, tc := range map[string]struct {
		pods    []corev1.Pod
		want    string
		problem string
	}{
		"the first that is ready": {pods: []corev1.Pod{pod("c", true, "trace", nil), pod("b", true, "trace", nil), pod("a", false, "trace", nil)}, want: "b"},
		"not one that ends":       {pods: []corev1.Pod{pod("a", true, "trace", ends), pod("b", true, "trace", nil)}, want: "b"},
		"nor an older one":        {pods: []corev1.Pod{pod("a", true, "x", nil), pod("b", true, "trace", nil)}, want: "b"},
		"none there":              {problem: "is Policy Gate installed there?"},
		"none ready":              {pods: []corev1.Pod{pod("a", false, "trace", nil)}, problem: "none of the manager's 1 Pods"},
		"none with the port":      {pods: []corev1.Pod{pod("a", true, "x", nil)}, problem: "has a port named trace"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := pickManager(tc.pods, namespace)
			if tc.problem != "" {
				if err == nil || !strings.Contains(err.Error(), tc.problem) {
					t.Errorf("error %v, want one with %q", err, tc.problem)
				}
				return
			}
			if want := (manager{namespace: namespace, name: tc.want, port: 9446}); err != nil || got != want {
				t.Errorf("%v, %v; want %v", got, err, want)
			}
		})
	}
}

func TestPost(t *testing.T) {
	question := tracev1.Question{Source: "a/b", Destination: "c/d", Port: 1, Protocol: "tcp"}
	answer := tracev1.NewAnswer([]tracev1.Flow{{Source: "10.0.0.1", Verdict: tracev1.Denied}})
	for name, tc := range map[string]struct {
		status  int
		body    string
		problem string
	}{
		"an answer":            {status: 200, body: mustJSON(t, answer)},
		"a refusal":            {status: 403, body: `{"error":"you may not\u001b"}`, problem: "the manager answers 403 Forbidden: you may not?"},
		"an error of somebody": {status: 502, body: "<html>", problem: "502 Bad Gateway: no reason given"},
		"garbage":              {status: 200, body: "garbage", problem: "read the manager's answer"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var got tracev1.Question
				if err := json.NewDecoder(r.Body).Decode(&got); err != nil || got != question || r.Header.Get("Authorization") != "Bearer t" {
					t.Errorf("asked %v (%v) with authorization %q", got, err, r.Header.Get("Authorization"))
				}
				w.WriteHeader(tc.status)
				_, _ = io.WriteString(w, tc.body)
			}))
			defer server.Close()
			got, err := post(t.Context(), server.Client(), server.URL+tracev1.Path, "t", question)
			if tc.problem != "" {
				if err == nil || !strings.Contains(err.Error(), tc.problem) {
					t.Errorf("error %v, want one with %q", err, tc.problem)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(answer, got); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

// The bundle is the one that the manager publishes, in PEM.
func TestRootsTrustWhatTheBundleHolds(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	client := fake.NewClientset(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "policygate-ca"}, Data: map[string]string{"ca.crt": string(bundle)},
	})
	pool, err := roots(t.Context(), client, namespace)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.Certificate().Verify(x509.VerifyOptions{Roots: pool}); err != nil {
		t.Error(err)
	}
}

func mustJSON(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

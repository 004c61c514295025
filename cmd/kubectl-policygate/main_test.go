// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// result runs the command.
func result(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, problems bytes.Buffer
	status = run(t.Context(), args, &out, &problems)
	return status, out.String(), problems.String()
}

func TestRun(t *testing.T) {
	for name, tc := range map[string]struct {
		args   []string
		status int
		out    string // in stdout or stderr
	}{
		"no command":                {status: 0, out: "kubectl policygate [command]"},
		"help":                      {args: []string{"--help"}, status: 0, out: "trace       Say what would become"},
		"another command":           {args: []string{"look"}, status: 1, out: `unknown command "look"`},
		"help of trace":             {args: []string{"trace", "-h"}, status: 0, out: "exit status is 0 if"},
		"help of status":            {args: []string{"status", "-h"}, status: 0, out: "exit status is 0 if"},
		"help of explain":           {args: []string{"explain", "-h"}, status: 0, out: "policygate-explain-user"},
		"help of doctor":            {args: []string{"doctor", "-h"}, status: 0, out: "policygate-webhook-viewer"},
		"help of completion":        {args: []string{"completion", "-h"}, status: 0, out: "kubectl_complete-policygate"},
		"no arguments":              {args: []string{"trace"}, status: 1, out: "0 arguments: want SRC and DST:PORT"},
		"no port":                   {args: []string{"trace", "a", "b"}, status: 1, out: `destination "b" has no port`},
		"a bad output":              {args: []string{"trace", "a", "b:1", "-o", "xml"}, status: 1, out: `--output "xml": want text, json or yaml`},
		"a bad protocol":            {args: []string{"trace", "a", "b:1", "--protocol", "icmp"}, status: 1, out: `protocol "icmp": want tcp, udp or sctp`},
		"a bad family":              {args: []string{"trace", "a", "b:1", "--family", "ipv5"}, status: 1, out: `family "ipv5": want ipv4 or ipv6`},
		"a bad namespace":           {args: []string{"trace", "a", "b:1", "--install-namespace", "A"}, status: 1, out: `--install-namespace "A"`},
		"a bad ServiceAccount":      {args: []string{"trace", "a", "b:1", "--service-account", "A"}, status: 1, out: `--service-account "A"`},
		"a bad Pod":                 {args: []string{"trace", "a/b/c", "b:1"}, status: 1, out: `source "a/b/c": want an IP address or namespace/pod`},
		"a kubeconfig not there":    {args: []string{"trace", "a", "b:1", "--kubeconfig", "/no/such"}, status: 1, out: "read the kubeconfig"},
		"a flag not known":          {args: []string{"trace", "--color"}, status: 1, out: "unknown flag: --color"},
		"explain what":              {args: []string{"explain"}, status: 1, out: "0 arguments: want a Pod's name, pod/NAME or networkpolicy/NAME"},
		"explain another kind":      {args: []string{"explain", "service/x"}, status: 1, out: `kind "service": want`},
		"explain no name":           {args: []string{"explain", "pod/"}, status: 1, out: `name "": want`},
		"explain a bad output":      {args: []string{"explain", "x", "-o", "wide"}, status: 1, out: `--output "wide": want text, json or yaml`},
		"explain a bad account":     {args: []string{"explain", "x", "--service-account", "A"}, status: 1, out: `--service-account "A"`},
		"explain a bad Pod":         {args: []string{"explain", "Pod", "A_B", "--server=http://127.0.0.1:1"}, status: 1, out: `pod "A_B": want the name of a Pod`},
		"status of two":             {args: []string{"status", "a", "b"}, status: 1, out: "2 arguments: want the name of one NetworkPolicy"},
		"status of one in all":      {args: []string{"status", "a", "-A"}, status: 1, out: `--all-namespaces with the name "a"`},
		"status with a bad output":  {args: []string{"status", "-o", "text"}, status: 1, out: `--output "text": want table, wide, json or yaml`},
		"doctor with an argument":   {args: []string{"doctor", "x"}, status: 1, out: "unknown command"},
		"doctor without a cluster":  {args: []string{"doctor", "--server=http://127.0.0.1:1"}, status: 1, out: "reach the API server"},
		"version":                   {args: []string{"version", "-o", "json"}, status: 0, out: `"version":`},
		"version with a bad output": {args: []string{"version", "-o", "x"}, status: 1, out: `--output "x": want text, json or yaml`},
		"a completion script":       {args: []string{"completion", "bash"}, status: 0, out: "kubectl-policygate"},
	} {
		t.Run(name, func(t *testing.T) {
			status, stdout, stderr := result(t, tc.args...)
			if status != tc.status {
				t.Errorf("exit status %d, want %d", status, tc.status)
			}
			if all := stdout + stderr; !strings.Contains(all, tc.out) {
				t.Errorf("printed %q, want %q in it", all, tc.out)
			}
		})
	}
}

func TestEveryFlagSaysWhy(t *testing.T) {
	asks := []string{"--install-namespace", "--service-account", "-o, --output"}
	for command, flags := range map[string][]string{
		"trace":   append([]string{"--protocol", "--family"}, asks...),
		"explain": asks, "doctor": asks,
		"status": {"-A, --all-namespaces", "-o, --output"},
	} {
		_, help, _ := result(t, command, "--help")
		for _, flag := range append(flags, "--kubeconfig", "--context", "-n, --namespace") {
			if !strings.Contains(help, flag) {
				t.Errorf("help of %s does not name %s:\n%s", command, flag, help)
			}
		}
	}
}

// api is an API server that has these objects by path, forbids what is under
// "/forbidden", and does not serve what is under "/kindless".
func api(t *testing.T, objects map[string]any) string {
	t.Helper()
	failure := func(w http.ResponseWriter, code int, reason, message string) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message,
			"details": map[string]any{"name": message},
		})
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		object, ok := objects[r.URL.Path]
		switch {
		case strings.Contains(r.URL.Path, "/forbidden"):
			failure(w, http.StatusForbidden, "Forbidden", "it is forbidden")
		case strings.Contains(r.URL.Path, "/kindless"):
			http.NotFound(w, r)
		case !ok:
			failure(w, http.StatusNotFound, "NotFound", "it is not there")
		default:
			_ = json.NewEncoder(w).Encode(object)
		}
	}))
	t.Cleanup(server.Close)
	t.Setenv("KUBECONFIG", "/dev/null")
	return "--server=" + server.URL
}

func policyStatus(namespace, name, programmed string) map[string]any {
	return map[string]any{
		"apiVersion": "policygate.io/v1alpha1", "kind": "PolicyStatus",
		"metadata": map[string]any{"namespace": namespace, "name": name},
		"status": map[string]any{
			"conditions": []any{map[string]any{"type": "Programmed", "status": programmed, "reason": "R", "message": "words", "lastTransitionTime": "2026-11-22T12:00:00Z"}},
			"newer":      "a field that this command does not know",
		},
	}
}

func cluster(t *testing.T) string {
	t.Helper()
	list := func(items ...any) map[string]any {
		return map[string]any{"apiVersion": "policygate.io/v1alpha1", "kind": "PolicyStatusList", "metadata": map[string]any{}, "items": items}
	}
	const group = "/apis/policygate.io/v1alpha1"
	const policies = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies"
	good, bad := policyStatus("shop", "good", "True"), policyStatus("shop", "bad", "False")
	policy := map[string]any{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": map[string]any{"name": "bad", "generation": 3}}
	return api(t, map[string]any{
		group + "/policystatuses":                      list(good, bad, policyStatus("web", "new", "Unknown")),
		group + "/namespaces/shop/policystatuses":      list(good, bad),
		group + "/namespaces/web/policystatuses":       list(policyStatus("web", "new", "Unknown")),
		group + "/namespaces/empty/policystatuses":     list(),
		group + "/namespaces/shop/policystatuses/good": good,
		group + "/namespaces/shop/policystatuses/bad":  bad,
		policies + "/bad":                              policy,
		policies + "/good":                             policy,
		policies + "/fresh":                            policy,
		policies:                                       map[string]any{"kind": "NetworkPolicyList", "apiVersion": "networking.k8s.io/v1", "items": []any{policy}},
		"/api/v1/namespaces/shop/pods":                 map[string]any{"kind": "PodList", "apiVersion": "v1", "items": []any{map[string]any{"metadata": map[string]any{"name": "backup"}}}},
		"/api/v1/namespaces":                           map[string]any{"kind": "NamespaceList", "apiVersion": "v1", "items": []any{map[string]any{"metadata": map[string]any{"name": "shop"}}}},
		"/version":                                     map[string]any{"major": "1", "minor": "36", "gitVersion": "v1.36.3"},
	})
}

func TestStatusAndExplainOfPolicies(t *testing.T) {
	server := cluster(t)
	for name, tc := range map[string]struct {
		args   []string
		status int
		out    string // in stdout or stderr
	}{
		"all in force":              {[]string{"status", "good", "-n", "shop"}, 0, "good   True"},
		"one is not":                {[]string{"status", "-n", "shop"}, 2, "bad    False"},
		"that cannot be told":       {[]string{"status", "-n", "web"}, 3, "new    Unknown"},
		"all namespaces":            {[]string{"status", "-A"}, 2, "NAMESPACE   NAME"},
		"wide":                      {[]string{"status", "-A", "-o", "wide"}, 2, "GENERATION"},
		"the kind before the name":  {[]string{"status", "networkpolicy/good", "-n", "shop"}, 0, "good   True"},
		"none there":                {[]string{"status", "-n", "empty"}, 0, "There is no PolicyStatus in namespace empty."},
		"none of that name":         {[]string{"status", "x", "-n", "shop"}, 1, "there is no PolicyStatus x in namespace shop"},
		"no right":                  {[]string{"status", "-n", "forbidden"}, 1, "the ClusterRole policygate-view allows it, which the ClusterRole view includes"},
		"no such kind":              {[]string{"status", "-n", "kindless"}, 1, "the cluster has no such kind"},
		"no such kind for one":      {[]string{"status", "x", "-n", "kindless"}, 1, "the cluster has no such kind"},
		"a list as JSON":            {[]string{"status", "-n", "shop", "-o", "json"}, 2, `"kind": "List"`},
		"one as YAML, all fields":   {[]string{"status", "good", "-n", "shop", "-o", "yaml"}, 0, "newer: a field that this command does not know"},
		"a policy in force":         {[]string{"explain", "np/good", "-n", "shop"}, 0, "NetworkPolicy shop/good is in force"},
		"a policy that is not":      {[]string{"explain", "netpol", "bad", "-n", "shop"}, 2, "NetworkPolicy shop/bad is not in force everywhere"},
		"a policy as JSON":          {[]string{"explain", "np/bad", "-n", "shop", "-o", "json"}, 2, `"newer"`},
		"a policy without a status": {[]string{"explain", "np/fresh", "-n", "shop"}, 1, "does the manager run?"},
		"no such policy":            {[]string{"explain", "np/none", "-n", "shop"}, 1, "there is no NetworkPolicy none in namespace shop"},
		"no right to explain":       {[]string{"explain", "np/x", "-n", "forbidden"}, 1, "the ClusterRole policygate-view allows it"},
	} {
		t.Run(name, func(t *testing.T) {
			status, stdout, stderr := result(t, append(tc.args, server)...)
			if all := stdout + stderr; status != tc.status || !strings.Contains(all, tc.out) {
				t.Errorf("exit status %d and %q, want %d and %q", status, all, tc.status, tc.out)
			}
		})
	}
}

// A right that is missing is named with the Role that has it, for each command.
func TestAMissingRightIsNamed(t *testing.T) {
	server := cluster(t)
	for command, role := range map[string]string{
		"trace a b:1": "policygate-trace-user", "explain x": "policygate-explain-user", "doctor": "policygate-doctor-user",
	} {
		_, stdout, stderr := result(t, append(strings.Fields(command), server, "--install-namespace=forbidden", "-n", "forbidden")...)
		if want := "the Role " + role + " in namespace forbidden allows it"; !strings.Contains(strings.ToLower(stdout+stderr), strings.ToLower(want)) {
			t.Errorf("%s: %q, want %q in it", command, stdout+stderr, want)
		}
	}
}

func TestCompletion(t *testing.T) {
	server := cluster(t)
	for name, tc := range map[string]struct {
		args []string
		want []string
	}{
		"commands":             {[]string{"st"}, []string{"status\tSay whether policies are in force, and on which nodes not"}},
		"policies":             {[]string{"status", server, "-n", "shop", ""}, []string{"bad"}},
		"no second policy":     {[]string{"status", server, "-n", "shop", "bad", ""}, nil},
		"Pods and policies":    {[]string{"explain", server, "-n", "shop", ""}, []string{"networkpolicy/bad", "pod/backup"}},
		"Pods":                 {[]string{"trace", server, "-n", "shop", ""}, []string{"backup"}},
		"no third Pod":         {[]string{"trace", server, "-n", "shop", "a", "b:1", ""}, nil},
		"namespaces":           {[]string{"status", server, "-n", ""}, []string{"shop"}},
		"protocols":            {[]string{"trace", "--protocol", ""}, []string{"tcp", "udp", "sctp"}},
		"forms of output":      {[]string{"doctor", "-o", ""}, []string{"text", "json", "yaml"}},
		"nothing to be listed": {[]string{"status", server, "-n", "forbidden", ""}, nil},
		"nobody there":         {[]string{"status", "--server=http://127.0.0.1:1", ""}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			// As kubectl asks, by the other name of the executable.
			args := arguments(append([]string{"/usr/bin/" + completerName}, tc.args...))
			_, stdout, _ := result(t, args...)
			var got []string
			for line := range strings.Lines(stdout) {
				if line = strings.TrimSuffix(line, "\n"); line != "" && !strings.HasPrefix(line, ":") {
					got = append(got, line)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestArgumentsAreThoseBehindTheName(t *testing.T) {
	if diff := cmp.Diff([]string{"status", "-A"}, arguments([]string{"/usr/bin/kubectl-policygate", "status", "-A"})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzParseSubject: whatever is typed is a kind that is known and a name, or an
// error.
func FuzzParseSubject(f *testing.F) {
	for _, seed := range []string{"backup", "pod/backup", "np/x/y", "/", "", "pod", "Service/x"} {
		f.Add(seed, "")
		f.Add("pod", seed)
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		args := []string{first}
		if second != "" {
			args = append(args, second)
		}
		kind, name, err := parseSubject(args)
		if err == nil && (kind != kindPod && kind != kindPolicy || name == "" || strings.Contains(name, "/")) {
			t.Errorf("%q is kind %q and name %q", args, kind, name)
		}
	})
}

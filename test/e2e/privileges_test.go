// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// The product's ServiceAccounts.
const (
	agentAccount   = "policygate-agent"
	managerAccount = "policygate-manager"
)

func accounts() []string {
	return []string{agentAccount, managerAccount, "policygate-tracer", "policygate-explainer", "policygate-doctor"}
}

func username(account string) string {
	return "system:serviceaccount:" + testbed.Namespace + ":" + account
}

// auditPolicy records each request of the product's ServiceAccounts, without
// bodies.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: ["RequestReceived"]
rules:
- level: Metadata
  userGroups: ["system:serviceaccounts:` + testbed.Namespace + `"]
- level: None
`

// TestPrivileges holds what Policy Gate's own parts may do against what they
// do, and tries what they may not. It has a cluster of its own for its audit
// log, which begins with the installation.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	policyFile, log := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "audit.log")
	if err := os.WriteFile(policyFile, []byte(auditPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	f := start(t, testbed.Options{Name: "privileges", Nodes: 2, IPTables: cluster.IPTablesNFT, APIServerArgs: []string{
		"--audit-policy-file=" + policyFile, "--audit-log-path=" + log, "--audit-log-maxsize=4096",
	}})
	for _, scenario := range []struct {
		name string
		run  func(*testing.T, fixture)
	}{
		// What is usual, so that every right is used: gates that open, one
		// that does not, statuses of policies, and a person's questions.
		{"Jobs on either node connect at their first try", jobsConnect},
		{"a timeout with start lets the Pod go and keeps the gate shut", timeoutStart},
		{"kubectl policygate traces what packets meet", kubectlTraces},
		{"every right that is granted is used, and no other is asked for", func(t *testing.T, f fixture) { rightsAreUsed(t, f, log) }},
		{"the documentation lists the rights of each ServiceAccount", rightsAreDocumented},
		{"containers have the rights that the manifests say, and no others", containersAreConfined},
		{"the manager passes Pod Security restricted", managerIsRestricted},
		{"the manager's Pods are reached at the ports that are meant", portsAreLimited},
		{"an agent's token is refused for anything but its own node's gates", stolenAgentToken},
		{"the manager's token is refused for anything but its own", stolenManagerToken},
		{"the hub believes the token alone", hubIsNotDeceived},
		{"kubelets, controllers and the scheduler write as ever", othersAreNotHindered},
	} {
		t.Run(scenario.name, func(t *testing.T) {
			f.calm(t)
			scenario.run(t, f)
		})
	}
}

// right is one verb on one kind of object, or on one object.
type right struct{ group, resource, name, verb string }

func (r right) String() string {
	text := r.verb + " " + r.resource
	if r.group != "" {
		text += "." + r.group
	}
	if r.name != "" {
		text += "/" + r.name
	}
	return text
}

// rightsOf returns what a user may do in Policy Gate's namespace.
func (f fixture) rightsOf(t *testing.T, user string) map[right]bool {
	t.Helper()
	config := rest.CopyConfig(f.Config)
	config.Impersonate.UserName = user
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	review, err := client.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), &authorizationv1.SelfSubjectRulesReview{
		Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: testbed.Namespace},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rights := map[right]bool{}
	for _, rule := range review.Status.ResourceRules {
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, name := range names {
					for _, verb := range rule.Verbs {
						rights[right{group, resource, name, verb}] = true
					}
				}
			}
		}
	}
	return rights
}

// unused is why a right is granted that no request of an hour uses.
func unused() map[string]string {
	const (
		fallback = "informers begin with a watch that lists; where the API server offers none, they list"
		question = "the manager asks whether the account has it; there is no such object"
	)
	return map[string]string{
		agentAccount + " list configmaps/policygate-ca":                                                fallback,
		agentAccount + " list endpointslices.discovery.k8s.io":                                         fallback,
		managerAccount + " list pods":                                                                  fallback,
		managerAccount + " list nodes":                                                                 fallback,
		managerAccount + " list policystatuses.policygate.io":                                          fallback,
		managerAccount + " list configmaps/policygate-ca":                                              fallback,
		managerAccount + " list secrets/policygate-tls":                                                fallback,
		managerAccount + " patch events.events.k8s.io":                                                 "an Event that repeats is counted in the one there is",
		managerAccount + " delete policystatuses.policygate.io":                                        "the garbage collector is usually first",
		"policygate-tracer create traces.policygate.io":                                                question,
		"policygate-explainer create explanations.policygate.io":                                       question,
		"policygate-doctor create diagnoses.policygate.io":                                             question,
		managerAccount + " list mutatingwebhookconfigurations.admissionregistration.k8s.io/policygate": fallback,
	}
}

// rightsAreUsed compares the roles with the API server's record of what was
// asked of it since the installation.
func rightsAreUsed(t *testing.T, f fixture, log string) {
	requests := readAudit(t, log)
	if len(requests) == 0 {
		t.Fatal("the audit log is empty")
	}
	everybody := f.rightsOf(t, "system:serviceaccount:default:default")
	reasons := unused()
	for _, account := range accounts() {
		used := map[right]int{}
		for _, r := range requests {
			if r.User.Name != username(account) {
				continue
			}
			// A namespace that ends answers 403 as well, and forbids nothing.
			if r.Annotations["authorization.k8s.io/decision"] == "forbid" || r.Response.Code == http.StatusUnauthorized {
				t.Errorf("%s was refused: %d %s %s", account, r.Response.Code, r.Verb, r.URI)
			}
			used[r.right()]++
			if r.Object.Name != "" { // a right may be for all names
				used[right{r.right().group, r.right().resource, "", r.Verb}]++
			}
		}
		for granted := range f.rightsOf(t, username(account)) {
			key := account + " " + granted.String()
			reason, excused := reasons[key]
			delete(reasons, key)
			switch n := used[granted]; {
			case everybody[granted]:
			case n > 0:
				t.Logf("%s: %d times", key, n)
			case excused:
				t.Logf("%s: not used: %s", key, reason)
			default:
				t.Errorf("%s: granted and never used", key)
			}
		}
	}
	for key := range reasons {
		t.Errorf("%s: excused and not granted", key)
	}
}

// audited is a line of the audit log.
type audited struct {
	Verb string `json:"verb"`
	URI  string `json:"requestURI"`
	User struct {
		Name string `json:"username"`
	} `json:"user"`
	Object struct {
		Group       string `json:"apiGroup"`
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
		Name        string `json:"name"`
	} `json:"objectRef"`
	Response struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
	Annotations map[string]string `json:"annotations"`
}

func (a audited) right() right {
	resource := a.Object.Resource
	if a.Object.Subresource != "" {
		resource += "/" + a.Object.Subresource
	}
	return right{a.Object.Group, resource, a.Object.Name, a.Verb}
}

func readAudit(t *testing.T, path string) []audited {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []audited
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		var a audited
		if err := json.Unmarshal(line, &a); err != nil {
			t.Fatalf("%v in %.200q", err, line)
		}
		all = append(all, a)
	}
	return all
}

// canI is a block of the documentation: a command and what it prints.
var canI = regexp.MustCompile("(?s)```text\n\\$ kubectl (auth can-i --list --as=system:serviceaccount:([a-z-]+):([a-z-]+) -n ([a-z-]+))\n(.*?)```")

// rightsAreDocumented runs the commands that docs/security.md shows.
func rightsAreDocumented(t *testing.T, f fixture) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	lines := func(text string) map[string]bool {
		set := map[string]bool{}
		for line := range strings.Lines(text) {
			line = strings.Join(strings.Fields(line), " ")
			if line != "" && !strings.HasPrefix(line, "Resources ") && !strings.HasPrefix(line, "Warning:") {
				set[line] = true
			}
		}
		return set
	}
	blocks := map[string]map[string]bool{}
	commands := map[string]string{}
	for _, m := range canI.FindAllStringSubmatch(string(text), -1) {
		key := m[2] + "/" + m[3] + " in " + m[4]
		blocks[key], commands[key] = lines(m[5]), m[1]
	}
	// Every ServiceAccount has these: the block of one that has nothing else.
	const nobody = "default/default in default"
	common := blocks[nobody]
	if len(common) == 0 {
		t.Fatalf("docs/security.md has no block for %s", nobody)
	}
	want := []string{nobody}
	for _, account := range accounts() {
		want = append(want, testbed.Namespace+"/"+account+" in "+testbed.Namespace, testbed.Namespace+"/"+account+" in default")
	}
	for _, key := range want {
		if blocks[key] == nil {
			t.Errorf("docs/security.md has no block for %s", key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(blocks)) {
		out, err := f.Kubectl(t.Context(), strings.Fields(commands[key])...)
		if err != nil {
			t.Fatal(err)
		}
		documented, reported := blocks[key], lines(out)
		if key != nobody {
			documented = maps.Clone(documented)
			maps.Copy(documented, common)
		}
		for line := range documented {
			if !reported[line] {
				t.Errorf("%s: documented, and not reported: %s", key, line)
			}
		}
		for line := range reported {
			if !documented[line] {
				t.Errorf("%s: reported, and not documented: %s", key, line)
			}
		}
	}
}

// eventuallyEqual is how long what was written may take to be read.
const eventuallyEqual = 20 * time.Second

// neverRefused looks for an admission policy's refusal in a component's log.
func (f fixture) neverRefused(t *testing.T, log string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(f.Cluster.Logs(), log))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		if bytes.Contains(line, []byte("ValidatingAdmissionPolicy")) && bytes.Contains(line, []byte("denied request")) {
			t.Errorf("%s: %s", log, line)
		}
	}
}

// othersAreNotHindered has the cluster's own parts write what the admission
// policies look at, with Pods that carry everything that they are about.
func othersAreNotHindered(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	f.create(t, ns, pod{name: "other", labels: otherLabels, args: []string{"sleep", "10m"}})
	f.await(t, ns, "other", 30*time.Second, "is open and runs", func(p *corev1.Pod) bool {
		return isOpen(p) && p.Status.Phase == corev1.PodRunning
	})
	// The kubelet and the scheduler have written, with the annotation there and
	// without it; a person labels the Pod.
	if _, err := f.Kubectl(t.Context(), "-n", ns, "label", "pod", "other", "example.org/seen=1"); err != nil {
		t.Error(err)
	}
	f.delete(t, ns, "other")
	eventually(t, eventuallyEqual, "the Pod is gone", func() (bool, string) {
		_, err := f.Client.CoreV1().Pods(ns).Get(t.Context(), "other", metav1.GetOptions{})
		return err != nil, fmt.Sprint(err)
	})
	f.neverRefused(t, "kube-scheduler.log")
	f.neverRefused(t, "kube-controller-manager.log")
	for _, node := range f.Cluster.Nodes() {
		f.neverRefused(t, node.Name+"-kubelet.log")
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// tokenOf returns a token of one of Policy Gate's ServiceAccounts, bound to its
// Pod on a node as the kubelet binds it; any node if that is empty.
func (f fixture) tokenOf(t *testing.T, account, node string, audiences ...string) string {
	t.Helper()
	selected := metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + account}
	if node != "" {
		selected.FieldSelector = "spec.nodeName=" + node
	}
	pods, err := f.Client.CoreV1().Pods(testbed.Namespace).List(t.Context(), selected)
	if err != nil || len(pods.Items) == 0 {
		t.Fatalf("Pods of %s on node %q: %v, %d Pods", account, node, err, len(pods.Items))
	}
	return f.requestToken(t, account, &authenticationv1.BoundObjectReference{
		Kind: "Pod", APIVersion: "v1", Name: pods.Items[0].Name, UID: pods.Items[0].UID,
	}, audiences...)
}

func (f fixture) requestToken(t *testing.T, account string, bound *authenticationv1.BoundObjectReference, audiences ...string) string {
	t.Helper()
	token, err := f.Client.CoreV1().ServiceAccounts(testbed.Namespace).CreateToken(t.Context(), account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: audiences, BoundObjectRef: bound},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return token.Status.Token
}

// withToken returns a client that has nothing but a token, as somebody who
// broke in would.
func (f fixture) withToken(t *testing.T, token string) kubernetes.Interface {
	t.Helper()
	config := rest.AnonymousClientConfig(f.Config)
	config.BearerToken = token
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// Ways to send a change.
const (
	merge     = string(types.MergePatchType)
	strategic = string(types.StrategicMergePatchType)
	jsonPatch = string(types.JSONPatchType)
	apply     = string(types.ApplyPatchType)
	whole     = "application/json"
)

// attempt is a request that must not succeed.
type attempt struct {
	name string
	// as is whose token is used.
	as         kubernetes.Interface
	verb, path string
	// kind is one of the ways above; empty without a body.
	kind, body string
	// says is in the refusal, if not empty: that it is refused for what it is.
	says string
	// harmless: the API server may accept it, and leaves the Pod as it is.
	harmless bool
}

// try makes the request and returns the refusal.
func (a attempt) try(ctx context.Context) error {
	r := a.as.CoreV1().RESTClient().Verb(a.verb).RequestURI(a.path)
	if a.kind != "" {
		r = r.SetHeader("Content-Type", a.kind).Body([]byte(a.body))
	}
	if a.kind == apply {
		r = r.Param("fieldManager", "thief").Param("force", "true")
	}
	return r.Do(ctx).Error()
}

// refuseAll makes each attempt, lists it with its refusal, and fails if the
// victim is not as it was.
func (f fixture) refuseAll(t *testing.T, ns, victim string, attempts []attempt) {
	t.Helper()
	before := f.get(t, ns, victim)
	for _, a := range attempts {
		err := a.try(t.Context())
		after := f.get(t, ns, victim)
		changed := difference(before, after)
		switch {
		case changed != "":
			t.Errorf("%s: %v; the Pod was changed: %s", a.name, err, changed)
			before = after
		case err == nil && a.harmless:
			t.Logf("%s: accepted, and nothing was changed", a.name)
		case err == nil:
			t.Errorf("%s: accepted", a.name)
		case !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) && !a.harmless:
			t.Errorf("%s: refused for another cause: %v", a.name, err)
		case apierrors.IsForbidden(err) && !strings.Contains(err.Error(), a.says):
			t.Errorf("%s: %v, want that it says %q", a.name, err, a.says)
		default:
			t.Logf("%s: %v", a.name, err)
		}
	}
}

// difference says what of a Pod is another, but for what the manager writes of
// a gate that is shut and the server's own records.
func difference(before, after *corev1.Pod) string {
	plain := func(p *corev1.Pod) *corev1.Pod {
		p = p.DeepCopy()
		p.ManagedFields, p.ResourceVersion = nil, ""
		if c := gateOf(p); c != nil {
			*c = corev1.PodCondition{Type: c.Type, Status: c.Status}
		}
		return p
	}
	a, b := plain(before), plain(after)
	switch {
	case !reflect.DeepEqual(a.ObjectMeta, b.ObjectMeta):
		return fmt.Sprintf("metadata %+v, was %+v", b.ObjectMeta, a.ObjectMeta)
	case !reflect.DeepEqual(a.Spec, b.Spec):
		return "its spec"
	case !reflect.DeepEqual(a.Status, b.Status):
		return fmt.Sprintf("status %+v, was %+v", b.Status, a.Status)
	}
	return ""
}

// victim makes a Pod on the client's node that is held, and whatever else a
// thief may want to change. What it waits for comes with thaw.
func (f fixture) victim(t *testing.T) (ns string, held *corev1.Pod, thaw func()) {
	t.Helper()
	ns = f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.settled(t, ns, server)
	thaw = f.freeze(t, f.serverNode)
	f.create(t, ns, pod{
		name: "victim", node: f.clientNode, labels: clientLabels, args: []string{"sleep", "10m"},
		annotations: map[string]string{"example.org/kept": "1", v1alpha1.KeyTimeout: "5m"},
		change:      func(p *corev1.Pod) { p.Finalizers = []string{"example.org/kept"} },
	})
	t.Cleanup(func() {
		_, err := f.Client.CoreV1().Pods(ns).Patch(context.Background(), "victim", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		if err != nil {
			t.Error(err)
		}
	})
	held = f.await(t, ns, "victim", 30*time.Second, "is held and says so", func(p *corev1.Pod) bool { return isHeld(p) && isShut(p) })
	return ns, held, thaw
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func setCondition(kind, value string) string {
	return fmt.Sprintf(`"status":{"conditions":[{"type":%q,"status":%q,"reason":"Confirmed","message":"m","lastTransitionTime":"2026-01-02T03:04:05Z"}]}`, kind, value)
}

// gateType is the condition that is ours.
const gateType = string(v1alpha1.ConditionProgrammed)

// annotated is the annotation as an agent writes it for a Pod.
func annotated(p *corev1.Pod) string {
	return fmt.Sprintf(`"metadata":{"uid":%q,"annotations":{%q:"uid=%s;ips=%s;boot=x"}}`, p.UID, v1alpha1.KeyProgrammed, p.UID, p.Status.PodIP)
}

func stolenAgentToken(t *testing.T, f fixture) {
	ns, victim, thaw := f.victim(t)
	own := f.withToken(t, f.tokenOf(t, agentAccount, f.clientNode.Name))
	foreign := f.withToken(t, f.tokenOf(t, agentAccount, f.serverNode.Name))
	unbound := f.withToken(t, f.requestToken(t, agentAccount, nil))

	path := "/api/v1/namespaces/" + ns + "/pods/victim"
	opening := `{` + annotated(victim) + `,` + setCondition(gateType, "True") + `}`
	attempts := []attempt{
		{name: "another node's gate", as: foreign, verb: "PATCH", path: path + "/status", kind: strategic, body: opening},
		{name: "a gate, by a token of no node", as: unbound, verb: "PATCH", path: path + "/status", kind: strategic, body: opening},
		{name: "another node's Pod, labels", as: foreign, verb: "PATCH", path: path + "/status", kind: merge, body: `{"metadata":{"labels":{"app":"server"}}}`},
		{name: "the gate as False", as: own, verb: "PATCH", path: path + "/status", kind: strategic, body: `{` + annotated(victim) + `,` + setCondition(gateType, "False") + `}`},
		{name: "the gate without the annotation", as: own, verb: "PATCH", path: path + "/status", kind: strategic, body: `{` + setCondition(gateType, "True") + `}`},
		{name: "the annotation without the gate", as: own, verb: "PATCH", path: path + "/status", kind: strategic, body: `{` + annotated(victim) + `}`},
		{name: "an annotation for another UID", as: own, verb: "PATCH", path: path + "/status", kind: strategic,
			body: `{"metadata":{"annotations":{"` + v1alpha1.KeyProgrammed + `":"uid=other;ips=1.2.3.4;boot=x"}},` + setCondition(gateType, "True") + `}`},
		{name: "the gate twice", as: own, verb: "PATCH", path: path + "/status", kind: jsonPatch,
			body: fmt.Sprintf(`[{"op":"add","path":"/status/conditions/-","value":{"type":%q,"status":"True"}}]`, gateType)},
		{name: "the Ready condition", as: own, verb: "PATCH", path: path + "/status", kind: strategic, body: `{` + annotated(victim) + `,` + setCondition("Ready", "True") + `}`},
		{name: "a condition of another's", as: own, verb: "PATCH", path: path + "/status", kind: strategic, body: `{` + setCondition("example.org/Other", "True") + `}`},
		{name: "removing a condition", as: own, verb: "PATCH", path: path + "/status", kind: jsonPatch, body: `[{"op":"remove","path":"/status/conditions/0"}]`},
		{name: "removing all conditions", as: own, verb: "PATCH", path: path + "/status", kind: merge, body: `{"status":{"conditions":null}}`},
	}
	attempts = append(attempts, onPod(own, path, victim)...)
	attempts = append(attempts, onCluster(own)...)
	f.refuseAll(t, ns, "victim", attempts)
	if after := f.get(t, ns, "victim"); isOpen(after) || !isHeld(after) {
		t.Errorf("the Pod is not held: %s", describe(after))
	}
	// The same token does what it is for, so that the refusals above are not for
	// want of any right.
	good := attempt{name: "its own gate", as: own, verb: "PATCH", path: path + "/status", kind: strategic, body: opening}
	if err := good.try(t.Context()); err != nil {
		t.Errorf("the agent's own patch: %v", err)
	}
	// With the gate as the agent may leave it, what else it writes is refused
	// for what it is.
	thaw()
	f.await(t, ns, "victim", 40*time.Second, "is open, and Ready", func(p *corev1.Pod) bool { return isOpen(p) && isReady(p) })
	f.refuseAll(t, ns, "victim", append(onMetadata(own, path+"/status"), onStatus(own, path+"/status")...))
}

// onMetadata are changes of metadata through the status.
func onMetadata(as kubernetes.Interface, path string) []attempt {
	var all []attempt
	for _, a := range []attempt{
		{name: "a label", body: `{"metadata":{"labels":{"app":"server"}}}`, says: "metadata.labels"},
		{name: "a new label", body: `{"metadata":{"labels":{"example.org/new":"1"}}}`, says: "metadata.labels"},
		{name: "deleting a label", body: `{"metadata":{"labels":{"app":null}}}`, says: "metadata.labels"},
		{name: "another annotation", body: `{"metadata":{"annotations":{"example.org/new":"1"}}}`, says: "no annotation but"},
		{name: "changing another annotation", body: `{"metadata":{"annotations":{"example.org/kept":"2"}}}`, says: "no annotation but"},
		{name: "deleting another annotation", body: `{"metadata":{"annotations":{"example.org/kept":null}}}`, says: "no annotation but"},
		{name: "deleting finalizers", body: `{"metadata":{"finalizers":null}}`, says: "metadata.finalizers"},
		{name: "adding a finalizer", body: `{"metadata":{"finalizers":["example.org/kept","example.org/more"]}}`, says: "metadata.finalizers"},
		{name: "generateName", body: `{"metadata":{"generateName":"x-"}}`, says: "metadata.generateName"},
	} {
		a.as, a.verb, a.path, a.kind = as, "PATCH", path, merge
		all = append(all, a)
	}
	for name, body := range map[string]string{
		"an owner":            `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"n","uid":"u"}]}}`,
		"a time of deletion":  `{"metadata":{"deletionTimestamp":"2026-01-02T03:04:05Z","deletionGracePeriodSeconds":0}}`,
		"a time of creation":  `{"metadata":{"creationTimestamp":"2026-01-02T03:04:05Z"}}`,
		"the generation":      `{"metadata":{"generation":99}}`,
		"the spec, by status": `{"spec":{"activeDeadlineSeconds":1}}`,
	} {
		all = append(all, attempt{name: name, as: as, verb: "PATCH", path: path, kind: merge, body: body, harmless: true})
	}
	return append(all,
		attempt{name: "a label, by a JSON patch", says: "metadata.labels", as: as, verb: "PATCH", path: path, kind: jsonPatch, body: `[{"op":"replace","path":"/metadata/labels/app","value":"server"}]`},
		attempt{name: "a label, by server-side apply", says: "metadata.labels", as: as, verb: "PATCH", path: path, kind: apply,
			body: `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"victim","labels":{"app":"server"}}}`},
	)
}

// onStatus are changes of all of a status but our condition.
func onStatus(as kubernetes.Interface, path string) []attempt {
	var all []attempt
	for field, value := range map[string]string{
		"observedGeneration":         `99`,
		"phase":                      `"Failed"`,
		"message":                    `"m"`,
		"reason":                     `"Evicted"`,
		"nominatedNodeName":          `"n9"`,
		"hostIP":                     `"192.0.2.1"`,
		"hostIPs":                    `[{"ip":"192.0.2.1"}]`,
		"podIP":                      `"192.0.2.1"`,
		"podIPs":                     `[{"ip":"192.0.2.1"}]`,
		"startTime":                  `"2026-01-02T03:04:05Z"`,
		"initContainerStatuses":      `null`,
		"containerStatuses":          `null`,
		"qosClass":                   `"Guaranteed"`,
		"ephemeralContainerStatuses": `[{"name":"e","image":"i","imageID":"","ready":true,"restartCount":0}]`,
		"resize":                     `"Proposed"`,
		"resourceClaimStatuses":      `[{"name":"c"}]`,
		"allocatedResources":         `{"cpu":"1"}`,
		"resources":                  `{"requests":{"cpu":"1"}}`,
	} {
		// Some the API server drops, as features are off or values do not fit.
		all = append(all, attempt{name: "status." + field, as: as, verb: "PATCH", path: path, kind: merge, body: `{"status":{"` + field + `":` + value + `}}`, says: "status." + field, harmless: true})
	}
	return all
}

// onPod are the other ways to a Pod.
func onPod(as kubernetes.Interface, path string, victim *corev1.Pod) []attempt {
	full := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"victim","namespace":%q,"uid":%q}}`, victim.Namespace, victim.UID)
	return []attempt{
		{name: "reading the Pod", as: as, verb: "GET", path: path},
		{name: "reading its status", as: as, verb: "GET", path: path + "/status"},
		{name: "reading its log", as: as, verb: "GET", path: path + "/log"},
		{name: "listing Pods of all namespaces", as: as, verb: "GET", path: "/api/v1/pods"},
		{name: "deleting the Pod", as: as, verb: "DELETE", path: path},
		{name: "the Pod itself", as: as, verb: "PATCH", path: path, kind: merge, body: `{"metadata":{"labels":{"app":"server"}}}`},
		{name: "a whole Pod", as: as, verb: "PUT", path: path, kind: whole, body: full},
		{name: "a whole status", as: as, verb: "PUT", path: path + "/status", kind: whole, body: full},
		{name: "a new Pod", as: as, verb: "POST", path: path[:strings.LastIndexByte(path, '/')], kind: whole, body: full},
		{name: "eviction", as: as, verb: "POST", path: path + "/eviction", kind: whole, body: `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"victim"}}`},
		{name: "binding", as: as, verb: "POST", path: path + "/binding", kind: whole, body: `{"apiVersion":"v1","kind":"Binding","metadata":{"name":"victim"},"target":{"kind":"Node","name":"n"}}`},
		{name: "ephemeral containers", as: as, verb: "PATCH", path: path + "/ephemeralcontainers", kind: strategic, body: `{"spec":{"ephemeralContainers":[{"name":"e","image":"i"}]}}`},
		{name: "resize", as: as, verb: "PATCH", path: path + "/resize", kind: strategic, body: `{"spec":{"containers":[{"name":"probe","resources":{"requests":{"cpu":"1"}}}]}}`},
		{name: "exec", as: as, verb: "POST", path: path + "/exec"},
		{name: "port-forward", as: as, verb: "POST", path: path + "/portforward"},
	}
}

// onCluster is what a thief would look for next.
func onCluster(as kubernetes.Interface) []attempt {
	own := "/api/v1/namespaces/" + testbed.Namespace
	rbac := "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
	admission := "/apis/admissionregistration.k8s.io/v1/"
	token := `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}`
	return []attempt{
		{name: "all Secrets", as: as, verb: "GET", path: "/api/v1/secrets"},
		{name: "the Secrets of the namespace", as: as, verb: "GET", path: own + "/secrets"},
		{name: "another Secret", as: as, verb: "GET", path: own + "/secrets/another"},
		{name: "another ConfigMap", as: as, verb: "GET", path: own + "/configmaps/kube-root-ca.crt"},
		{name: "all ConfigMaps of the namespace", as: as, verb: "GET", path: own + "/configmaps"},
		{name: "EndpointSlices of another namespace", as: as, verb: "GET", path: "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"},
		{name: "a token of an agent", as: as, verb: "POST", path: own + "/serviceaccounts/" + agentAccount + "/token", kind: whole, body: token},
		{name: "a token of the manager", as: as, verb: "POST", path: own + "/serviceaccounts/" + managerAccount + "/token", kind: whole, body: token},
		{name: "a node", as: as, verb: "PATCH", path: "/api/v1/nodes/n1", kind: merge, body: `{"metadata":{"labels":{"x":"y"}}}`},
		{name: "a node's status", as: as, verb: "PATCH", path: "/api/v1/nodes/n1/status", kind: merge, body: `{"status":{"conditions":null}}`},
		{name: "an Event of another namespace, of the old API", as: as, verb: "POST", path: "/api/v1/namespaces/default/events", kind: whole, body: `{"apiVersion":"v1","kind":"Event","metadata":{"name":"e"}}`},
		{name: "roles", as: as, verb: "POST", path: rbac, kind: whole,
			body: `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"x"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"}}`},
		{name: "the admission policies", as: as, verb: "DELETE", path: admission + "validatingadmissionpolicybindings/policygate-status-writers"},
		{name: "the webhook", as: as, verb: "DELETE", path: admission + "mutatingwebhookconfigurations/policygate"},
		{name: "NetworkPolicies", as: as, verb: "DELETE", path: "/apis/networking.k8s.io/v1/namespaces/" + testbed.Namespace + "/networkpolicies/policygate-manager"},
		{name: "the agents", as: as, verb: "PATCH", path: "/apis/apps/v1/namespaces/" + testbed.Namespace + "/daemonsets/policygate-agent", kind: merge, body: `{"metadata":{"labels":{"x":"y"}}}`},
	}
}

func stolenManagerToken(t *testing.T, f fixture) {
	ns, victim, _ := f.victim(t)
	as := f.withToken(t, f.tokenOf(t, managerAccount, ""))
	path := "/api/v1/namespaces/" + ns + "/pods/victim"
	hook := "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/policygate"
	attempts := []attempt{
		{name: "the gate as True", as: as, verb: "PATCH", path: path + "/status", kind: strategic, body: `{` + setCondition(gateType, "True") + `}`},
		{name: "the gate as True with the annotation", as: as, verb: "PATCH", path: path + "/status", kind: strategic, body: `{` + annotated(victim) + `,` + setCondition(gateType, "True") + `}`},
		{name: "the gate as False with the annotation", as: as, verb: "PATCH", path: path + "/status", kind: strategic, body: `{` + annotated(victim) + `,` + setCondition(gateType, "False") + `}`},
		{name: "the gate as Unknown", as: as, verb: "PATCH", path: path + "/status", kind: strategic, body: `{` + setCondition(gateType, "Unknown") + `}`},
		{name: "the Ready condition", as: as, verb: "PATCH", path: path + "/status", kind: strategic, body: `{` + setCondition("Ready", "True") + `}`},
		{name: "an agent's hub", as: as, verb: "PATCH", path: "/apis/discovery.k8s.io/v1/namespaces/" + testbed.Namespace + "/endpointslices/x", kind: merge, body: `{"endpoints":null}`},
	}
	for name, body := range map[string]string{
		"the webhook, to an address of the thief's": `[{"op":"remove","path":"/webhooks/0/clientConfig/service"},{"op":"add","path":"/webhooks/0/clientConfig/url","value":"https://192.0.2.1/"}]`,
		"the webhook, to another Service":           `[{"op":"replace","path":"/webhooks/0/clientConfig/service/name","value":"thief"}]`,
		"the webhook, for Secrets":                  `[{"op":"add","path":"/webhooks/0/rules/-","value":{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["secrets"]}}]`,
		"the webhook, for all namespaces":           `[{"op":"remove","path":"/webhooks/0/namespaceSelector"}]`,
		"the webhook, as one that must answer":      `[{"op":"replace","path":"/webhooks/1/failurePolicy","value":"Fail"}]`,
		"the webhook, without conditions":           `[{"op":"remove","path":"/webhooks/1/matchConditions"}]`,
		"the webhook, removed":                      `[{"op":"remove","path":"/webhooks/0"}]`,
		"a further webhook":                         `[{"op":"copy","from":"/webhooks/0","path":"/webhooks/-"},{"op":"replace","path":"/webhooks/2/name","value":"thief.example.org"}]`,
		"the webhook's owner":                       `[{"op":"add","path":"/metadata/ownerReferences","value":[{"apiVersion":"v1","kind":"Node","name":"n","uid":"u"}]}]`,
		"the webhook's labels":                      `[{"op":"add","path":"/metadata/labels","value":{}}]`,
	} {
		attempts = append(attempts, attempt{name: name, as: as, verb: "PATCH", path: hook, kind: jsonPatch, body: body})
	}
	attempts = append(attempts, onMetadata(as, path+"/status")...)
	attempts = append(attempts, onStatus(as, path+"/status")...)
	for _, a := range onPod(as, path, victim) {
		// It sees all Pods, by list and watch.
		if a.name != "listing Pods of all namespaces" {
			attempts = append(attempts, a)
		}
	}
	attempts = append(attempts, onCluster(as)...)
	f.refuseAll(t, ns, "victim", attempts)
	good := attempt{as: as, verb: "PATCH", path: path + "/status", kind: strategic, body: `{` + setCondition(gateType, "False") + `}`}
	if err := good.try(t.Context()); err != nil {
		t.Errorf("the manager's own patch: %v", err)
	}
	binding := attempt{
		name: "the annotation by a binding, as a scheduler", as: f.Client, verb: "POST", path: "/api/v1/namespaces/" + ns + "/pods/victim/binding", kind: whole,
		body: fmt.Sprintf(`{"apiVersion":"v1","kind":"Binding",%s,"target":{"kind":"Node","name":%q}}`,
			strings.Replace(annotated(victim), `{"uid"`, `{"name":"victim","uid"`, 1), f.clientNode.Name),
	}
	if err := binding.try(t.Context()); err == nil || !strings.Contains(err.Error(), "written by the policygate agent alone") {
		t.Errorf("%s: %v, want that the policy refuses it", binding.name, err)
	}
}

// hubIsNotDeceived comes to the hub with tokens that prove nothing, or another
// node than one would like.
func hubIsNotDeceived(t *testing.T, f fixture) {
	published, err := f.Client.CoreV1().ConfigMaps(testbed.Namespace).Get(t.Context(), "policygate-ca", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(published.Data["ca.crt"]))
	address := f.forward(t, "deployment/policygate-manager", 9444)
	const audience = "policygate-hub"
	for _, tc := range []struct{ name, token, want string }{
		{"no token", "", ""},
		{"a made-up token", "eyJhbGciOiJub25lIn0.e30.", ""},
		{"an agent's token for the API server", f.tokenOf(t, agentAccount, f.clientNode.Name), "not for the audience"},
		{"the manager's token for the hub", f.tokenOf(t, managerAccount, "", audience), "the token is not of"},
		{"a token of an agent that is on no node", f.requestToken(t, agentAccount, nil, audience), "names no node"},
	} {
		err := session(t, address, roots, tc.token)
		if code := status.Code(err); code != codes.Unauthenticated && code != codes.PermissionDenied || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want that it is refused, and %q", tc.name, err, tc.want)
		}
		t.Logf("%s: %v", tc.name, err)
	}
	if err := session(t, address, nil, ""); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a client that trusts nobody: %v, want that it does not trust the hub", err)
	}
}

// forward forwards a port of this machine's loopback to one of a Pod, and
// returns its address.
func (f fixture) forward(t *testing.T, to string, port int) string {
	t.Helper()
	cmd := f.KubectlCommand(t.Context(), "-n", testbed.Namespace, "port-forward", to, fmt.Sprintf(":%d", port))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	address, found := strings.CutPrefix(line, "Forwarding from ")
	if err != nil || !found {
		t.Fatalf("kubectl port-forward: %v, %q", err, line)
	}
	address, _, _ = strings.Cut(address, " ")
	return address
}

// session opens a session with the hub and returns why it ended.
func session(t *testing.T, address string, roots *x509.CertPool, token string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "policygate-hub.policygate-system.svc", MinVersion: tls.VersionTLS13})))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	stream, err := hubv1.NewHubClient(conn).Session(ctx)
	if err != nil {
		return err
	}
	// There is no place in it for the name of a node.
	_ = stream.Send(&hubv1.AgentMessage{Message: &hubv1.AgentMessage_Hello{Hello: &hubv1.Hello{BootId: "thief"}}})
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package explain

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedrbacv1 "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
	"github.com/policygate/policygate/test/controlplane"
)

const installed = "policygate-system"

// TestAPIServer tries the shipped roles on a real API server, which alone knows
// what tokens, audiences and rules mean.
func TestAPIServer(t *testing.T) {
	config := controlplane.Start(t).Config
	admin, err := kubernetes.NewForConfig(config)
	must(t, err)
	_, err = admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: installed}}, metav1.CreateOptions{})
	must(t, err)
	accounts := []string{"policygate-manager", "nobody"}
	for _, q := range questions() {
		accounts = append(accounts, q.account, q.user)
	}
	for _, name := range accounts {
		_, err := admin.CoreV1().ServiceAccounts(installed).Create(t.Context(),
			&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		must(t, err)
	}
	apply(t, admin)
	for _, q := range questions() {
		_, err = admin.RbacV1().RoleBindings(installed).Create(t.Context(), &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: q.user},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: q.role},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: q.user, Namespace: installed}},
		}, metav1.CreateOptions{})
		must(t, err)
	}

	allowed(t, func() error {
		_, err := as(t, config, "who-diagnoses").AppsV1().DaemonSets(installed).Get(t.Context(), "policygate-agent", metav1.GetOptions{})
		return err
	})

	manager := as(t, config, "policygate-manager")
	gate := access{tokens: manager.AuthenticationV1().TokenReviews(), reviews: manager.AuthorizationV1().SubjectAccessReviews()}
	bearer := func(client kubernetes.Interface, account, audience string) http.Header {
		return http.Header{"Authorization": {"Bearer " + token(t, client, account, audience)}}
	}
	for _, q := range questions() {
		t.Run("who may create "+q.resource, func(t *testing.T) {
			user := as(t, config, q.user)
			header := bearer(user, q.account, tracev1.Audience)
			for _, other := range questions() {
				got, err := gate.admit(t.Context(), header, other.resource)
				if other.resource == q.resource {
					if want := "system:serviceaccount:policygate-system:" + q.account; err != nil || got != want {
						t.Errorf("with a token that a user has made: %q, %v; want %q", got, err, want)
					}
					continue
				}
				if !refusedWith(err, http.StatusForbidden) || !strings.Contains(err.Error(), "may not create "+other.resource+".policygate.io") {
					t.Errorf("creates %s, too: %q, %v", other.resource, got, err)
				}
				if _, err := user.CoreV1().ServiceAccounts(installed).CreateToken(t.Context(), other.account,
					&authenticationv1.TokenRequest{}, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
					t.Errorf("a token of %s: %v, want that it is forbidden", other.account, err)
				}
			}
			if _, err := user.CoreV1().ServiceAccounts(installed).CreateToken(t.Context(), "policygate-manager",
				&authenticationv1.TokenRequest{}, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
				t.Errorf("the manager's token: %v, want that it is forbidden", err)
			}
			// Nor may the ServiceAccount itself anything else.
			_, err := as(t, config, q.account).CoreV1().ConfigMaps(installed).Get(t.Context(), "policygate-ca", metav1.GetOptions{})
			if !apierrors.IsForbidden(err) {
				t.Errorf("%s reads a ConfigMap: %v", q.account, err)
			}
		})
	}
	for name, tc := range map[string]struct {
		header http.Header
		status int
	}{
		"a token of a ServiceAccount without the right": {bearer(admin, "nobody", tracev1.Audience), http.StatusForbidden},
		"a token for the API server":                    {bearer(admin, "policygate-tracer", ""), http.StatusUnauthorized},
		"a token for the hub":                           {bearer(admin, "policygate-tracer", "policygate-hub"), http.StatusUnauthorized},
		"no token at all":                               {http.Header{"Authorization": {"Bearer x"}}, http.StatusUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			if user, err := gate.admit(t.Context(), tc.header, traces); !refusedWith(err, tc.status) {
				t.Errorf("%q, %v; want %d", user, err, tc.status)
			}
		})
	}
	t.Run("what doctor reads", func(t *testing.T) { doctorReads(t, config, admin) })
}

// question is a question with what the shipped roles say of it.
type question struct{ resource, account, user, role string }

func questions() []question {
	return []question{
		{traces, "policygate-tracer", "who-traces", "policygate-trace-user"},
		{explanations, "policygate-explainer", "who-explains", "policygate-explain-user"},
		{diagnoses, "policygate-doctor", "who-diagnoses", "policygate-doctor-user"},
	}
}

func refusedWith(err error, status int) bool {
	refused := (*refusedError)(nil)
	return errors.As(err, &refused) && refused.status == status
}

// allowed waits until what is tried is not forbidden: the API server learns of
// a new binding a moment later. What is read is not there.
func allowed(t *testing.T, try func() error) {
	t.Helper()
	err := try()
	for deadline := time.Now().Add(10 * time.Second); apierrors.IsForbidden(err) && time.Now().Before(deadline); err = try() {
		time.Sleep(20 * time.Millisecond)
	}
	if !apierrors.IsNotFound(err) {
		t.Fatalf("%v, want that it is not found", err)
	}
}

// doctorReads tries what doctor reads besides asking the manager: objects that
// are not there are not found, rather than forbidden.
func doctorReads(t *testing.T, config *rest.Config, admin kubernetes.Interface) {
	read := func(user kubernetes.Interface) map[string]error {
		_, deployment := user.AppsV1().Deployments(installed).Get(t.Context(), "policygate-manager", metav1.GetOptions{})
		_, daemonSet := user.AppsV1().DaemonSets(installed).Get(t.Context(), "policygate-agent", metav1.GetOptions{})
		_, webhook := user.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), "policygate", metav1.GetOptions{})
		return map[string]error{"Deployment": deployment, "DaemonSet": daemonSet, "webhook": webhook}
	}
	user := as(t, config, "who-diagnoses")
	for name, err := range read(user) {
		if forbidden := name == "webhook"; apierrors.IsForbidden(err) != forbidden {
			t.Errorf("%s with the Role alone: %v, want it forbidden: %t", name, err, forbidden)
		}
	}
	for name, err := range read(as(t, config, "who-traces")) {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s for who traces: %v, want that it is forbidden", name, err)
		}
	}
	_, err := admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "who-diagnoses"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "policygate-webhook-viewer"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "who-diagnoses", Namespace: installed}},
	}, metav1.CreateOptions{})
	must(t, err)
	allowed(t, func() error { return read(user)["webhook"] })
	_, err = user.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), "another", metav1.GetOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("another webhook: %v, want that it is forbidden", err)
	}
}

// apply creates the shipped roles and bindings of the manager and of the plugin.
func apply(t *testing.T, admin kubernetes.Interface) {
	t.Helper()
	for _, file := range []string{"question_roles.yaml", "plugin_roles.yaml", "manager_role.yaml"} {
		text, err := os.ReadFile(filepath.Join("..", "..", "config", "rbac", file))
		must(t, err)
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			var kind metav1.TypeMeta
			must(t, yaml.Unmarshal([]byte(document), &kind))
			create(t, admin.RbacV1(), kind.Kind, []byte(document))
		}
	}
}

func create(t *testing.T, rbac typedrbacv1.RbacV1Interface, kind string, document []byte) {
	t.Helper()
	var err error
	switch kind {
	case "ClusterRole":
		var o rbacv1.ClusterRole
		must(t, yaml.UnmarshalStrict(document, &o))
		_, err = rbac.ClusterRoles().Create(t.Context(), &o, metav1.CreateOptions{})
	case "ClusterRoleBinding":
		var o rbacv1.ClusterRoleBinding
		must(t, yaml.UnmarshalStrict(document, &o))
		_, err = rbac.ClusterRoleBindings().Create(t.Context(), &o, metav1.CreateOptions{})
	case "Role":
		var o rbacv1.Role
		must(t, yaml.UnmarshalStrict(document, &o))
		_, err = rbac.Roles(installed).Create(t.Context(), &o, metav1.CreateOptions{})
	case "RoleBinding":
		var o rbacv1.RoleBinding
		must(t, yaml.UnmarshalStrict(document, &o))
		_, err = rbac.RoleBindings(installed).Create(t.Context(), &o, metav1.CreateOptions{})
	default:
		t.Fatalf("kind %q: want a role or a binding", kind)
	}
	must(t, err)
}

func as(t *testing.T, config *rest.Config, account string) kubernetes.Interface {
	t.Helper()
	admin, err := kubernetes.NewForConfig(config)
	must(t, err)
	own := rest.AnonymousClientConfig(config)
	own.BearerToken = token(t, admin, account, "")
	client, err := kubernetes.NewForConfig(own)
	must(t, err)
	return client
}

// token returns a token of the ServiceAccount; without audience it is for the
// API server.
func token(t *testing.T, client kubernetes.Interface, account, audience string) string {
	t.Helper()
	spec := authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(600))}
	if audience != "" {
		spec.Audiences = []string{audience}
	}
	request, err := client.CoreV1().ServiceAccounts(installed).CreateToken(t.Context(), account,
		&authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	must(t, err)
	return request.Status.Token
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

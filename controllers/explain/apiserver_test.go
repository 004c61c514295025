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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedrbacv1 "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

const installed = "policygate-system"

// TestAPIServer tries the shipped roles on a real API server, which alone knows
// what tokens, audiences and rules mean.
func TestAPIServer(t *testing.T) {
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		t.Fatal("KUBEBUILDER_ASSETS is not set: want a directory with etcd, kube-apiserver and kubectl")
	}
	env := &envtest.Environment{ControlPlaneStartTimeout: time.Minute}
	config, err := env.Start()
	if err != nil {
		t.Fatalf("start the API server: %v", err)
	}
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Errorf("stop the API server: %v", err)
		}
	})
	admin, err := kubernetes.NewForConfig(config)
	must(t, err)
	_, err = admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: installed}}, metav1.CreateOptions{})
	must(t, err)
	for _, name := range []string{"policygate-tracer", "policygate-manager", "user", "nobody"} {
		_, err := admin.CoreV1().ServiceAccounts(installed).Create(t.Context(),
			&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		must(t, err)
	}
	apply(t, admin)
	_, err = admin.RbacV1().RoleBindings(installed).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "user"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "policygate-trace-user"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "user", Namespace: installed}},
	}, metav1.CreateOptions{})
	must(t, err)

	manager := as(t, config, "policygate-manager")
	gate := access{tokens: manager.AuthenticationV1().TokenReviews(), reviews: manager.AuthorizationV1().SubjectAccessReviews()}
	bearer := func(client kubernetes.Interface, account, audience string) http.Header {
		return http.Header{"Authorization": {"Bearer " + token(t, client, account, audience)}}
	}
	user := as(t, config, "user")
	got, err := gate.admit(t.Context(), bearer(user, "policygate-tracer", tracev1.Audience))
	if want := "system:serviceaccount:policygate-system:policygate-tracer"; err != nil || got != want {
		t.Errorf("with a token that a user has made: %q, %v; want %q", got, err, want)
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
			user, err := gate.admit(t.Context(), tc.header)
			if refused := (*refusedError)(nil); !errors.As(err, &refused) || refused.status != tc.status {
				t.Errorf("%q, %v; want %d", user, err, tc.status)
			}
		})
	}
	// A user gets no other ServiceAccount's token, nor a tracer anything.
	if _, err := user.CoreV1().ServiceAccounts(installed).CreateToken(t.Context(), "policygate-manager",
		&authenticationv1.TokenRequest{}, metav1.CreateOptions{}); err == nil {
		t.Error("the users' role gets the manager's token")
	}
	if _, err := as(t, config, "policygate-tracer").CoreV1().ConfigMaps(installed).Get(t.Context(), "policygate-ca", metav1.GetOptions{}); err == nil ||
		!strings.Contains(err.Error(), "forbidden") {
		t.Errorf("a tracer reads a ConfigMap: %v", err)
	}
}

// apply creates the shipped roles and bindings of the manager and of traces.
func apply(t *testing.T, admin kubernetes.Interface) {
	t.Helper()
	for _, file := range []string{"tracer_role.yaml", "manager_role.yaml"} {
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

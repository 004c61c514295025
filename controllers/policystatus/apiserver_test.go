// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package policystatus

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/test/controlplane"
)

const installed = "policygate-system"

// server is a real API server with what config/ ships, but no garbage
// collector, and a bench whose objects are there.
type server struct {
	*bench
	env    *envtest.Environment
	config *rest.Config
	admin  client.Client
	// tenant may view the namespace db.
	tenant client.Client
}

func newServer(t *testing.T) *server {
	t.Helper()
	env := controlplane.Start(t, filepath.Join("..", "..", "config", "crd", "bases"))
	s := &server{bench: newBench(t), env: env, config: env.Config}
	s.admin = s.client(env.Config)
	for _, name := range []string{installed, "db", "other"} {
		s.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	s.create(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: installed, Name: "policygate-manager"}})
	s.create(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "tenant"}})
	s.apply("manager_role.yaml", "ClusterRole", "ClusterRoleBinding")
	s.apply("view_role.yaml", "ClusterRole")
	s.create(&rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "tenant"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "policygate-view"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "db", Name: "tenant"}},
	})
	s.tenant = s.client(s.as("db", "tenant"))
	return s
}

func (s *server) client(config *rest.Config) client.Client {
	s.t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		s.must(add(scheme))
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	s.must(err)
	return c
}

// as returns the configuration of a client with a token of the ServiceAccount.
func (s *server) as(namespace, account string) *rest.Config {
	s.t.Helper()
	clients, err := kubernetes.NewForConfig(s.config)
	s.must(err)
	request, err := clients.CoreV1().ServiceAccounts(namespace).CreateToken(s.t.Context(), account,
		&authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	s.must(err)
	own := rest.AnonymousClientConfig(s.config)
	own.BearerToken = request.Status.Token
	return own
}

// apply creates what a file of config/rbac ships of the kinds.
func (s *server) apply(file string, kinds ...string) {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "config", "rbac", file))
	s.must(err)
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var kind metav1.TypeMeta
		s.must(yaml.Unmarshal([]byte(document), &kind))
		for _, k := range kinds {
			var o client.Object
			switch {
			case k != kind.Kind:
				continue
			case k == "ClusterRole":
				o = &rbacv1.ClusterRole{}
			default:
				o = &rbacv1.ClusterRoleBinding{}
			}
			s.must(yaml.UnmarshalStrict([]byte(document), o))
			s.create(o)
		}
	}
}

func (s *server) create(o client.Object) {
	s.t.Helper()
	s.must(s.admin.Create(s.t.Context(), o))
}

func (s *server) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// install begins a replica with the manager's rights: policies come from a real
// index, objects from a watch and go to the API server.
func (s *server) install() {
	s.t.Helper()
	manager := s.as(installed, "policygate-manager")
	options := coverage.DefaultOptions()
	options.Clock = s.clock
	index := coverage.New(options)
	s.statuses.objects = APIObjects{Client: s.client(manager)}
	s.ledger.coverage = index
	s.ledger.leads = false
	objects, err := cache.New(manager, cache.Options{Scheme: s.admin.Scheme()})
	s.must(err)
	var synced []toolscache.InformerSynced
	watch := func(of client.Object, h toolscache.ResourceEventHandlerFuncs) {
		informer, err := objects.GetInformer(s.t.Context(), of, cache.BlockUntilSynced(false))
		s.must(err)
		registration, err := informer.AddEventHandler(h)
		s.must(err)
		synced = append(synced, registration.HasSynced)
	}
	watch(&v1alpha1.PolicyStatus{}, toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { s.ledger.ObjectChanged(o.(*v1alpha1.PolicyStatus)) },
		UpdateFunc: func(_, o any) { s.ledger.ObjectChanged(o.(*v1alpha1.PolicyStatus)) },
		DeleteFunc: func(o any) { s.ledger.ObjectDeleted(o.(*v1alpha1.PolicyStatus)) },
	})
	watch(&networkingv1.NetworkPolicy{}, toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { index.SetPolicy(o.(*networkingv1.NetworkPolicy)) },
		UpdateFunc: func(_, o any) { index.SetPolicy(o.(*networkingv1.NetworkPolicy)) },
		DeleteFunc: func(o any) { index.DeletePolicy(o.(*networkingv1.NetworkPolicy)) },
	})
	for _, name := range []string{"db", "other"} {
		var ns corev1.Namespace
		s.must(s.admin.Get(s.t.Context(), types.NamespacedName{Name: name}, &ns))
		index.SetNamespace(&ns)
	}
	go func() { _ = objects.Start(s.t.Context()) }()
	if !toolscache.WaitForCacheSync(s.t.Context().Done(), synced...) {
		s.t.Fatal("the caches do not get complete")
	}
	s.ledger.step()
	s.ledger.lead()
}

// until lets time pass, of which the clock has more than the machine, until
// done. It fails the test if that takes a minute.
func (s *server) until(what string, done func() bool) {
	s.t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("%s: it has not come to that", what)
		}
		s.run(20 * time.Millisecond)
	}
}

// status returns the object of a policy; nil if there is none.
func (s *server) status(key types.NamespacedName) *v1alpha1.PolicyStatus {
	s.t.Helper()
	var o v1alpha1.PolicyStatus
	err := s.admin.Get(s.t.Context(), key, &o)
	if apierrors.IsNotFound(err) {
		return nil
	}
	s.must(err)
	return &o
}

func policy(name string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: name}}
}

// TestAPIServer tries the shipped kind and roles on a real API server.
func TestAPIServer(t *testing.T) {
	s := newServer(t)
	before, later := policy("before"), policy("later")
	s.create(before)
	stray := newObject(Policy{Name: types.NamespacedName{Namespace: "db", Name: "stray"}, UID: "gone"})
	s.create(stray)
	s.install()
	s.create(later)
	noPods := "Programmed=True/NoPods | Degraded=False/AsExpected | 0/0 | gen=1"
	for _, p := range []*networkingv1.NetworkPolicy{before, later} {
		key := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
		s.until(p.Name+" has a status", func() bool {
			o := s.status(key)
			return o != nil && told(&o.Status) == noPods
		})
		if o := s.status(key); !owned(o, p.UID) || *o.OwnerReferences[0].Controller != true {
			t.Errorf("%s: owned by %v, want the policy as its controller", p.Name, o.OwnerReferences)
		}
	}
	strayKey := types.NamespacedName{Namespace: "db", Name: "stray"}
	s.until("an object without a policy is removed", func() bool { return s.status(strayKey) == nil })

	laterKey := types.NamespacedName{Namespace: "db", Name: "later"}
	later.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	s.must(s.admin.Update(t.Context(), later))
	s.until("an edit is observed", func() bool { return *s.status(laterKey).Status.ObservedGeneration == 2 })
	s.must(s.admin.Delete(t.Context(), later))
	s.until("its object goes with a policy", func() bool { return s.status(laterKey) == nil })

	t.Run("everything that may be said is taken", s.everything)
	t.Run("a tenant views its own", s.views)
	t.Run("kubectl shows it", s.kubectl)
}

// everything has the API server judge a status in which everything is set and
// long.
func (s *server) everything(t *testing.T) {
	key := types.NamespacedName{Namespace: "db", Name: "before"}
	st := state{generation: 1, understood: true, seen: t0, deviations: []string{strings.Repeat("d", 300)}}
	for i := range 40 {
		n := unmet("node-"+strings.Repeat("x", 200)+string(rune('a'+i%26))+string(rune('a'+i/26)), v1alpha1.LagNotAdmitting, t0)
		n.text = strings.Repeat("t", 300)
		st.nodes = append(st.nodes, n)
	}
	for i := range 20 {
		st.nodes = append(st.nodes, with(confirmed("ok-"+string(rune('a'+i))), func(n *node) { n.deviates = []string{"common"} }))
	}
	full := decide(st, t0.Add(time.Hour)).status
	last := decide(state{generation: 1, understood: true, seen: t0, nodes: []node{confirmed("n1")}}, t0).status.LastProgrammed
	full.LastProgrammed = last
	o := s.status(key)
	o.Status = *full
	if err := s.admin.Status().Update(t.Context(), o); err != nil {
		t.Errorf("a status that is full is refused: %v", err)
	}
	if k := difference(&o.Status, full); k != "" {
		t.Errorf("what comes back differs by %q: %s, want %s", k, told(&o.Status), told(full))
	}
	s.until("what somebody else wrote is written over", func() bool {
		return strings.HasPrefix(told(&s.status(key).Status), "Programmed=True/NoPods")
	})
}

// views has a tenant read its namespace's objects, no others, and write none.
func (s *server) views(t *testing.T) {
	var all v1alpha1.PolicyStatusList
	if err := s.tenant.List(t.Context(), &all, client.InNamespace("db")); err != nil || len(all.Items) != 1 {
		t.Errorf("a tenant lists %d, %v: want 1", len(all.Items), err)
	}
	if err := s.tenant.List(t.Context(), &all, client.InNamespace("other")); !apierrors.IsForbidden(err) {
		t.Errorf("a tenant lists another namespace: %v", err)
	}
	o := s.status(types.NamespacedName{Namespace: "db", Name: "before"})
	for what, err := range map[string]error{
		"writes a status":   s.tenant.Status().Update(t.Context(), o.DeepCopy()),
		"removes an object": s.tenant.Delete(t.Context(), o.DeepCopy()),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("a tenant %s: %v", what, err)
		}
	}
	var view rbacv1.ClusterRole
	s.must(s.admin.Get(t.Context(), types.NamespacedName{Name: "policygate-view"}, &view))
	if view.Labels["rbac.authorization.k8s.io/aggregate-to-view"] != "true" {
		t.Errorf("labels %v: the role is no part of view", view.Labels)
	}
}

// kubectl has a person look.
func (s *server) kubectl(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	person, err := s.env.AddUser(envtest.User{Name: "person", Groups: []string{"system:masters"}}, nil)
	s.must(err)
	users, err := person.KubeConfig()
	s.must(err)
	s.must(os.WriteFile(file, users, 0o600))
	run := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kubectl"), append([]string{"--kubeconfig", file}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl %s: %v\n%s", args, err, out)
		}
		return string(out)
	}
	out := run("get", "pst", "-n", "db")
	lines := strings.Split(out, "\n")
	if got := strings.Fields(lines[0]); strings.Join(got, " ") != "NAME PROGRAMMED NODES PODS PENDING TOOK AGE" {
		t.Errorf("columns %q", got)
	}
	if got := strings.Fields(lines[1]); strings.Join(got[:5], " ") != "before True 0/0 0 0" {
		t.Errorf("row %q", got)
	}
	t.Log("\n" + out + run("get", "pst", "-n", "db", "-o", "wide") + run("explain", "policystatus.status", "--recursive=false"))
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/test/ovn/engine"
	"github.com/policygate/policygate/test/ovn/fixture"
)

// world is a fixture with a server and the Pods that dial it.
type world struct {
	*testing.T
	fixture *fixture.Fixture
	pods    map[string]*fixture.Pod
	labels  map[string]map[string]string
}

// newWorld has server and friend in namespace db and stranger in web, on as
// many nodes.
func newWorld(t *testing.T, options fixture.Options) *world {
	t.Helper()
	options.Nodes = 3
	w := &world{T: t, fixture: fixture.Start(t, options), pods: map[string]*fixture.Pod{}, labels: map[string]map[string]string{}}
	w.add("server", "db", "n1")
	w.add("friend", "db", "n2")
	w.add("stranger", "web", "n3")
	if err := w.fixture.WaitInstalled(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.pods["server"].Listen(80); err != nil {
		t.Fatal(err)
	}
	return w
}

// add adds a Pod with the label app of its name.
func (w *world) add(name, namespace, node string) {
	w.Helper()
	w.pods[name] = w.fixture.AddPod(fixture.PodOptions{Namespace: namespace, Name: name, Node: node})
	w.labels[name] = map[string]string{"app": name}
}

// cluster returns what the API has of the Pods that are named, with the
// policies given.
func (w *world) cluster(pods []string, policies ...*networkingv1.NetworkPolicy) engine.Cluster {
	c := engine.Cluster{Policies: policies}
	for _, name := range pods {
		c.Pods = append(c.Pods, w.pods[name].Object(w.labels[name]))
	}
	for _, n := range w.fixture.Nodes() {
		c.Nodes = append(c.Nodes, n.Object())
	}
	for _, name := range []string{"db", "web"} {
		c.Namespaces = append(c.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}})
	}
	return c
}

// settle waits until the nodes have what the northbound database has.
func (w *world) settle() {
	w.Helper()
	if err := w.fixture.Settle(w.Context()); err != nil {
		w.Fatal(err)
	}
}

// want dials the server's ports 80, where it listens, and 81.
func (w *world) want(from string, at80, at81 fixture.Outcome) {
	w.Helper()
	var dials sync.WaitGroup
	for port, want := range map[uint16]fixture.Outcome{80: at80, 81: at81} {
		dials.Go(func() {
			if got, err := w.pods[from].Dial(w.pods["server"], port); err != nil || got != want {
				w.Errorf("%s to server:%d is %q, %v, want %q", from, port, got, err, want)
			}
		})
	}
	dials.Wait()
}

// fromFriend lets friend reach port 80 of server.
func fromFriend() *networkingv1.NetworkPolicy {
	port := intstr.FromInt32(80)
	tcp := corev1.ProtocolTCP
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "from-friend"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "friend"}}}},
				Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &port}},
			}},
		},
	}
}

// apply makes a pass and waits for the nodes.
func (w *world) apply(e *engine.Engine, c engine.Cluster) {
	w.Helper()
	if err := e.Sync(w.Context(), c); err != nil {
		w.Fatal(err)
	}
	w.settle()
}

func all() []string { return []string{"server", "friend", "stranger"} }

func TestAPolicyAdmitsItsPeersAndRefusesOthers(t *testing.T) {
	w := newWorld(t, fixture.Options{})
	w.want("stranger", fixture.Open, fixture.Refused)
	for name, shape := range map[string]engine.Shape{"1.15": engine.Release115(), "1.16": engine.Release116(), "lax": {InlineBlocks: true, Lax: true}} {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.T = t
			e := engine.New(w.fixture, engine.Options{Shape: shape})
			w.apply(e, w.cluster(all(), fromFriend()))
			w.want("friend", fixture.Open, fixture.Silent)
			w.want("stranger", fixture.Silent, fixture.Silent)
			w.apply(e, w.cluster(all()))
			w.want("stranger", fixture.Open, fixture.Refused)
			if left := w.policyRows(); left != "" {
				t.Errorf("without policies there are\n%s", left)
			}
		})
	}
}

// policyRows returns the rows that are NetworkPolicies'.
func (w *world) policyRows() string {
	w.Helper()
	var rows strings.Builder
	for _, args := range [][]string{
		{"--bare", "--columns=match", "list", "acl"},
		{"--bare", "--columns=name", "list", "address_set"},
		{"--bare", "--columns=external_ids", "list", "port_group"},
	} {
		found, err := w.fixture.Nbctl(w.Context(), args...)
		if err != nil {
			w.Fatal(err)
		}
		for line := range strings.Lines(found) {
			if !strings.Contains(line, "node=") && strings.TrimSpace(line) != "" {
				rows.WriteString(line)
			}
		}
	}
	return rows.String()
}

func TestEgressOfBothFamilies(t *testing.T) {
	w := newWorld(t, fixture.Options{IPv6: true})
	policy := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "to-nobody"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "friend"}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		},
	}
	e := engine.New(w.fixture, engine.Options{Shape: engine.Release116()})
	w.apply(e, w.cluster(all(), policy))
	for from, want := range map[string]fixture.Outcome{"friend": fixture.Silent, "stranger": fixture.Open} {
		for _, ip := range w.pods["server"].IPs() {
			if got, err := w.pods[from].DialAddr(netip.AddrPortFrom(ip, 80), time.Second/2); err != nil || got != want {
				t.Errorf("%s to %s is %q, %v, want %q", from, ip, got, err, want)
			}
		}
	}
	policy.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: selecting("app=server")}}}}
	w.apply(e, w.cluster(all(), policy))
	for _, ip := range w.pods["server"].IPs() {
		if got, err := w.pods["friend"].DialAddr(netip.AddrPortFrom(ip, 80), time.Second/2); err != nil || got != fixture.Open {
			t.Errorf("friend to %s is %q, %v, once it is allowed", ip, got, err)
		}
	}
}

func TestAnExceptionIsEverybodysUntilBlocksAreInline(t *testing.T) {
	w := newWorld(t, fixture.Options{})
	policy := fromFriend()
	rule := &policy.Spec.Ingress[0]
	rule.From = append(rule.From, block("10.16.0.0/16", w.pods["friend"].IP().String()+"/32"))
	for name, tc := range map[string]struct {
		shape engine.Shape
		want  fixture.Outcome
	}{
		"1.15": {engine.Release115(), fixture.Silent},
		"1.16": {engine.Release116(), fixture.Open},
	} {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.T = t
			w.apply(engine.New(w.fixture, engine.Options{Shape: tc.shape}), w.cluster(all(), policy))
			w.want("friend", tc.want, fixture.Silent)
			w.want("stranger", fixture.Open, fixture.Silent)
		})
	}
}

func TestAPodIsOpenUntilItIsInThePortGroup(t *testing.T) {
	w := newWorld(t, fixture.Options{})
	e := engine.New(w.fixture, engine.Options{Shape: engine.Release116()})
	// The policy is there, and the port with its flows, and they do not know of
	// each other.
	w.add("other", "db", "n2")
	w.labels["other"] = w.labels["server"]
	if err := w.fixture.WaitInstalled(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.apply(e, w.cluster([]string{"other", "friend", "stranger"}, fromFriend()))
	w.want("stranger", fixture.Open, fixture.Refused)
	w.apply(e, w.cluster([]string{"other", "server", "friend", "stranger"}, fromFriend()))
	w.want("stranger", fixture.Silent, fixture.Silent)
}

func TestAPolicyOfNobodyDeniesNothing(t *testing.T) {
	w := newWorld(t, fixture.Options{})
	e := engine.New(w.fixture, engine.Options{Shape: engine.Release116()})
	c := w.cluster(all(), fromFriend())
	c.Nodes = nil
	c.Pods[0].Annotations = nil
	w.apply(e, c)
	if rows := w.policyRows(); strings.Contains(rows, "outport") || strings.Contains(rows, "allow") {
		t.Errorf("a policy that selects no Pod with a port has\n%s", rows)
	}
	w.want("stranger", fixture.Open, fixture.Refused)
}

func TestAPeerIsRefusedUntilItIsInTheAddressSet(t *testing.T) {
	w := newWorld(t, fixture.Options{})
	e := engine.New(w.fixture, engine.Options{Shape: engine.Release116()})
	w.apply(e, w.cluster([]string{"server", "stranger"}, fromFriend()))
	w.want("friend", fixture.Silent, fixture.Silent)
	w.apply(e, w.cluster(all(), fromFriend()))
	w.want("friend", fixture.Open, fixture.Silent)
}

func TestAFrozenEngineLeavesAPolicyHalfWritten(t *testing.T) {
	w := newWorld(t, fixture.Options{})
	reached := make(chan engine.Step)
	var e *engine.Engine
	e = engine.New(w.fixture, engine.Options{Shape: engine.Release116(), Lag: func(s engine.Step) time.Duration {
		if s.Part == engine.PartPorts || s.Part == engine.PartIngressACLs {
			e.Freeze()
			reached <- s
		}
		return 0
	}})
	done := make(chan error, 1)
	go func() { done <- e.Sync(t.Context(), w.cluster(all(), fromFriend())) }()
	for _, part := range []engine.Part{engine.PartPorts, engine.PartIngressACLs} {
		if s := <-reached; s.Part != part || s.Policy.String() != "db/from-friend" || s.Object != "from.friend.db" {
			t.Errorf("frozen before %+v, want %s", s, part)
		}
		w.settle()
		w.want("stranger", fixture.Open, fixture.Refused)
		e.Thaw()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.want("stranger", fixture.Silent, fixture.Silent)
}

func TestAFrozenEngineCanBeGivenUp(t *testing.T) {
	e := engine.New(nil, engine.Options{})
	e.Freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	err := e.Sync(ctx, engine.Cluster{Policies: []*networkingv1.NetworkPolicy{fromFriend()}})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "port group of db/from-friend") {
		t.Errorf("error is %v", err)
	}
}

func TestNodesAreAllowedWhileThereArePolicies(t *testing.T) {
	w := newWorld(t, fixture.Options{})
	e := engine.New(w.fixture, engine.Options{Shape: engine.Release116()})
	w.apply(e, w.cluster(all(), fromFriend()))
	found, err := w.fixture.Nbctl(t.Context(), "--bare", "--columns=match", "find", "acl", "external_ids:parent=node.n1", "priority=3000")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ip4.src == 172.30.0.1 && ip4.dst == $node.n1_ip4", "ip4.dst == 172.30.0.1 && ip4.src == $node.n1_ip4"} {
		if !strings.Contains(found, want) {
			t.Errorf("matches of the node's ACLs are %q, want %q", found, want)
		}
	}
	w.apply(e, w.cluster(all()))
	if found, err := w.fixture.Nbctl(t.Context(), "--bare", "--columns=match", "list", "acl"); err != nil || found != "" {
		t.Errorf("without policies there are ACLs %q, %v", found, err)
	}
}

func TestRulesThatWentLeaveNoAddressSets(t *testing.T) {
	w := newWorld(t, fixture.Options{})
	e := engine.New(w.fixture, engine.Options{Shape: engine.Release116()})
	policy := fromFriend()
	policy.Spec.Ingress = append(policy.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{{PodSelector: selecting("app=server")}}})
	w.apply(e, w.cluster(all(), policy))
	if rows := w.policyRows(); !strings.Contains(rows, "allow.IPv4.1") {
		t.Errorf("no sets of the second rule in\n%s", rows)
	}
	policy.Spec.Ingress = policy.Spec.Ingress[:1]
	w.apply(e, w.cluster(all(), policy))
	if rows := w.policyRows(); strings.Contains(rows, "IPv4.1") || !strings.Contains(rows, "allow.IPv4.0") {
		t.Errorf("without the second rule there are\n%s", rows)
	}
	policy.Spec.PolicyTypes, policy.Spec.Ingress = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}, nil
	w.apply(e, w.cluster(all(), policy))
	if rows := w.policyRows(); strings.Contains(rows, "ingress") || !strings.Contains(rows, "egress.allow.IPv4.all") {
		t.Errorf("when it is about egress there are\n%s", rows)
	}
}

func TestEachPassWritesNewACLsThatSayTheSame(t *testing.T) {
	w := newWorld(t, fixture.Options{})
	e := engine.New(w.fixture, engine.Options{Shape: engine.Release116()})
	const policy = "from.friend.db"
	list := func(columns, parent string) string {
		found, err := w.fixture.Nbctl(t.Context(), "--bare", "--columns="+columns, "find", "acl", "external_ids:parent="+parent)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(found)
		slices.Sort(lines)
		return strings.Join(lines, " ")
	}
	w.apply(e, w.cluster(all(), fromFriend()))
	rows, matches, node := list("_uuid", policy), list("match", policy), list("_uuid", "node.n2")
	w.apply(e, w.cluster(all(), fromFriend()))
	if again := list("_uuid", policy); again == rows || len(again) != len(rows) {
		t.Errorf("ACLs were %q and are %q", rows, again)
	}
	if again := list("match", policy); again != matches {
		t.Errorf("matches were %q and are %q", matches, again)
	}
	if again := list("_uuid", "node.n2"); again != node || len(strings.Fields(again)) != 2 {
		t.Errorf("ACLs of the node were %q and are %q, want the same two", node, again)
	}
	w.want("friend", fixture.Open, fixture.Silent)
}

func TestADeletedDropFlowOpensWhatThePolicyDenies(t *testing.T) {
	w := newWorld(t, fixture.Options{})
	e := engine.New(w.fixture, engine.Options{Shape: engine.Release116()})
	w.apply(e, w.cluster(all(), fromFriend()))
	n := w.fixture.Node("n1")
	if _, err := n.DeleteDropFlows(t.Context(), "from.nobody"); err == nil {
		t.Error("flows of a port group that does not exist were deleted")
	}
	deleted, err := n.DeleteDropFlows(t.Context(), "from.friend.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d flows deleted", deleted)
	// ovn-controller does not notice.
	w.settle()
	w.want("stranger", fixture.Open, fixture.Refused)
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
	"github.com/policygate/policygate/api/flow"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/gate"
)

func noon() time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) }

func flowTo(dst string) flow.Flow {
	return flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr("10.0.1.5"), Dst: netip.MustParseAddr(dst), Port: 3306}
}

// heldClient is what the ledger says of shop/client, which waits for n1 and
// for n2, of which no agent is connected; n3 and n4 are not awaited.
func heldClient() gate.Account {
	lack := gate.Lack{Flow: flowTo("10.0.2.7"), Want: flow.Allowed, Why: "shop/allow ingress[0]", Reason: "denied"}
	return gate.Account{
		UID: "u", Namespace: "shop", Name: "client", Node: "n1",
		IPs:    []netip.Addr{netip.MustParseAddr("10.0.1.5"), netip.MustParseAddr("fd00:1::5")},
		Reason: "Waiting", Message: "waiting for n1, n2",
		Addressed: noon().Add(-time.Second), Deadline: noon().Add(time.Minute), Listed: true, Computed: true, NotAsked: 3,
		Notes: []expect.Note{{Kind: expect.EngineLimit, Text: "too many"}},
		Nodes: []gate.NodeAccount{
			{Name: "n0", Connected: true, Answered: true, Confirmed: true, Expectations: 4},
			{Name: "n1", Own: true, Connected: true, Answered: true, Expectations: 5, Required: 2, Lacks: []gate.Lack{lack, {Reason: "rules changed\n"}}},
			{Name: "n2", Expectations: 5, Lacks: []gate.Lack{lack}},
			{Name: "n3", Optional: true, Connected: true, Answered: true, Expectations: 1, Advisory: 1, Lacks: []gate.Lack{
				{Flow: flowTo("203.0.113.1"), Want: flow.Denied, Advisory: true, Why: "db/x isolation", Reason: "allowed"},
			}},
			{Name: "n4", Connected: true, Unsupported: true},
		},
	}
}

// ledger knows three Pods of shop: client is held, mysql is open, and pending
// has no address.
type ledger struct{}

func (ledger) Account(_ context.Context, pod types.NamespacedName) (gate.Account, bool, error) {
	switch pod.String() {
	case "shop/client":
		return heldClient(), true, nil
	case "shop/mysql":
		return gate.Account{Namespace: "shop", Name: "mysql", Node: "n2", Open: true, Reason: "Confirmed", IPs: []netip.Addr{netip.MustParseAddr("10.0.2.7")}}, true, nil
	case "shop/pending":
		return gate.Account{Namespace: "shop", Name: "pending", Node: "n1"}, true, nil
	case "shop/slow":
		return gate.Account{}, false, context.DeadlineExceeded
	}
	return gate.Account{}, false, nil
}

// explained asks the server why a Pod is held.
func explained(t *testing.T, s *served, name string) explainv1.Explanation {
	t.Helper()
	status, body := s.post(t, explainv1.ExplainPath, "Bearer explainer", `{"namespace":"shop","pod":"`+name+`"}`)
	var e explainv1.Explanation
	if err := json.Unmarshal([]byte(body), &e); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	return e
}

func TestAHeldPodIsExplained(t *testing.T) {
	s := serve(t)
	got := explained(t, s, "client")
	toMySQL := &explainv1.Flow{
		Protocol: "tcp", Source: "10.0.1.5", Destination: "10.0.2.7", Port: 3306, SourcePod: "shop/client", DestinationPod: "shop/mysql",
	}
	want := explainv1.Explanation{
		Namespace: "shop", Pod: "client", State: explainv1.Held, Time: noon(), UID: "u", Node: "n1",
		Addresses: []string{"10.0.1.5", "fd00:1::5"}, Reason: "Waiting", Message: "waiting for n1, n2",
		Addressed: noon().Add(-time.Second), Deadline: noon().Add(time.Minute), Listed: true, Computed: true, NotAsked: 3,
		Notes: []string{"EngineLimit: too many"},
		Nodes: []explainv1.Node{
			{
				Name: "n1", Own: true, Holds: true, Connected: true, Answered: true, Expectations: 5, Required: 2,
				Lacks: []explainv1.Lack{
					{
						Flow: toMySQL, Want: tracev1.Allowed, Why: "shop/allow ingress[0]", Reason: "denied",
						Now: &explainv1.Ruling{Verdict: tracev1.Allowed, Reason: "tcp 10.0.1.5 -> 10.0.2.7:3306"},
					},
					{Reason: "rules changed?"},
				},
			},
			{Name: "n2", Holds: true, Expectations: 5, Lacks: []explainv1.Lack{
				{Flow: toMySQL, Want: tracev1.Allowed, Why: "shop/allow ingress[0]", Reason: "denied"},
			}},
			{Name: "n0", Connected: true, Answered: true, Confirmed: true, Expectations: 4},
			{Name: "n3", Optional: true, Connected: true, Answered: true, Expectations: 1, Advisory: 1, Lacks: []explainv1.Lack{{
				Flow: &explainv1.Flow{Protocol: "tcp", Source: "10.0.1.5", Destination: "203.0.113.1", Port: 3306, SourcePod: "shop/client"},
				Want: tracev1.Denied, Advisory: true, Why: "db/x isolation", Reason: "allowed",
				Now: &explainv1.Ruling{Verdict: tracev1.Inconclusive, Error: "no agent of this node is connected"},
			}}},
			{Name: "n4", Connected: true, Unsupported: true},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("explanation (-want +got):\n%s", diff)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if log := s.log.String(); !strings.Contains(log, `"user"="explainer"`) {
		t.Errorf("the log is to name the user:\n%s", log)
	}
}

func TestPodsThatAreNotHeldAreExplained(t *testing.T) {
	s := serve(t)
	for name, want := range map[string]explainv1.State{
		"mysql": explainv1.Open, "pending": explainv1.NoAddress, "nobody": explainv1.NotFound,
		"ended": explainv1.Ended, "proxy": explainv1.NotGated,
	} {
		if got := explained(t, s, name); got.State != want || (got.Why != "") != (want == explainv1.NotGated) || len(got.Nodes) > 0 {
			t.Errorf("%s: %+v, want %s", name, got, want)
		}
		time.Sleep(time.Second / othersPerSecond) // refill what this took of the rate
	}
}

func TestUnaccountedPods(t *testing.T) {
	gated := func(p *corev1.Pod) {
		p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: v1alpha1.ConditionProgrammed}}
	}
	for name, tc := range map[string]struct {
		pod  *corev1.Pod
		want explainv1.State
	}{
		"one that the ledger has not got yet": {pod("x", "n1", gated, "10.0.1.9"), explainv1.NotSeen},
		"one without a gate":                  {pod("x", "n1", nil), explainv1.NotGated},
		"one that is being deleted": {pod("x", "n1", func(p *corev1.Pod) {
			gated(p)
			p.DeletionTimestamp = &metav1.Time{Time: noon()}
		}), explainv1.Ended},
		"none": {nil, explainv1.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			h := &handler{Options: Options{
				Cluster: onlyPod{tc.pod}, Inventory: inventory{}, Clock: clocktesting.NewFakePassiveClock(noon()),
				ConditionType: v1alpha1.ConditionProgrammed,
			}}
			got, err := h.unaccounted(t.Context(), explainv1.Question{Namespace: "shop", Pod: "x"})
			if err != nil || got.State != tc.want || !got.Time.Equal(noon()) {
				t.Errorf("%+v, %v; want %s", got, err, tc.want)
			}
		})
	}
}

// onlyPod is a cluster of one Pod, or none.
type onlyPod struct{ pod *corev1.Pod }

func (c onlyPod) Pod(context.Context, string, string) (*corev1.Pod, error)    { return c.pod, nil }
func (onlyPod) PodsAt(context.Context, netip.Addr) ([]corev1.Pod, error)      { return nil, nil }
func (onlyPod) NodesAt(context.Context, netip.Addr) (nodes []string, _ error) { return nil, nil }

func TestALedgerThatDoesNotAnswerIsNotTheQuestionsFault(t *testing.T) {
	h := &handler{Options: Options{Accounts: ledger{}}}
	_, err := h.explanation(t.Context(), explainv1.Question{Namespace: "shop", Pod: "slow"})
	if why := (*unresolvableError)(nil); err == nil || errors.As(err, &why) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestWhyNotGated(t *testing.T) {
	labelled := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{v1alpha1.KeyInject: "enabled"}}}
	annotated := func(value string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Annotations = map[string]string{v1alpha1.KeyInject: value} }
	}
	for name, tc := range map[string]struct {
		change    func(*corev1.Pod)
		namespace *corev1.Namespace
		want      string
	}{
		"on the host's network":       {func(p *corev1.Pod) { p.Spec.HostNetwork = true }, labelled, "on the host's network"},
		"of the cluster's own":        {func(p *corev1.Pod) { p.Namespace = "kube-system" }, labelled, "namespace kube-system are never gated"},
		"opted out":                   {annotated("false"), labelled, `annotation policygate.io/inject is "false"`},
		"nothing asks":                {nil, &corev1.Namespace{}, "Neither has namespace shop the label policygate.io/inject=enabled"},
		"a namespace that is unknown": {nil, nil, "Neither has namespace shop"},
		"the Pod asked":               {annotated("true"), nil, "asks for one. It was created while the webhook was not reached"},
		"the namespace asks":          {nil, labelled, "created before that, or while"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := whyNotGated(pod("p", "n", tc.change), tc.namespace); !strings.Contains(got, tc.want) {
				t.Errorf("%q, want %q in it", got, tc.want)
			}
		})
	}
}

func TestWhichNodesHold(t *testing.T) {
	for name, tc := range map[string]struct {
		node gate.NodeAccount
		want bool
	}{
		"one that has confirmed":         {gate.NodeAccount{Own: true, Confirmed: true}, false},
		"one that has not":               {gate.NodeAccount{}, true},
		"one beyond the limit":           {gate.NodeAccount{Optional: true}, false},
		"one that cannot be seen":        {gate.NodeAccount{Unsupported: true}, false},
		"one in quarantine":              {gate.NodeAccount{Stalled: true}, false},
		"the own one, whatever it is":    {gate.NodeAccount{Own: true, Unsupported: true, Stalled: true}, true},
		"one whose agent is not there":   {gate.NodeAccount{Connected: false}, true},
		"the own one, though it is gone": {gate.NodeAccount{Own: true}, true},
	} {
		if got := holds(tc.node); got != tc.want {
			t.Errorf("%s: %t, want %t", name, got, tc.want)
		}
	}
}

func TestWhichLacksAreAskedAgain(t *testing.T) {
	// n returns a node that lacks as many flows.
	n := func(name string, flows int, change func(*gate.NodeAccount)) gate.NodeAccount {
		out := gate.NodeAccount{Name: name, Connected: true, Answered: true}
		for range flows {
			out.Lacks = append(out.Lacks, gate.Lack{Flow: flowTo("10.0.2.7"), Want: flow.Allowed})
		}
		if change != nil {
			change(&out)
		}
		return out
	}
	optional := func(n *gate.NodeAccount) { n.Optional = true }
	var many []gate.NodeAccount
	for i := range 14 {
		many = append(many, n("n"+strconv.Itoa(10+i), 3, nil))
	}
	for name, tc := range map[string]struct {
		nodes []gate.NodeAccount
		want  string // node:lack
	}{
		"nothing is lacking":            {nil, ""},
		"at most three of a node":       {[]gate.NodeAccount{n("a", 5, nil)}, "a:0 a:1 a:2"},
		"the first of each first":       {[]gate.NodeAccount{n("a", 2, nil), n("b", 2, nil)}, "a:0 b:0 a:1 b:1"},
		"the own node before others":    {[]gate.NodeAccount{n("a", 1, nil), n("b", 1, func(n *gate.NodeAccount) { n.Own = true })}, "b:0 a:0"},
		"holders before others":         {[]gate.NodeAccount{n("a", 3, optional), n("b", 2, nil)}, "b:0 b:1 a:0 a:1 a:2"},
		"no node without an agent":      {[]gate.NodeAccount{n("a", 1, func(n *gate.NodeAccount) { n.Connected = false })}, ""},
		"none that cannot see":          {[]gate.NodeAccount{n("a", 1, func(n *gate.NodeAccount) { n.Unsupported = true })}, ""},
		"none that has confirmed":       {[]gate.NodeAccount{n("a", 1, func(n *gate.NodeAccount) { n.Confirmed = true })}, ""},
		"what is no flow is passed":     {[]gate.NodeAccount{n("a", 2, func(n *gate.NodeAccount) { n.Lacks[0].Flow = flow.Flow{} })}, "a:1"},
		"twelve in all, one of each":    {many, "n10:0 n11:0 n12:0 n13:0 n14:0 n15:0 n16:0 n17:0 n18:0 n19:0 n20:0 n21:0"},
		"twelve in all, of few in turn": {many[:5], "n10:0 n11:0 n12:0 n13:0 n14:0 n10:1 n11:1 n12:1 n13:1 n14:1 n10:2 n11:2"},
	} {
		t.Run(name, func(t *testing.T) {
			nodes := holdersFirst(tc.nodes)
			var got []string
			for _, at := range picks(nodes) {
				got = append(got, nodes[at.node].Name+":"+strconv.Itoa(at.lack))
			}
			if text := strings.Join(got, " "); text != tc.want {
				t.Errorf("%q, want %q", text, tc.want)
			}
		})
	}
}

func TestExplainQuestionsThatAreNotAnswered(t *testing.T) {
	s := serve(t)
	for name, tc := range map[string]struct {
		body   string
		status int
		reason string
	}{
		"no JSON":                    {"x", 400, "read the question"},
		"a field that is not known":  {`{"node":"n1"}`, 400, "node"},
		"fields that are not usable": {`{"namespace":"shop","pod":"a/b"}`, 400, `pod "a/b": want the name of a Pod`},
		"more than a question":       {`{"pod":"` + strings.Repeat("x", 5000) + `"}`, 413, "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := s.post(t, explainv1.ExplainPath, "Bearer explainer", tc.body)
			var got tracev1.Failure
			if err := json.Unmarshal([]byte(body), &got); err != nil || status != tc.status || !strings.Contains(got.Error, tc.reason) {
				t.Errorf("%d %s (%v), want %d and %q", status, body, err, tc.status, tc.reason)
			}
		})
	}
}

// FuzzExplainQuestion: whatever is sent becomes a question of two names, or an
// error that is the asker's fault.
func FuzzExplainQuestion(f *testing.F) {
	f.Add([]byte(`{"namespace":"shop","pod":"client"}`))
	f.Add([]byte(`{"namespace":"shop"}`))
	f.Add([]byte(`{"namespace":"..","pod":"\u0000"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/explain", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		q, err := explainQuestion(nil, r)
		if err != nil {
			if fault := (*malformedError)(nil); !errors.As(err, &fault) {
				t.Errorf("%s: error %v is not the asker's", body, err)
			}
			return
		}
		if name := q.Namespace + "/" + q.Pod; slices.Contains(strings.Split(name, "/"), "") || strings.Count(name, "/") != 1 || strings.ContainsAny(name, "\x00%?#") {
			t.Errorf("%s becomes the question of %q", body, name)
		}
	})
}

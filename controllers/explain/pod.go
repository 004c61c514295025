// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/gate"
)

const (
	// maxPerNode and maxTraces bound the traces of an explanation. Expectations
	// of one node mostly fail for one reason; an agent works on 4 at a time.
	maxPerNode = 3
	maxTraces  = 12
)

// Accounts says what is known of gated Pods.
type Accounts interface {
	// Account returns what is known of a Pod; false if it is not gated, or not
	// known. The error is that of ctx.
	Account(ctx context.Context, pod types.NamespacedName) (gate.Account, bool, error)
}

// Inventory is what is known of nodes and namespaces.
type Inventory interface {
	// Nodes returns all nodes, in any order.
	Nodes(ctx context.Context) ([]corev1.Node, error)
	// Namespace returns the namespace, or nil if there is none of that name.
	Namespace(ctx context.Context, name string) (*corev1.Namespace, error)
}

// explain answers why a Pod is held.
func (h *handler) explain(w http.ResponseWriter, r *http.Request, user string) (any, error) {
	q, err := explainQuestion(w, r)
	if err != nil {
		return nil, err
	}
	e, err := h.explanation(r.Context(), q)
	if err != nil {
		return nil, err
	}
	h.Log.Info("explained", "user", user, "namespace", q.Namespace, "pod", q.Pod, "state", e.State)
	return e, nil
}

// explainQuestion reads the request's question.
func explainQuestion(w http.ResponseWriter, r *http.Request) (explainv1.Question, error) {
	var q explainv1.Question
	if err := decode(w, r, explainv1.MaxQuestion, &q); err != nil {
		return q, err
	}
	return q, valid(q.Validate())
}

func (h *handler) explanation(ctx context.Context, q explainv1.Question) (*explainv1.Explanation, error) {
	account, ok, err := h.Accounts.Account(ctx, types.NamespacedName{Namespace: q.Namespace, Name: q.Pod})
	if err != nil {
		return nil, fmt.Errorf("ask the ledger of Pod %s/%s: %w", q.Namespace, q.Pod, err)
	}
	if !ok {
		return h.unaccounted(ctx, q)
	}
	e := explainAccount(account, h.Clock.Now())
	if err := h.name(ctx, &e); err != nil {
		return nil, err
	}
	h.askAgain(ctx, account, &e)
	return &e, nil
}

// unaccounted explains a Pod of which the ledger knows nothing.
func (h *handler) unaccounted(ctx context.Context, q explainv1.Question) (*explainv1.Explanation, error) {
	pod, err := h.Cluster.Pod(ctx, q.Namespace, q.Pod)
	if err != nil {
		return nil, fmt.Errorf("look up Pod %s/%s: %w", q.Namespace, q.Pod, err)
	}
	namespace, err := h.Inventory.Namespace(ctx, q.Namespace)
	if err != nil {
		return nil, fmt.Errorf("look up namespace %s: %w", q.Namespace, err)
	}
	e := explainv1.Explanation{Namespace: q.Namespace, Pod: q.Pod, State: explainv1.NotFound, Time: h.Clock.Now()}
	if pod == nil {
		return &e, nil
	}
	e.UID, e.Node = string(pod.UID), pod.Spec.NodeName
	for _, ip := range pod.Status.PodIPs {
		e.Addresses = append(e.Addresses, ip.IP)
	}
	switch {
	case finished(pod) || pod.DeletionTimestamp != nil:
		e.State = explainv1.Ended
	case !gate.Gated(pod, h.ConditionType):
		e.State, e.Why = explainv1.NotGated, whyNotGated(pod, namespace)
	default:
		e.State = explainv1.NotSeen
	}
	return &e, nil
}

// whyNotGated says what kept a gate from a Pod. The namespace may be nil.
func whyNotGated(pod *corev1.Pod, namespace *corev1.Namespace) string {
	const again = "a gate is given at creation, so create it anew"
	wanted := pod.Annotations[v1alpha1.KeyInject]
	enabled := namespace != nil && namespace.Labels[v1alpha1.KeyInject] == v1alpha1.InjectNamespace
	switch {
	case pod.Spec.HostNetwork:
		return "It is on the host's network: its address is the node's, and no policy concerns it."
	case pod.Namespace == metav1.NamespaceSystem:
		return "Pods of namespace " + metav1.NamespaceSystem + " are never gated."
	case wanted == v1alpha1.ValueFalse:
		return fmt.Sprintf("Its annotation %s is %q.", v1alpha1.KeyInject, wanted)
	case wanted == "" && !enabled:
		return fmt.Sprintf("Neither has namespace %s the label %s=%s, nor the Pod the annotation %s=%q.",
			pod.Namespace, v1alpha1.KeyInject, v1alpha1.InjectNamespace, v1alpha1.KeyInject, v1alpha1.ValueTrue)
	case wanted != "":
		return fmt.Sprintf("Its annotation %s asks for one. It was created while the webhook was not reached: %s.", v1alpha1.KeyInject, again)
	}
	return fmt.Sprintf("Its namespace has the label %s=%s. The Pod was created before that, or while the webhook was not reached: %s.",
		v1alpha1.KeyInject, v1alpha1.InjectNamespace, again)
}

// explainAccount returns what an account says, without names for addresses.
func explainAccount(a gate.Account, now time.Time) explainv1.Explanation {
	e := explainv1.Explanation{
		Namespace: a.Namespace, Pod: a.Name, State: explainv1.Held, Time: now,
		UID: string(a.UID), Node: a.Node, Reason: a.Reason, Message: a.Message,
		Addressed: a.Addressed, Deadline: a.Deadline,
		Listed: a.Listed, Computed: a.Computed, NotAsked: a.NotAsked,
	}
	for _, ip := range a.IPs {
		e.Addresses = append(e.Addresses, ip.String())
	}
	for _, n := range a.Notes {
		e.Notes = append(e.Notes, string(n.Kind)+": "+n.Text)
	}
	switch {
	case a.Open:
		e.State = explainv1.Open
		return e
	case len(a.IPs) == 0:
		e.State = explainv1.NoAddress
		return e
	}
	for _, n := range holdersFirst(a.Nodes) {
		e.Nodes = append(e.Nodes, explainNode(n))
	}
	return e
}

// holds reports whether the Pod waits for the node. Its own is always awaited.
func holds(n gate.NodeAccount) bool {
	return !n.Confirmed && (n.Own || !n.Optional && !n.Unsupported && !n.Stalled)
}

// holdersFirst returns the nodes in the order in which a person wants to read
// of them: those that hold the Pod, its own one first, then the others.
func holdersFirst(nodes []gate.NodeAccount) []gate.NodeAccount {
	last := func(b bool) int {
		if b {
			return 0
		}
		return 1
	}
	return slices.SortedFunc(slices.Values(nodes), func(a, b gate.NodeAccount) int {
		return cmp.Or(
			cmp.Compare(last(holds(a)), last(holds(b))),
			cmp.Compare(last(a.Own), last(b.Own)),
			cmp.Compare(a.Name, b.Name),
		)
	})
}

func explainNode(n gate.NodeAccount) explainv1.Node {
	out := explainv1.Node{
		Name: n.Name, Own: n.Own, Holds: holds(n), Optional: n.Optional,
		Connected: n.Connected, Unsupported: n.Unsupported, Stalled: n.Stalled,
		Answered: n.Answered, Confirmed: n.Confirmed, Unenforced: n.Unenforced,
		Expectations: n.Expectations, Required: n.Required, Advisory: n.Advisory, Excused: n.Excused,
	}
	for _, l := range n.Lacks {
		lack := explainv1.Lack{Advisory: l.Advisory, Why: tracev1.Clean(l.Why), Reason: tracev1.Clean(l.Reason)}
		if l.Flow.Validate() == nil {
			lack.Want = tracev1.VerdictOf(l.Want)
			lack.Flow = &explainv1.Flow{
				Protocol: l.Flow.Protocol.String(), Port: l.Flow.Port,
				Source: l.Flow.Src.String(), Destination: l.Flow.Dst.String(),
			}
		}
		out.Lacks = append(out.Lacks, lack)
	}
	return out
}

// name says whose the addresses of all flows are, as far as that is clear.
func (h *handler) name(ctx context.Context, e *explainv1.Explanation) error {
	known := map[string]string{}
	for _, addr := range e.Addresses {
		known[addr] = e.Namespace + "/" + e.Pod
	}
	lookUp := func(text string) (string, error) {
		if name, ok := known[text]; ok {
			return name, nil
		}
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return "", fmt.Errorf("address %q: %w", text, err)
		}
		pods, err := h.Cluster.PodsAt(ctx, addr)
		if err != nil {
			return "", fmt.Errorf("look up Pods at %s: %w", addr, err)
		}
		pods = withOwnAddress(pods)
		known[text] = ""
		if len(pods) == 1 {
			known[text] = pods[0].Namespace + "/" + pods[0].Name
		}
		return known[text], nil
	}
	for i := range e.Nodes {
		for _, l := range e.Nodes[i].Lacks {
			if l.Flow == nil {
				continue
			}
			var err error
			if l.Flow.SourcePod, err = lookUp(l.Flow.Source); err != nil {
				return err
			}
			if l.Flow.DestinationPod, err = lookUp(l.Flow.Destination); err != nil {
				return err
			}
		}
	}
	return nil
}

// lackAt is a lack by the indexes of its node and within it.
type lackAt struct{ node, lack int }

// picks returns which lacks to ask again of nodes in the order of
// holdersFirst: of the nodes that hold the Pod the first of each, then the
// second of each, and of the others what room that leaves. A node that cannot
// answer is not asked, nor is what is no flow.
func picks(nodes []gate.NodeAccount) []lackAt {
	var out []lackAt
	for _, holding := range []bool{true, false} {
		for round := range maxPerNode {
			for i, n := range nodes {
				if holds(n) != holding || n.Confirmed || !n.Connected || n.Unsupported {
					continue
				}
				if round < len(n.Lacks) && n.Lacks[round].Flow.Validate() == nil && len(out) < maxTraces {
					out = append(out, lackAt{i, round})
				}
			}
		}
	}
	return out
}

// askAgain asks nodes of some of their lacks, all at once, so that the answer
// has the rules.
func (h *handler) askAgain(ctx context.Context, account gate.Account, e *explainv1.Explanation) {
	if e.State != explainv1.Held {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	nodes := holdersFirst(account.Nodes)
	var asking sync.WaitGroup
	for _, at := range picks(nodes) {
		n := nodes[at.node]
		asking.Go(func() {
			answer := h.ask(ctx, n.Name, n.Lacks[at.lack].Flow)
			e.Nodes[at.node].Lacks[at.lack].Now = explainv1.NewRuling(answer)
		})
	}
	asking.Wait()
}

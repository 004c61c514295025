// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package scan_test

import (
	"flag"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/controllers/expect"
)

var (
	seeds = flag.Uint64("seeds", 100, "random histories to go through")
	first = flag.Uint64("first", 0, "seed of the first")
)

const events = 200

// watched is a subject and what was computed of it last.
type watched struct {
	subject expect.Subject
	result  expect.Result
}

// TestTheIndexAnswersAsTheScanDoesAndFootprintsHold: after every event, what
// the index computes is what going through all objects gives; and the result of
// before stands if the footprint of the event does not meet its own.
func TestTheIndexAnswersAsTheScanDoesAndFootprintsHold(t *testing.T) {
	var stood, met, compared, empty int
	for seed := *first; seed < *first+*seeds; seed++ {
		h := newHistory(seed)
		options := expect.DefaultOptions()
		options.Budget = one(h, 256, 256, 40, 12, 5)
		options.MaxForeignNodes = one(h, 32, 2, 1, 0)
		last := map[types.UID]*watched{}
		for range events {
			what, change := h.step()
			if reflect.DeepEqual(change, expect.Footprint{}) {
				empty++
			}
			for uid, w := range last {
				if p := h.world.Pods[uid]; uid != "ghost" && (p == nil || !p.Peer()) {
					delete(last, uid)
				} else if p != nil {
					w.subject.Pod = p
				}
			}
			sampled := h.Uint64()
			for i, uid := range h.subjects() {
				w, known := last[uid]
				if !known {
					w = &watched{subject: h.subject(uid)}
					last[uid] = w
				}
				fresh := h.cluster.Expect(w.subject, options)
				switch {
				case !known:
				case meets(change, w.result.Footprint):
					met++
				default:
					stood++
					if !sameButNotAsked(w.result, fresh) {
						t.Fatalf("seed %d: after %s with %s, the result of %s has changed and the footprint says that it does not:\n%s",
							seed, what, show(change), uid, difference(w.result, fresh))
					}
				}
				w.result = fresh
				if sampled>>(i%64)&7 == 0 {
					compared++
					if slow := expect.Expect(h.world, w.subject, options); difference(slow, fresh) != "" {
						t.Fatalf("seed %d: after %s, the result of %s is not that of the scan (-scan +index):\n%s",
							seed, what, uid, difference(slow, fresh))
					}
				}
			}
		}
	}
	t.Logf("%d results stood, %d were met, %d compared, %d events without footprint", stood, met, compared, empty)
	if stood < met/10 || compared < 1000 || empty == 0 {
		t.Fatalf("%d stood, %d were met, %d compared, %d events changed nothing: too few to show anything", stood, met, compared, empty)
	}
}

// subjects are all peers, and one Pod that is not in the cluster.
func (h *history) subjects() []types.UID {
	var out []types.UID
	for uid, p := range h.world.Pods {
		if p.Peer() {
			out = append(out, uid)
		}
	}
	if h.seq > 3 {
		out = append(out, "ghost")
	}
	slices.Sort(out)
	return out
}

func (h *history) subject(uid types.UID) expect.Subject {
	ghost := func(app string) *expect.Pod {
		return &expect.Pod{
			UID: "ghost", Namespace: one(h, spaces...), Name: "ghost", Node: "n1", Seq: 2,
			Labels: map[string]string{"app": app}, IPs: []netip.Addr{netip.MustParseAddr("10.0.1.77")},
		}
	}
	s := expect.Subject{Pod: h.world.Pods[uid], LocalOnly: h.IntN(8) == 0, Witnesses: h.IntN(2) == 0}
	if uid == "ghost" {
		s.Pod = ghost("x")
	}
	if h.IntN(3) == 0 {
		previous := ghost(one(h, "x", "y"))
		previous.UID = "previous"
		s.Predecessors = map[netip.Addr][]*expect.Pod{s.Pod.IPs[0]: {previous}}
	}
	return s
}

// watchedPolicy is a policy as a subject and what was computed of it last.
type watchedPolicy struct {
	horizon, rotation uint64
	former            map[string][]expect.Granted
	result            expect.PolicyResult
}

// TestPoliciesAsSubjectsAnswerAsTheScanDoesAndFootprintsHold is the same for
// policies, each at a horizon of its own that moves now and then.
func TestPoliciesAsSubjectsAnswerAsTheScanDoesAndFootprintsHold(t *testing.T) {
	var stood, met, compared, asked, before int
	for seed := *first; seed < *first+*seeds; seed++ {
		h := newHistory(seed)
		options := expect.DefaultOptions()
		options.PolicyBudget = one(h, 16, 16, 64, 5, 1)
		last := map[types.NamespacedName]*watchedPolicy{}
		for range events {
			what, change := h.step()
			for name := range last {
				if h.world.Policies[name] == nil {
					delete(last, name)
				}
			}
			for _, q := range h.world.Sorted() {
				name := types.NamespacedName{Namespace: q.Namespace, Name: q.Name}
				w, known := last[name]
				if !known {
					w = &watchedPolicy{horizon: h.seq}
					last[name] = w
				}
				s := expect.PolicySubject{Policy: q, Horizon: w.horizon, Rotation: w.rotation, Former: w.former}
				fresh := h.cluster.ExpectPolicy(s, options)
				switch {
				case !known:
				case meets(change, w.result.Footprint):
					met++
				default:
					stood++
					if diff := policyDifference(w.result, fresh, "Next"); diff != "" {
						t.Fatalf("seed %d: after %s with %s, the result of %s has changed and the footprint says that it does not:\n%s",
							seed, what, show(change), name, diff)
					}
				}
				if h.IntN(4) == 0 {
					compared++
					if diff := policyDifference(expect.ForPolicy(h.world, s, options), fresh); diff != "" {
						t.Fatalf("seed %d: after %s, the result of %s is not that of the scan (-scan +index):\n%s", seed, what, name, diff)
					}
				}
				for node, list := range fresh.Nodes {
					asked += len(list)
					for _, e := range list {
						if strings.HasSuffix(e.Why, "granted it before") {
							before++
						}
					}
					if len(list) > options.PolicyBudget {
						t.Fatalf("seed %d: %s asks %d flows of %s, want at most %d", seed, name, len(list), node, options.PolicyBudget)
					}
				}
				if h.IntN(8) == 0 {
					w.horizon, w.rotation = h.seq, h.Uint64N(3)
					w.former = w.result.Granted()
					s.Horizon, s.Rotation, s.Former = w.horizon, w.rotation, w.former
					fresh = h.cluster.ExpectPolicy(s, options)
				}
				w.result = fresh
			}
		}
	}
	t.Logf("%d results stood, %d were met, %d compared, %d flows asked, %d of them granted before", stood, met, compared, asked, before)
	if stood < met/10 || compared < 1000 || asked < 1000 || before < 100 {
		t.Fatalf("%d stood, %d were met, %d compared, %d flows asked, %d of them granted before: too few to show anything",
			stood, met, compared, asked, before)
	}
}

func policyDifference(a, b expect.PolicyResult, besides ...string) string {
	return cmp.Diff(a, b, cmpopts.IgnoreFields(expect.PolicyResult{}, append(besides, "Footprint")...), cmpopts.EquateComparable(netip.Addr{}))
}

func meets(a, b expect.Footprint) bool {
	return a.Everything || b.Everything || a.Ranges && b.Ranges ||
		common(a.Sets, b.Sets) || common(a.Pods, b.Pods) || common(a.Addresses, b.Addresses) ||
		common(a.Nodes, b.Nodes) || common(a.Ports, b.Ports) || common(a.Policies, b.Policies)
}

func common[T comparable](a, b []T) bool {
	return slices.ContainsFunc(a, func(v T) bool { return slices.Contains(b, v) })
}

func sameButNotAsked(a, b expect.Result) bool {
	a.NotAsked, b.NotAsked = 0, 0
	a.Footprint, b.Footprint = expect.Footprint{}, expect.Footprint{}
	return reflect.DeepEqual(a, b)
}

func difference(a, b expect.Result) string {
	return cmp.Diff(a, b, cmpopts.IgnoreFields(expect.Result{}, "Footprint"), cmpopts.EquateComparable(netip.Addr{}))
}

func show(f expect.Footprint) string {
	return cmp.Diff(expect.Footprint{}, f, cmpopts.IgnoreUnexported(expect.LabelSet{}), cmpopts.EquateComparable(netip.Addr{}))
}

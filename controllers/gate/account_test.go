// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/gate/deviation"
	"github.com/policygate/policygate/controllers/hub"
)

var jobName = types.NamespacedName{Namespace: "shop", Name: "job"} //nolint:gochecknoglobals // a constant

// account asks for the account of the Pod while the ledger steps.
func (b *bench) account(name types.NamespacedName) (Account, bool) {
	b.t.Helper()
	type result struct {
		account Account
		known   bool
		err     error
	}
	done := make(chan result, 1)
	go func() {
		a, known, err := b.ledger.Account(b.t.Context(), name)
		done <- result{a, known, err}
	}()
	for {
		select {
		case r := <-done:
			if r.err != nil {
				b.t.Fatal(r.err)
			}
			return r.account, r.known
		case <-b.ledger.inbox.Posted():
			b.settled()
		}
	}
}

func TestTheAccountOfAPod(t *testing.T) {
	ip := netip.MustParseAddr("10.0.0.1")
	theirs := types.NamespacedName{Namespace: "payroll", Name: "secret-plan"}
	flowTo := func(src string) flow.Flow {
		return flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr("10.9.9.9"), Port: 80}
	}
	stranger := allow(shopAllow, "10.7.7.7", 80)
	stranger.Want, stranger.Why = flow.Denied, "shop/allow isolates"
	begin := func(b *bench) {
		b.ledger.PodChanged(b.pod(nil))
		b.step()
		b.demandFor("p", "shop", "10.0.0.1", 5, map[string][]expect.Expectation{
			"n1": {allow(shopAllow, "10.0.0.1", 80)},
			"n7": {allow(theirs, "10.0.0.1", 80), stranger, advisory(allow(shopAllow, "10.0.0.1", 80))},
		})
		b.coverage.assignments["p"].NotAsked = 4
		b.ledger.PodChanged(b.pod(nil, "10.0.0.1"))
		b.settled()
	}
	base := Account{
		UID: "p", Namespace: "shop", Name: "job", Node: "n1", IPs: []netip.Addr{ip},
		Addressed: time.Unix(1000, 0), Deadline: time.Unix(1000, 0).Add(v1alpha1.DefaultTimeout),
	}
	asked := base
	asked.Computed, asked.NotAsked = true, 4
	asked.Nodes = []NodeAccount{
		{Name: "n1", Own: true, Connected: true, Expectations: 1},
		{Name: "n7", Connected: true, Expectations: 3},
	}
	with := func(a Account, change func(*Account)) Account {
		nodes := a.Nodes
		a.Nodes = append([]NodeAccount(nil), nodes...)
		change(&a)
		return a
	}
	cases := map[string]struct {
		happen func(b *bench)
		want   Account
	}{
		"before it has an address": {
			func(b *bench) { b.ledger.PodChanged(b.pod(nil)) },
			Account{UID: "p", Namespace: "shop", Name: "job", Node: "n1"},
		},
		"that nothing is known to confirm of": {
			func(b *bench) {
				b.ledger.PodChanged(b.pod(nil, "10.0.0.1"))
				b.settled()
				b.coverage.assignments["p"] = &Assignment{
					Subject: &hubv1.Subject{Uid: "p", Ips: []string{"10.0.0.1"}},
					Notes:   []expect.Note{{Kind: expect.PolicyNotUnderstood, Text: "payroll/odd"}},
				}
				b.coverage.affected = []types.UID{"p"}
			},
			with(base, func(a *Account) { a.Notes = []expect.Note{{Kind: expect.PolicyNotUnderstood, Text: "payroll/odd"}} }),
		},
		"that was asked about": {begin, asked},
		"behind the barrier": {
			func(b *bench) { begin(b); b.barrier.pass("p") },
			with(asked, func(a *Account) { a.Listed = true }),
		},
		"with what nodes answered": {
			func(b *bench) {
				begin(b)
				b.answer("p", "n1", func(r *hubv1.Report) { r.Confirmed, r.Ipv6Unenforced = true, true })
				b.answer("p", "n7", func(r *hubv1.Report) {
					r.UnmetRequired, r.UnmetAdvisory = 2, 1
					r.Unmet = []*hubv1.Unmet{
						{Expectation: 0, Reason: "denied (no rule)"},
						{Expectation: 1, Reason: "inconclusive (NoRoute)"},
						{Expectation: 2, Reason: "denied (no set)"},
					}
				})
			},
			with(asked, func(a *Account) {
				a.Nodes[0].Answered, a.Nodes[0].Confirmed, a.Nodes[0].Unenforced = true, true, "v6"
				a.Nodes[1].Answered, a.Nodes[1].Required, a.Nodes[1].Advisory = true, 2, 1
				a.Nodes[1].Lacks = []Lack{
					{flowTo("10.0.0.1"), flow.Allowed, false, "payroll/secret-plan ingress[0]", "denied (no rule)"},
					{flowTo("10.7.7.7"), flow.Denied, false, "shop/allow isolates", "inconclusive (NoRoute)"},
					{flowTo("10.0.0.1"), flow.Allowed, true, "shop/allow ingress[0]", "denied (no set)"},
				}
			}),
		},
		"of which a node can judge nothing": {
			func(b *bench) {
				begin(b)
				b.answer("p", "n7", func(r *hubv1.Report) {
					r.UnmetRequired, r.Unmet = 3, []*hubv1.Unmet{{Reason: "the dataplane could not be read: busy"}}
				})
			},
			with(asked, func(a *Account) {
				a.Nodes[1].Answered, a.Nodes[1].Required = true, 3
				a.Nodes[1].Lacks = []Lack{{Reason: "the dataplane could not be read: busy"}}
			}),
		},
		"whose nodes are as they are": {
			func(b *bench) {
				b.ledger.deviations.Learn("n7", deviation.Rule{Policy: shopAllow, Generation: 1, Why: "shop/allow ingress[0]"}, "shop", deviation.Entire)
				begin(b)
				b.coverage.assignments["p"].Span = []string{"n1"}
				b.demandFor("p", "shop", "10.0.0.1", 6, map[string][]expect.Expectation{
					"n1": {allow(shopAllow, "10.0.0.1", 80)}, "n7": {allow(shopAllow, "10.0.0.1", 80)},
				})
				b.coverage.assignments["p"].Span = []string{"n1"}
				b.ledger.Disconnected("n1")
				b.ledger.Changed("n7", hub.State{Unsupported: "XDP"})
				b.settled()
				b.ledger.nodes["n7"].stalled = true
			},
			with(base, func(a *Account) {
				a.Computed = true
				a.Nodes = []NodeAccount{
					{Name: "n1", Own: true, Expectations: 1},
					{Name: "n7", Optional: true, Connected: true, Unsupported: true, Stalled: true, Expectations: 1,
						Excused: []string{"shop/allow ingress[0]"}},
				}
			}),
		},
		"whose hold has begun, and which says why it waits": {
			func(b *bench) {
				begin(b)
				b.ledger.PodChanged(b.pod(func(p *corev1.Pod) {
					p.Status.Conditions = []corev1.PodCondition{{
						Type: v1alpha1.ConditionProgrammed, Status: corev1.ConditionFalse, Reason: "Waiting", Message: "for n7",
					}}
					p.Status.InitContainerStatuses = []corev1.ContainerStatus{{
						Name: v1alpha1.HoldContainerName,
						State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{
							StartedAt: metav1.NewTime(time.Unix(995, 0)),
						}},
					}}
				}, "10.0.0.1"))
			},
			with(asked, func(a *Account) {
				a.Deadline = time.Unix(995, 0).Add(v1alpha1.DefaultTimeout)
				a.Reason, a.Message = "Waiting", "for n7"
			}),
		},
		"whose gate is open": {
			func(b *bench) {
				begin(b)
				b.ledger.PodChanged(b.pod(opened("10.0.0.1", "boot-1"), "10.0.0.1"))
			},
			Account{UID: "p", Namespace: "shop", Name: "job", Node: "n1", IPs: []netip.Addr{ip}, Open: true, Reason: v1alpha1.ReasonConfirmed},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			tc.happen(b)
			b.settled()
			got, known := b.account(jobName)
			if diff := cmp.Diff(tc.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); !known || diff != "" {
				t.Errorf("account, known %v (-want +got):\n%s", known, diff)
			}
		})
	}
}

func TestThereIsNoAccountOfAPodThatIsNotThere(t *testing.T) {
	b := newBench(t)
	b.waiting()
	if _, known := b.account(types.NamespacedName{Namespace: "shop", Name: "other"}); known {
		t.Error("there is an account of a Pod that nobody has seen")
	}
	b.ledger.PodChanged(b.pod(func(p *corev1.Pod) { p.UID = "another" }, "10.0.0.9"))
	b.ledger.PodDeleted("p")
	if a, known := b.account(jobName); !known || a.UID != "another" {
		t.Errorf("the account is of %q, want that of the Pod that took the name", a.UID)
	}
	b.ledger.PodDeleted("another")
	if _, known := b.account(jobName); known || len(b.ledger.names) > 0 {
		t.Error("there is an account of a Pod that is gone")
	}
}

func TestNobodyWaitsForAnAccountForEver(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := b.ledger.Account(ctx, jobName); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the context's", err)
	}
}

func TestAccountsAreGivenWhileTheLedgerRuns(t *testing.T) {
	b := newBench(t)
	b.waiting()
	start(t, b.ledger.Start)
	answers := make(chan error, 8)
	for range cap(answers) {
		go func() {
			_, known, err := b.ledger.Account(t.Context(), jobName)
			if !known {
				err = errors.Join(err, errors.New("not known"))
			}
			answers <- err
		}()
	}
	for range cap(answers) {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/policygate/policygate/agent/confirm"
	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// part is a dataplane that answers with its name.
type part struct {
	name     string
	failure  error
	hidden   string
	rewrites uint64
	looks    int
	asked    []string
}

func (p *part) Look(context.Context) (confirm.Look, error) {
	p.looks++
	return partLook{p}, p.failure
}

func (p *part) Audit(context.Context) string { return p.hidden }

func (p *part) Survey(context.Context) (*hubv1.State, error) {
	return &hubv1.State{
		Dataplanes: []string{p.name}, Remarks: []*hubv1.Remark{{Kind: p.name}},
	}, p.failure
}

type partLook struct{ *part }

func (p partLook) Together(_ context.Context, questions []confirm.Question) ([]confirm.Answer, error) {
	answers := make([]confirm.Answer, len(questions))
	for i, q := range questions {
		p.asked = append(p.asked, q.Flow.String())
		answers[i] = confirm.Answer{Verdict: flow.Verdict{Answer: flow.Allowed, Reason: p.name}}
	}
	return answers, nil
}

func (p partLook) Rewrites() uint64 { return p.rewrites }

// ports are OVN's Pods of the node.
type ports []string

func (p ports) Local(address netip.Addr) bool { return slices.Contains(p, address.String()) }

func question(src, dst string) confirm.Question {
	return confirm.Question{Flow: flow.Flow{
		Protocol: flow.TCP, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Port: 80,
	}}
}

func TestAFlowOfAPodOnALogicalPortIsForOVNAlone(t *testing.T) {
	ovn, netfilter := &part{name: "ovn"}, &part{name: "netfilter"}
	joined := Join(ovn, ports{"10.16.0.5"}, netfilter)
	look, err := joined.Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	answers, err := look.Together(t.Context(), []confirm.Question{
		question("10.16.0.9", "10.16.0.5"), question("10.0.0.1", "10.0.0.2"), question("10.16.0.5", "192.0.2.1"),
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range answers {
		got = append(got, a.Verdict.Reason)
	}
	if diff := cmp.Diff([]string{"ovn", "netfilter", "ovn"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNetfilterIsNotLookedAtForFlowsOfOVN(t *testing.T) {
	ovn, netfilter := &part{name: "ovn", rewrites: 3}, &part{name: "netfilter", rewrites: 5, failure: errors.New("no capability")}
	joined := Join(ovn, ports{"10.16.0.5"}, netfilter)
	look, err := joined.Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := look.Together(t.Context(), []confirm.Question{question("10.16.0.9", "10.16.0.5")}); err != nil {
		t.Errorf("a flow of OVN's: %v", err)
	}
	if netfilter.looks != 0 {
		t.Errorf("netfilter was looked at %d times", netfilter.looks)
	}
	_, err = look.Together(t.Context(), []confirm.Question{question("10.16.0.9", "10.16.0.5"), question("10.0.0.1", "10.0.0.2")})
	if err == nil || !strings.Contains(err.Error(), "no capability") {
		t.Errorf("error %v, want netfilter's", err)
	}
}

func TestRewritesNeverFall(t *testing.T) {
	ovn, netfilter := &part{name: "ovn", rewrites: 3}, &part{name: "netfilter", rewrites: 5}
	joined := Join(ovn, ports{"10.16.0.5"}, netfilter)
	for i, want := range []uint64{3, 8, 8} {
		look, err := joined.Look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		src := "10.16.0.5"
		if i == 1 {
			src = "10.0.0.1"
		}
		if _, err := look.Together(t.Context(), []confirm.Question{question(src, "10.0.0.2")}); err != nil {
			t.Fatal(err)
		}
		if got := look.Rewrites(); got != want {
			t.Errorf("look %d: %d rewrites, want %d", i, got, want)
		}
	}
}

func TestALookNeedsOVN(t *testing.T) {
	joined := Join(&part{failure: errors.New("vswitchd is away")}, ports{}, &part{})
	if _, err := joined.Look(t.Context()); err == nil || !strings.Contains(err.Error(), "vswitchd is away") {
		t.Errorf("error %v, want OVN's", err)
	}
}

func TestWhateverIsHiddenIsSaid(t *testing.T) {
	for name, tc := range map[string]struct {
		ovn, netfilter, want string
	}{
		"neither":   {},
		"ovn":       {ovn: "two bridges", want: "two bridges"},
		"netfilter": {netfilter: "a program", want: "a program"},
	} {
		t.Run(name, func(t *testing.T) {
			joined := Join(&part{hidden: tc.ovn}, ports{}, &part{hidden: tc.netfilter})
			if got := joined.Audit(t.Context()); got != tc.want {
				t.Errorf("audit %q, want %q", got, tc.want)
			}
		})
	}
}

func TestTheSurveyNamesBoth(t *testing.T) {
	state, err := Join(&part{name: "ovn"}, ports{}, &part{name: "netfilter"}).Survey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := &hubv1.State{
		Dataplanes: []string{"ovn", "netfilter"}, Remarks: []*hubv1.Remark{{Kind: "ovn"}, {Kind: "netfilter"}},
	}
	if diff := cmp.Diff(want, state, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// telling tells once and watches until ctx ends.
type telling string

func (n telling) Watch(ctx context.Context, noticed func(string)) {
	noticed(string(n))
	<-ctx.Done()
}

func TestAllNoticesAreTaken(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan string, 2)
	done := make(chan struct{})
	go func() {
		Notices{telling("revalidator"), telling("nftables")}.Watch(ctx, func(source string) { told <- source })
		close(done)
	}()
	got := []string{<-told, <-told}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"nftables", "revalidator"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	cancel()
	<-done
}

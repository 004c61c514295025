// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// told answers each trace with one hop of this verdict, whose reason is what
// was asked.
type told struct {
	verdict tracev1.Verdict
	err     error
}

func (t told) Trace(_ context.Context, f flow.Flow) ([]tracev1.Hop, error) {
	return []tracev1.Hop{{Way: "forwarded", Routed: true, Verdict: t.verdict, Reason: f.String()}}, t.err
}

func TestTraceCommand(t *testing.T) {
	for name, tc := range map[string]struct {
		args   []string
		traces told
		status int
		// out and problem are parts of what is printed.
		out, problem string
	}{
		"allowed":        {args: []string{"10.0.0.1", "10.0.0.2:3306"}, traces: told{verdict: tracev1.Allowed}, status: 0, out: "this node would let it pass: tcp 10.0.0.1 -> 10.0.0.2:3306"},
		"denied":         {args: []string{"10.0.0.1", "10.0.0.2:3306"}, traces: told{verdict: tracev1.Denied}, status: 2, out: "Denied: refused by this node."},
		"inconclusive":   {args: []string{"10.0.0.1", "10.0.0.2:3306"}, traces: told{verdict: tracev1.Inconclusive}, status: 3, out: "Inconclusive: it cannot be told for this node."},
		"IPv6 and UDP":   {args: []string{"fd00::1", "[fd00::2]:53", "--protocol", "udp"}, traces: told{verdict: tracev1.Allowed}, out: "udp fd00::1 -> [fd00::2]:53"},
		"JSON":           {args: []string{"10.0.0.1", "10.0.0.2:3306", "-o", "json"}, traces: told{verdict: tracev1.Denied}, status: 2, out: `"verdict": "Denied"`},
		"help":           {args: []string{"--help"}, problem: "agent trace SRC DST:PORT"},
		"no answer":      {args: []string{"10.0.0.1", "10.0.0.2:3306"}, traces: told{err: errors.New("no rules")}, status: 1, problem: "error: no rules"},
		"no arguments":   {status: 1, problem: "error: 0 arguments: want SRC and DST:PORT"},
		"no port":        {args: []string{"10.0.0.1", "10.0.0.2"}, status: 1, problem: `destination "10.0.0.2" has no port`},
		"a Pod's name":   {args: []string{"10.0.0.1", "shop/mysql:3306"}, status: 1, problem: `destination "shop/mysql": want an IPv4 or IPv6 address`},
		"a bad source":   {args: []string{"x", "10.0.0.2:3306"}, status: 1, problem: `source "x": want an IPv4 or IPv6 address`},
		"mixed families": {args: []string{"fd00::1", "10.0.0.2:3306"}, status: 1, problem: "want two addresses of one family"},
		"a bad protocol": {args: []string{"10.0.0.1", "10.0.0.2:1", "--protocol=icmp"}, status: 1, problem: `--protocol: protocol "icmp": want tcp, udp or sctp`},
		"a bad output":   {args: []string{"10.0.0.1", "10.0.0.2:1", "-o", "yaml"}, status: 1, problem: `--output "yaml": want text or json`},
		"a bad flag":     {args: []string{"--color"}, status: 1, problem: "unknown flag: --color"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if got := runTrace(t.Context(), tc.args, tc.traces, &stdout, &stderr); got != tc.status {
				t.Errorf("exit status %d, want %d", got, tc.status)
			}
			if !strings.Contains(stdout.String(), tc.out) || !strings.Contains(stderr.String(), tc.problem) {
				t.Errorf("stdout %q and stderr %q, want %q and %q in them", stdout.String(), stderr.String(), tc.out, tc.problem)
			}
			if tc.problem == "" && stderr.Len() > 0 {
				t.Errorf("stderr %q, want nothing", stderr.String())
			}
		})
	}
}

func TestTraceCommandPrintsTheAnswerAsJSON(t *testing.T) {
	var stdout, stderr bytes.Buffer
	runTrace(t.Context(), []string{"10.0.0.1", "10.0.0.2:3306", "-ojson"}, told{verdict: tracev1.Allowed}, &stdout, &stderr)
	var got tracev1.Answer
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v in %q", err, stdout.String())
	}
	reason := "tcp 10.0.0.1 -> 10.0.0.2:3306"
	hop := tracev1.Hop{Way: "forwarded", Routed: true, Verdict: tracev1.Allowed, Reason: reason}
	want := tracev1.Answer{Verdict: tracev1.Allowed, Flows: []tracev1.Flow{{
		Protocol: "tcp", Source: "10.0.0.1", Destination: "10.0.0.2", Port: 3306, Verdict: tracev1.Allowed,
		Nodes: []tracev1.Node{{Verdict: tracev1.Allowed, Reason: reason, Hops: []tracev1.Hop{hop}}},
	}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

func TestHopsOf(t *testing.T) {
	got := hopsOf([]kernel.Explanation{
		{
			Path:    trace.Path{Way: trace.Forwarded, In: "veth1", Out: "eth0"},
			Verdict: flow.Verdict{Answer: flow.Denied, Reason: "why"}, Routed: true,
			Steps:      []trace.Step{{Hook: ruleset.Forward, Base: "b", Chain: "c", Depth: 2, Rule: "r\x1b", Effect: "drops", Maybe: "m"}},
			NearMisses: []trace.NearMiss{{Hook: ruleset.Forward, Base: "b", Chain: "d", Rule: "q\x1b", Matched: true, Set: "s", Element: "10.0.0.1", Held: true, Effect: "drops", Otherwise: flow.Allowed}},
		},
		{Path: trace.Path{Way: trace.Delivered}},
		{Path: trace.Path{Way: trace.Sent}},
		{Verdict: flow.Verdict{Reason: "no route"}},
	})
	none := []tracev1.Step{}
	want := []tracev1.Hop{
		{
			Way: "forwarded", In: "veth1", Out: "eth0", Routed: true, Verdict: tracev1.Denied, Reason: "why",
			Steps:      []tracev1.Step{{Hook: "forward", Base: "b", Chain: "c", Depth: 2, Rule: "r?", Effect: "drops", Maybe: "m"}},
			NearMisses: []tracev1.NearMiss{{Hook: "forward", Base: "b", Chain: "d", Rule: "q?", Matched: true, Set: "s", Element: "10.0.0.1", Held: true, Effect: "drops", Verdict: tracev1.Allowed}},
		},
		{Way: "delivered", Verdict: tracev1.Inconclusive, Steps: none},
		{Way: "sent", Verdict: tracev1.Inconclusive, Steps: none},
		{Verdict: tracev1.Inconclusive, Reason: "no route", Steps: none},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("hops (-want +got):\n%s", diff)
	}
}

func TestAPermissionThatIsMissingIsNamed(t *testing.T) {
	err := readable(fmt.Errorf("read rules: %w", fs.ErrPermission))
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "root with CAP_NET_ADMIN") {
		t.Errorf("error %v", err)
	}
	if other := errors.New("busy"); !errors.Is(readable(other), other) || readable(other).Error() != "busy" {
		t.Errorf("error %v, want it as it was", readable(other))
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/agent/confirm"
	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// surveyor returns the survey of a rig's node, each time that it is called.
func (r *rig) surveyor(t *testing.T, o kernel.Options) func() kernel.Survey {
	t.Helper()
	var nf *kernel.Netfilter
	r.node.do(t, func() (err error) {
		nf, err = kernel.New(o)
		return err
	})
	t.Cleanup(func() {
		if err := nf.Close(); err != nil {
			t.Error(err)
		}
	})
	return func() (s kernel.Survey) {
		t.Helper()
		r.node.do(t, func() (err error) {
			s, err = nf.Survey(t.Context())
			return err
		})
		return s
	}
}

func TestASurveyNamesWhatHoldsRulesForForwardedPackets(t *testing.T) {
	r := newRig(t, capturePods[:2], captureRemote[:2])
	survey := r.surveyor(t, kernel.Options{})
	const drops = "*filter\n:FORWARD ACCEPT\n-A FORWARD -p tcp --dport 80 -j DROP\nCOMMIT\n"
	const asks = "*filter\n:FORWARD ACCEPT\n:POD -\n-A FORWARD -j POD\n-A POD -m set --match-set peers src -j DROP\nCOMMIT\n"
	const accepts = "*filter\n:INPUT DROP\n:FORWARD ACCEPT\n-A FORWARD -j ACCEPT\nCOMMIT\n"
	const native = "table ip kube { chain forward { type filter hook forward priority 0; ip saddr 10.9.9.9 drop; }; }\n"
	type step struct {
		input string
		tool  []string
	}
	legacy := func(rules string) step { return step{rules, []string{"iptables-legacy-restore", "-w"}} }
	compat := func(rules string) step { return step{rules, []string{"iptables-nft-restore", "-w"}} }
	nft := func(rules string) step { return step{rules, []string{"nft", "-f", "-"}} }
	r.node.run(t, "create peers hash:ip\n", "ipset", "restore")
	for _, tc := range []struct {
		name  string
		steps []step
		want  []string
	}{
		{name: "nothing"},
		{name: "tables that let everything be forwarded", steps: []step{legacy(accepts), compat(accepts)}},
		{name: "iptables-legacy", steps: []step{legacy(drops)}, want: []string{kernel.LegacyTables}},
		{name: "iptables-nft", steps: []step{compat(drops)}, want: []string{kernel.CompatTables}},
		{name: "nft", steps: []step{nft(native)}, want: []string{kernel.NativeTables}},
		{name: "ip6tables alone", steps: []step{{drops, []string{"ip6tables-nft-restore", "-w"}}}, want: []string{kernel.CompatTables}},
		{name: "iptables-legacy with a set", steps: []step{legacy(asks)}, want: []string{kernel.LegacyTables, kernel.Sets}},
		{name: "iptables-nft with a set", steps: []step{compat(asks)}, want: []string{kernel.CompatTables, kernel.Sets}},
		{
			name: "both variants, and a table of their own beside", steps: []step{legacy(drops), compat(asks), nft(native)},
			want: []string{kernel.LegacyTables, kernel.CompatTables, kernel.NativeTables, kernel.Sets},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, s := range tc.steps {
				r.node.run(t, s.input, s.tool[0], s.tool[1:]...)
			}
			got := survey()
			if diff := cmp.Diff(kernel.Survey{Dataplanes: append([]string{}, tc.want...)}, got); diff != "" {
				t.Errorf("survey (-want +got):\n%s", diff)
			}
			r.node.run(t, "flush ruleset\n", "nft", "-f", "-")
			r.node.run(t, "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\nCOMMIT\n", "iptables-legacy-restore", "-w")
		})
	}
}

func TestASurveyMakesNoTable(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	r.surveyor(t, kernel.Options{})()
	r.node.do(t, func() error {
		for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
			names, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil && !os.IsNotExist(err) {
				return err
			}
			if len(names) > 0 {
				t.Errorf("%s has %q now", file, names)
			}
		}
		return nil
	})
}

func TestASurveyNamesBridgesThatAskNoRule(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	r.node.run(t, "link add unused type bridge\n", "ip", "-batch", "-")
	survey := r.surveyor(t, kernel.Options{})
	for value, want := range map[string][]string{"1": nil, "0": {"kube-bridge"}} {
		r.bridgeCalls(t, value)
		if diff := cmp.Diff(want, survey().Unfiltered); diff != "" {
			t.Errorf("with bridge-nf-call-iptables %s (-want +got):\n%s", value, diff)
		}
	}
	r.bridgeCalls(t, "0")
	r.node.run(t, "", "ip", "link", "set", "kube-bridge", "type", "bridge", "nf_call_iptables", "1")
	if got := survey().Unfiltered; len(got) > 0 {
		t.Errorf("%v is unfiltered although its own switch is on", got)
	}
}

func TestASurveyFindsVirtualServers(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	proc := t.TempDir()
	survey := r.surveyor(t, kernel.Options{ProcNet: proc})
	const heading = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
	for _, tc := range []struct {
		servers string
		want    bool
	}{{heading, false}, {heading + "TCP  0A600001:0050 rr\n", true}} {
		if err := os.WriteFile(filepath.Join(proc, "ip_vs"), []byte(tc.servers), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := survey().VirtualServers; got != tc.want {
			t.Errorf("virtual servers %v by %q, want %v", got, tc.servers, tc.want)
		}
	}
}

func TestAMasqueradeBetweenPodsIsRemarked(t *testing.T) {
	r := newRig(t, capturePods[:2], captureRemote[:4])
	r.node.run(t, "*nat\n:POSTROUTING ACCEPT\n-A POSTROUTING -s 10.244.1.0/24 -j MASQUERADE\nCOMMIT\n", "iptables-nft-restore", "-w")
	reports := make(told, 100)
	c := r.confirmer(t, confirm.Options{Reports: reports})
	err := c.Assign(confirm.Source{Replica: "a", Session: 1}, &hubv1.Assign{
		Subject: &hubv1.Subject{Uid: "p"}, Generation: 1, Policy: true,
	}, asking(t, fromPod, flow.Allowed))
	if err != nil {
		t.Fatal(err)
	}
	reports.expect(t, false)
	var state *hubv1.State
	r.node.do(t, func() error {
		state = c.State(t.Context())
		return nil
	})
	remarks := state.GetRemarks()
	if len(remarks) != 1 || remarks[0].GetKind() != hubv1.RemarkSourceRewritten || !strings.Contains(remarks[0].GetText(), "MASQUERADE") {
		t.Errorf("remarks %v, want one on the MASQUERADE", remarks)
	}
}

// surveyRounds is how many rounds of an engine surveys are beside.
const surveyRounds = 100

func TestTheEngineNeverFailsBesideSurveys(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	e := &engine{node: r.node}
	e.prepare(t)
	end, ended := make(chan struct{}), make(chan struct{})
	surveys, unsettled := 0, 0
	go func() {
		defer close(ended)
		r.node.do(t, func() error {
			nf, err := kernel.New(kernel.Options{})
			if err != nil {
				return err
			}
			defer func() { _ = nf.Close() }()
			for {
				select {
				case <-end:
					return nil
				default:
				}
				surveys++
				if _, err := nf.Survey(t.Context()); err != nil {
					unsettled++
				}
			}
		})
	}()
	r.node.do(t, func() error {
		for range surveyRounds {
			e.round()
		}
		return nil
	})
	close(end)
	<-ended
	t.Logf("%d rounds: %d failed; beside them %d surveys, %d without an answer", e.rounds, e.failed, surveys, unsettled)
	if e.failed > 0 {
		t.Errorf("%d of %d rounds failed, the last with %s", e.failed, e.rounds, e.last)
	}
	if surveys-unsettled < surveyRounds {
		t.Errorf("only %d surveys have an answer: they were not beside the rounds", surveys-unsettled)
	}
}

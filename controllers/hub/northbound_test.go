// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

func TestTheNorthboundDatabaseAnswersForItselfAlone(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	f.Assign("n1", assign("of-n1", 1), Description{})
	f.Assign(hubv1.Northbound, assign("of-northbound", 2), Description{})
	node := f.connect(t, "token-of-n1")
	ofNode := node.expect("describe", "assign of-n1", "synced")[0]
	// It runs on n1 and claims what it is.
	database := f.connect(t, claimingFor(northboundUser, "", "northbound-on-n1"))
	ofDatabase := database.expect("describe", "assign of-northbound", "synced")[0]

	for _, generation := range []uint64{ofNode, ofDatabase} {
		database.report(&hubv1.Report{Uid: "of-n1", Generation: generation, Confirmed: true})
		node.report(&hubv1.Report{Uid: "of-northbound", Generation: generation, Confirmed: true})
	}
	node.report(&hubv1.Report{Uid: "of-n1", Generation: ofNode})
	f.sink.await(t,
		`n1 connected boot=b unsupported=""`,
		hubv1.Northbound+` connected boot=b unsupported=""`,
		"n1 reported of-n1 generation=1 confirmed=false")
	database.report(&hubv1.Report{Uid: "of-northbound", Generation: ofDatabase, Confirmed: true})
	f.sink.await(t,
		`n1 connected boot=b unsupported=""`,
		hubv1.Northbound+` connected boot=b unsupported=""`,
		"n1 reported of-n1 generation=1 confirmed=false",
		hubv1.Northbound+" reported of-northbound generation=2 confirmed=true")
}

func TestANewerReplicaOfTheNorthboundAgentReplacesTheOlder(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	f.Assign(hubv1.Northbound, assign("a", 1), Description{})
	older := f.connect(t, claimingFor(northboundUser, "", "northbound-on-n1"))
	before := older.expect("describe", "assign a", "synced")[0]
	newer := f.connect(t, claimingFor(northboundUser, "", "northbound-on-n2"))
	after := newer.expect("describe", "assign a", "synced")[0]
	if got := older.end(); got.Code() != codes.Aborted {
		t.Errorf("the older ended with %v, want Aborted", got)
	}
	newer.report(&hubv1.Report{Uid: "a", Generation: before, Confirmed: true})
	newer.report(&hubv1.Report{Uid: "a", Generation: after, Confirmed: true})
	connected := hubv1.Northbound + ` connected boot=b unsupported=""`
	f.sink.await(t, connected, hubv1.Northbound+" disconnected", connected,
		hubv1.Northbound+" reported a generation=1 confirmed=true")
}

func TestWhoIsNotTheNorthboundAgent(t *testing.T) {
	both := Accounts{Agent: agentUser, Northbound: northboundUser}
	cases := map[string]struct {
		accounts Accounts
		token    string
		want     string
	}{
		"without Kube-OVN nobody is": {
			Accounts{Agent: agentUser}, claimingFor(northboundUser, "", "northbound-on-n1"), "the token is not of",
		},
		"nor who claims to be an agent and is it": {
			Accounts{Agent: agentUser}, claiming("", "northbound-on-n1"), "the token is of",
		},
		"an agent on a node of that name is not": {
			both, claiming("", "token-of-"+hubv1.Northbound), "no node's name",
		},
		"another account is not": {
			both, claimingFor("system:serviceaccount:db:default", "", "northbound-on-n1"), "the token is not of",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			f := serveAccounts(t, clock.RealClock{}, reviews{}, &sink{}, tc.accounts)
			if got := f.connect(t, tc.token).end(); got.Code() != codes.Unauthenticated || !strings.Contains(got.Message(), tc.want) {
				t.Errorf("ended with %v, want Unauthenticated and %q", got, tc.want)
			}
		})
	}
	t.Run("an agent that claims to be it is its own node", func(t *testing.T) {
		s := &sink{}
		f := serveAccounts(t, clock.RealClock{}, reviews{}, s, both)
		f.connect(t, claimingFor(northboundUser, "", "token-of-n1")).expect("synced")
		s.await(t, `n1 connected boot=b unsupported=""`)
	})
}

func TestWhoNamesWhatNodesMustAcknowledge(t *testing.T) {
	policy, pod := &assignment{message: &hubv1.Assign{Policy: true}}, &assignment{message: &hubv1.Assign{}}
	for name, tc := range map[string]struct {
		node     string
		report   *hubv1.Report
		answered *assignment
		want     string
	}{
		"the database of a policy that it confirms": {hubv1.Northbound, &hubv1.Report{Confirmed: true, NorthboundConfig: 42}, policy, ""},
		"it need not":          {hubv1.Northbound, &hubv1.Report{Confirmed: true}, policy, ""},
		"not of a Pod":         {hubv1.Northbound, &hubv1.Report{Confirmed: true, NorthboundConfig: 42}, pod, "want it of a policy only"},
		"not without":          {hubv1.Northbound, &hubv1.Report{NorthboundConfig: 42}, policy, "without confirmed"},
		"no node does":         {"n1", &hubv1.Report{Confirmed: true, NorthboundConfig: 42}, policy, "want 0 of a node"},
		"a node that does not": {"n1", &hubv1.Report{Confirmed: true}, policy, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := validateNorthbound(tc.node, tc.report, tc.answered)
			if tc.want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestWhatIsToBeAcknowledgedComesThrough(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	of := &hubv1.Assign{Subject: &hubv1.Subject{Uid: "p"}, Generation: 1, Policy: true}
	f.Assign(hubv1.Northbound, of, Description{})
	database := f.connect(t, claimingFor(northboundUser, "", "northbound-on-n1"))
	generation := database.expect("describe", "assign p", "synced")[0]
	const reported = hubv1.Northbound + " reported p generation=1 confirmed=true"
	for range 2 { // the sink has kept the first when it hears of the second
		database.report(&hubv1.Report{Uid: "p", Generation: generation, Confirmed: true, NorthboundConfig: 42})
	}
	f.sink.await(t, hubv1.Northbound+` connected boot=b unsupported=""`, reported, reported)
	if got := f.sink.newest().GetNorthboundConfig(); got != 42 {
		t.Errorf("northbound_config %d arrived, want 42", got)
	}
	wire := (&assignment{message: &hubv1.Assign{Policy: true, NorthboundConfig: 42}}).wire(1)
	if wire.GetNorthboundConfig() != 42 {
		t.Errorf("northbound_config %d is sent, want 42", wire.GetNorthboundConfig())
	}
}

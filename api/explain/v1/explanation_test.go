// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explainv1

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

var update = flag.Bool("update", false, "write the golden files anew")

// noon is when everything is asked.
func noon() time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) }

func pod(state State) *Explanation {
	e := &Explanation{
		Namespace: "shop", Pod: "backup", State: state, Time: noon(), UID: "u",
		Node: "n1", Addresses: []string{"10.0.1.5", "fd00:1::5"}, Listed: true, Computed: true,
	}
	if state == Held {
		e.Addressed, e.Deadline = noon().Add(-12*time.Second), noon().Add(48*time.Second)
		e.Reason, e.Message = "Waiting", "waiting for n2: a policy in another namespace"
	}
	return e
}

func toMySQL() *Flow {
	return &Flow{
		Protocol: "tcp", Source: "10.0.1.5", Destination: "10.0.2.7", Port: 3306,
		SourcePod: "shop/backup", DestinationPod: "db/mysql",
	}
}

func miss(verdict tracev1.Verdict) tracev1.NearMiss {
	return tracev1.NearMiss{
		Hook: "forward", Base: "nft ip filter/FORWARD", Chain: "KUBE-NWPLCY-AAAA",
		Rule: "-m set --match-set KUBE-SRC-BBBB src -m set --match-set KUBE-DST-CCCC dst -p tcp --dport 3306 -j ACCEPT",
		Set:  "KUBE-SRC-BBBB", Element: "10.0.1.5", Effect: "accepts", Verdict: verdict,
	}
}

// lacking is a node that refuses what has to be let in.
func lacking(now *Ruling) Node {
	return Node{
		Name: "n2", Holds: true, Connected: true, Answered: true, Expectations: 8, Required: 1,
		Lacks: []Lack{{
			Flow: toMySQL(), Want: tracev1.Allowed, Why: "db/allow-jobs ingress[0]",
			Reason: "denied (nft ip filter/FORWARD policy DROP)", Now: now,
		}},
	}
}

func refused(misses ...tracev1.NearMiss) *Ruling {
	return &Ruling{Verdict: tracev1.Denied, Reason: "nft ip filter/FORWARD, chain KUBE-POD-FW-DDDD: -j REJECT", NearMisses: misses}
}

func confirmed(name string, own bool) Node {
	return Node{Name: name, Own: own, Connected: true, Answered: true, Confirmed: true, Expectations: 12}
}

func with(e *Explanation, change func(*Explanation)) *Explanation {
	change(e)
	return e
}

func holding(nodes ...Node) *Explanation {
	return with(pod(Held), func(e *Explanation) { e.Nodes = nodes })
}

// explanations are what the golden files show.
func explanations() map[string]*Explanation {
	open := lacking(&Ruling{Verdict: tracev1.Allowed, Reason: "no rule refuses it"})
	open.Own, open.Name = true, "n1"
	open.Lacks[0].Want, open.Lacks[0].Why = tracev1.Denied, "shop/backup ingress isolation, stranger from another node"
	open.Lacks[0].Flow = &Flow{Protocol: "udp", Source: "fd00:3::1", Destination: "fd00:1::5", Port: 53, DestinationPod: "shop/backup"}
	held := miss(tracev1.Denied)
	held.Held, held.Effect = true, "rejects"
	// kube-router refuses by "! --match-set kube-router-local-pods dst".
	unlisted := miss(tracev1.Allowed)
	unlisted.Matched, unlisted.Effect = true, "rejects"
	notIsolated := open
	notIsolated.Lacks = []Lack{open.Lacks[0]}
	notIsolated.Lacks[0].Now = &Ruling{Verdict: tracev1.Allowed, Reason: "no rule refuses it", NearMisses: []tracev1.NearMiss{held}}
	many := lacking(refused(miss(tracev1.Allowed)))
	many.Required, many.Advisory = 7, 1
	many.Lacks = append(many.Lacks, Lack{Flow: toMySQL(), Want: tracev1.Allowed, Advisory: true, Why: "db/too-big ingress[0]", Reason: "denied"})
	many.Unenforced, many.Excused = "v6", []string{"db/named-port ingress[1]"}
	database := func(now *Ruling) Node {
		n := lacking(now)
		n.Name, n.Lacks[0].Reason = hubv1.Northbound, "denied (to-lport: dropped by ACL db/mysql)"
		return n
	}
	notWritten := database(&Ruling{Verdict: tracev1.Denied, Reason: "to-lport: dropped by ACL db/mysql, 10.0.1.5 is not in $allow.jobs.db.ingress.allow.IPv4.0"})
	return map[string]*Explanation{
		"northbound-lags":   holding(notWritten, lacking(refused()), confirmed("n1", true)),
		"northbound-there":  holding(database(&Ruling{Verdict: tracev1.Allowed, Reason: "to-lport: allowed by ACL"}), confirmed("n1", true)),
		"northbound-away":   holding(Node{Name: hubv1.Northbound, Holds: true}, confirmed("n1", true)),
		"northbound-silent": holding(Node{Name: hubv1.Northbound, Holds: true, Connected: true}, confirmed("n1", true)),
		"northbound-unread": holding(lacking(refused()), Node{Name: hubv1.Northbound, Connected: true, Unsupported: true}),
		"missing-entry":     holding(lacking(refused(miss(tracev1.Allowed))), confirmed("n1", true), confirmed("n3", false)),
		"unlisted":          holding(lacking(refused(unlisted, held)), confirmed("n1", true)),
		"closest-rules":     holding(lacking(refused(miss(tracev1.Denied))), confirmed("n1", true)),
		"no-rule":           holding(lacking(refused())),
		"there-by-now":      holding(lacking(&Ruling{Verdict: tracev1.Allowed, Reason: "-j ACCEPT"})),
		"not-understood":    holding(lacking(&Ruling{Verdict: tracev1.Inconclusive, Reason: "-m recent --rcheck -j DROP"})),
		"not-asked-again":   holding(lacking(nil)),
		"no-answer-again":   holding(lacking(&Ruling{Verdict: tracev1.Inconclusive, Error: "the agent has not answered: context deadline exceeded"})),
		"not-isolated":      holding(open),
		"not-isolated-by-a": holding(notIsolated),
		"many":              holding(many),
		"nothing-judged":    holding(Node{Name: "n2", Holds: true, Connected: true, Answered: true, Expectations: 3, Required: 1, Lacks: []Lack{{Reason: "rules changed under the look"}}}),
		"nodes-that-cannot": holding(
			Node{Name: "n1", Own: true, Holds: true, Connected: true, Unsupported: true},
			Node{Name: "n2", Holds: true}, Node{Name: "n3", Holds: true, Connected: true},
			Node{Name: "n4", Holds: true, Connected: true, Answered: true, Expectations: 2},
			Node{Name: "n5", Connected: true, Optional: true}, Node{Name: "n6", Connected: true, Unsupported: true},
			Node{Name: "n7", Connected: true, Stalled: true},
		),
		"about-to-open": holding(confirmed("n1", true)),
		"not-listed":    with(holding(confirmed("n1", true)), func(e *Explanation) { e.Listed = false }),
		"not-computed": with(pod(Held), func(e *Explanation) {
			e.Computed, e.Notes = false, []string{"PolicyNotUnderstood: db/broken: spec.podSelector: bad"}
		}),
		"timed-out": with(holding(lacking(refused())), func(e *Explanation) {
			e.Deadline, e.NotAsked = noon().Add(-200*time.Second), 40
		}),
		"open": with(pod(Open), func(e *Explanation) {
			e.Reason, e.Message = "Confirmed", "confirmed on 3/3 nodes in 412ms"
		}),
		"no-address": with(pod(NoAddress), func(e *Explanation) { e.Addresses = nil }),
		"not-gated":  with(pod(NotGated), func(e *Explanation) { e.Why = "It is on the host's network." }),
		"ended":      pod(Ended),
		"not-seen":   pod(NotSeen),
		"not-found":  pod(NotFound),
	}
}

func TestTextAndJSON(t *testing.T) {
	for name, e := range explanations() {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			if err := e.WriteText(&got); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", file, diff)
			}
			text, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			var back Explanation
			if err := json.Unmarshal(text, &back); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(e, &back); diff != "" {
				t.Errorf("after JSON (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTextOfAHostileAnswerHasNoControlCharacters(t *testing.T) {
	n := lacking(refused(tracev1.NearMiss{Set: "\x1b[1m", Rule: "\r"}))
	n.Name = "n\nPod shop/backup is not held"
	e := holding(n)
	e.Message = "\x1b]0;x\a"
	var got bytes.Buffer
	if err := e.WriteText(&got); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(got.String(), "\x1b\a\r") || strings.Contains(got.String(), "\nPod shop/backup is not held") {
		t.Errorf("%q", got.String())
	}
}

// FuzzText: whatever a manager answers is shown, a line of printable ASCII each.
func FuzzText(f *testing.F) {
	for _, e := range explanations() {
		text, err := json.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		var e Explanation
		if json.Unmarshal(answer, &e) != nil {
			return
		}
		var got bytes.Buffer
		if err := e.WriteText(&got); err != nil {
			t.Fatal(err)
		}
		if i := bytes.IndexFunc(got.Bytes(), func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }); i >= 0 {
			t.Errorf("%q is shown as %q", answer, got.String())
		}
	})
}

func TestStatesHaveExitStatuses(t *testing.T) {
	for state, want := range map[State]int{
		Open: 0, Ended: 0, NotGated: 0, Held: 2, NoAddress: 2, NotFound: 1, NotSeen: 3, "new": 3,
	} {
		if got := state.ExitStatus(); got != want {
			t.Errorf("%s: exit status %d, want %d", state, got, want)
		}
	}
}

func TestARulingHasTheNearMissesOfAllWaysOnce(t *testing.T) {
	n := tracev1.Node{Verdict: tracev1.Denied, Reason: "r"}
	for range 2 {
		hop := tracev1.Hop{}
		for i := range tracev1.MaxNearMisses {
			m := miss(tracev1.Allowed)
			m.Set = string(rune('a' + i))
			hop.NearMisses = append(hop.NearMisses, m)
		}
		n.Hops = append(n.Hops, hop)
	}
	n.Hops[1].NearMisses[0].Set = "another"
	got := NewRuling(n)
	if len(got.NearMisses) != tracev1.MaxNearMisses || got.NearMisses[0].Set != "a" || got.Verdict != tracev1.Denied || got.Reason != "r" {
		t.Errorf("%+v", got)
	}
	n.Hops[0].NearMisses = n.Hops[0].NearMisses[:1]
	if got := NewRuling(n); len(got.NearMisses) != tracev1.MaxNearMisses || got.NearMisses[1].Set != "another" {
		t.Errorf("%+v", got.NearMisses)
	}
}

func TestRounded(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 412400 * time.Microsecond: "412ms", 12*time.Second + 400*time.Millisecond: "12s",
		3*time.Minute + 10*time.Second: "3m10s", 10 * time.Minute: "10m", time.Hour: "1h",
		2*time.Hour + 5*time.Minute + 10*time.Second: "2h5m", 47 * time.Hour: "47h", 72 * time.Hour: "3d",
	} {
		if got := Rounded(d); got != want {
			t.Errorf("Rounded(%s) = %q, want %q", d, got, want)
		}
	}
}

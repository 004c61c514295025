// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/e2e/chaos/packet"
)

// at is a time of the tests' clock: seconds after the gate opened.
func at(seconds float64) time.Time {
	return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Add(time.Duration(seconds * float64(time.Second)))
}

func severs(x, y string) func(a, b string) bool {
	return func(a, b string) bool { return a == x && b == y || a == y && b == x }
}

func TestJudge(t *testing.T) {
	opening := Opening{
		Namespace: "shop", Pod: "server", Node: "n1", IP: netip.MustParseAddr("10.1.1.1"), Reason: v1alpha1.ReasonConfirmed,
		Created: at(-10), Addressed: at(-8), At: at(0), Stamped: at(0.5),
	}
	self := Party{Name: "shop/server", Node: "n1", Role: Server, IP: netip.MustParseAddr("10.1.1.1")}
	stranger := Party{Name: "strangers/a", Node: "n2", Role: Stranger, IP: netip.MustParseAddr("10.1.2.1")}
	client := Party{Name: "shop/client", Node: "n2", Role: Client, IP: netip.MustParseAddr("10.1.2.2")}
	letIn := Look{From: stranger, To: self, Got: packet.Admitted, Sent: at(1), Answered: at(1.1)}
	refused := Look{From: client, To: self, Want: true, Got: packet.Refused, Sent: at(1), Answered: at(1.1)}
	silent := refused
	silent.Got = packet.Silent
	recovers := func(after time.Duration) Look {
		l := refused
		l.Recovered = after
		return l
	}
	gone := func(l Look, when time.Time) Look {
		l.To.Gone = when
		return l
	}
	because := func(reason string) Opening {
		o := opening
		o.Reason = reason
		return o
	}
	shopper := Opening{
		Namespace: "shop", Pod: "client", Node: "n2", Reason: v1alpha1.ReasonConfirmed, IP: client.IP,
		Created: at(-10), At: at(0), Stamped: at(0.5),
	}
	admitted := Look{From: client, To: self, Port: servedPort, Got: packet.Admitted, Answered: at(1)}
	wrongPort := refused
	wrongPort.Port, refused.Port = otherPort, servedPort
	for name, tc := range map[string]struct {
		history History
		opening Opening
		look    Look
		blinks  time.Duration
		want    Outcome
		why     string
	}{
		"a stranger who is let in is found":          {look: letIn, want: Wrong},
		"an allowed flow that is refused is found":   {look: refused, want: Wrong},
		"an allowed flow without an answer is found": {look: silent, want: Wrong},
		"a stranger who is refused proves something": {
			look: Look{From: stranger, To: self, Got: packet.Refused, Answered: at(1)}, want: Proven,
		},
		"a stranger who is not answered proves something": {
			look: Look{From: stranger, To: self, Got: packet.Silent, Answered: at(1)}, want: Proven,
		},
		"an allowed flow that passes proves something": {
			look: Look{From: client, To: self, Want: true, Got: packet.Admitted, Answered: at(1)}, want: Proven,
		},
		"a blink of the real engine is none of the gate's": {look: recovers(time.Second), blinks: blink, want: Blinked},
		"the test engine does not blink":                   {look: recovers(time.Second), want: Wrong},
		"what lasts is no blink":                           {look: recovers(4 * time.Second), blinks: blink, want: Wrong},
		"a stranger is never excused by a blink":           {look: letIn, blinks: blink, want: Wrong},
		"a fault that begins ends the observation": {
			history: History{Faults: []Window{{Kind: "engine killed", Begin: at(0.7)}}},
			look:    letIn, want: Void, why: "a fault has begun",
		},
		"a fault in which the gate opened excuses nobody": {
			history: History{Faults: []Window{{Kind: "manager killed", Begin: at(-5), Began: at(-5)}}},
			look:    letIn, want: Wrong,
		},
		"a fault that is still beginning may do anything": {
			history: History{Faults: []Window{{Kind: "node rebooted", Begin: at(-5)}}},
			look:    letIn, want: Void, why: "is beginning",
		},
		"a fault that took long to begin may have changed rules until then": {
			history: History{Faults: []Window{{Kind: "node rebooted", Begin: at(-25), Began: at(0.5), Rewrites: []string{"n1"}}}},
			look:    letIn, want: Void, why: "changes rules",
		},
		"a fault after the answer changes nothing": {
			history: History{Faults: []Window{{Kind: "engine killed", Begin: at(1.2), Rewrites: []string{"n1"}}}},
			look:    letIn, want: Wrong,
		},
		"an engine that is dead changes no rules": {
			history: History{Faults: []Window{{Kind: "engine killed", Begin: at(-5), Began: at(-5), Rewrites: []string{"n1"}}}},
			look:    letIn, want: Wrong,
		},
		"an engine that is started may change rules": {
			history: History{Faults: []Window{{Kind: "engine killed", Begin: at(-9), Began: at(-9), Ending: at(-3), End: at(-2), Rewrites: []string{"n1"}}}},
			look:    letIn, want: Void, why: "changes rules",
		},
		"an engine that was started long ago does not": {
			history: History{Faults: []Window{{Kind: "engine killed", Begin: at(-19), Began: at(-19), Ending: at(-9), End: at(-8), Rewrites: []string{"n1"}}}},
			look:    letIn, want: Wrong,
		},
		"an engine of a node that is not concerned does not": {
			history: History{Faults: []Window{{Kind: "engine killed", Begin: at(-9), Began: at(-9), Ending: at(-3), Rewrites: []string{"n3"}}}},
			look:    letIn, want: Wrong,
		},
		"a cut between the nodes keeps an answer away": {
			history: History{Faults: []Window{{Kind: "cut", Begin: at(-5), Began: at(-5), Severs: severs("n1", "n2")}}},
			look:    silent, want: Void, why: "cut off",
		},
		"a cut refuses nothing": {
			history: History{Faults: []Window{{Kind: "cut", Begin: at(-5), Began: at(-5), Severs: severs("n1", "n2")}}},
			look:    refused, want: Wrong,
		},
		"a cut elsewhere keeps nothing away": {
			history: History{Faults: []Window{{Kind: "cut", Begin: at(-5), Began: at(-5), Severs: severs("n2", "n3")}}},
			look:    silent, want: Wrong,
		},
		"a cut lets nobody in": {
			history: History{Faults: []Window{{Kind: "cut", Begin: at(-5), Began: at(-5), Severs: severs("n1", "n2")}}},
			look:    letIn, want: Wrong,
		},
		"an edit after the opening ends the observation": {
			history: History{Edits: []Edit{{Namespace: "shop", Begin: at(0.9)}}},
			look:    letIn, want: Void, why: "being edited",
		},
		"an edit right before the opening may not be known": {
			history: History{Edits: []Edit{{Namespace: "shop", Begin: at(-1), End: at(-0.9)}}},
			look:    refused, want: Void, why: "being edited",
		},
		"an edit well before the opening has to be known": {
			history: History{Edits: []Edit{{Namespace: "shop", Begin: at(-3), End: at(-2.5)}}},
			look:    refused, want: Wrong,
		},
		"an edit before the Pod has to be known, however late": {
			opening: Opening{Namespace: "shop", Node: "n1", Reason: v1alpha1.ReasonConfirmed, Created: at(-1), At: at(0), Stamped: at(0)},
			history: History{Edits: []Edit{{Namespace: "shop", Begin: at(-1.2), End: at(-1.1)}}},
			look:    letIn, want: Wrong,
		},
		"a server's isolation may outlive its policy while its engine is dead": {
			opening: shopper,
			history: History{
				Faults: []Window{{Kind: "engine killed", Begin: at(-5), Began: at(-5), Rewrites: []string{"n1"}}},
				Edits:  []Edit{{Namespace: "shop", Begin: at(-4), End: at(-3.9), Before: Intent{AdmitClients: true}}},
			},
			look: wrongPort, want: Void, why: "no gate waits for",
		},
		"a server's isolation goes with its policy otherwise": {
			opening: shopper,
			history: History{Edits: []Edit{{Namespace: "shop", Begin: at(-4), End: at(-3.9), Before: Intent{AdmitClients: true}}}},
			look:    wrongPort, want: Wrong,
		},
		"who was admitted may be for as long as an engine is not told": {
			opening: shopper,
			history: History{
				Faults: []Window{{Kind: "API server killed", Begin: at(-15), Began: at(-15), Ending: at(-8), End: at(-7)}},
				Edits: []Edit{{Namespace: "shop", Begin: at(-6), End: at(-5.9), Before: Intent{DenyAll: true, AdmitClients: true},
					After: Intent{DenyAll: true}}},
			},
			look: admitted, want: Void, why: "no gate waits for",
		},
		"who was admitted is not for longer": {
			opening: shopper,
			history: History{
				Faults: []Window{{Kind: "API server killed", Begin: at(-35), Began: at(-35), Ending: at(-28), End: at(-27)}},
				Edits: []Edit{{Namespace: "shop", Begin: at(-26), End: at(-25.9), Before: Intent{DenyAll: true, AdmitClients: true},
					After: Intent{DenyAll: true}}},
			},
			look: admitted, want: Wrong,
		},
		"who was never admitted is refused, whoever is told": {
			opening: shopper,
			history: History{
				Faults: []Window{{Kind: "API server killed", Begin: at(-15), Began: at(-15), Ending: at(-8), End: at(-7)}},
				Edits:  []Edit{{Namespace: "shop", Begin: at(-6), End: at(-5.9), After: Intent{DenyAll: true}}},
			},
			look: letIn, want: Wrong,
		},
		"who is admitted by a rule is waited for, dead engine or not": {
			opening: shopper,
			history: History{
				Faults: []Window{{Kind: "engine killed", Begin: at(-5), Began: at(-5), Rewrites: []string{"n1"}}},
				Edits: []Edit{{Namespace: "shop", Begin: at(-4), End: at(-3.9), Before: Intent{DenyAll: true},
					After: Intent{DenyAll: true, AdmitClients: true}}},
			},
			look: refused, want: Wrong,
		},
		"an edit of another namespace concerns nobody": {
			history: History{Edits: []Edit{{Namespace: "bank", Begin: at(0.5)}}},
			look:    letIn, want: Wrong,
		},
		"a gate that was seen late was open before": {
			opening: Opening{Namespace: "shop", Node: "n1", Reason: v1alpha1.ReasonConfirmed, Created: at(-20), At: at(0), Stamped: at(-9)},
			history: History{Edits: []Edit{{Namespace: "shop", Begin: at(-5), End: at(-4)}}},
			look:    refused, want: Void, why: "being edited",
		},
		"a Pod that has gone proves nothing":             {look: gone(letIn, at(1)), want: Void, why: "is going"},
		"a Pod that went later was there":                {look: gone(letIn, at(2)), want: Wrong},
		"a Pod that refuses may have begun to end":       {look: gone(refused, at(3)), want: Void, why: "is going"},
		"a Pod that refuses may not have ended for long": {look: gone(refused, at(4)), want: Wrong},
		"a partial confirmation allows no flow": {
			opening: because(v1alpha1.ReasonPartiallyConfirmed), look: refused, want: Void, why: "PartiallyConfirmed",
		},
		"a partial confirmation keeps strangers out": {
			opening: because(v1alpha1.ReasonPartiallyConfirmed), look: letIn, want: Wrong,
		},
		"an engine that deviates keeps strangers out": {
			opening: because(v1alpha1.ReasonEngineDeviates), look: letIn, want: Wrong,
		},
		"an observer who could not look has seen nothing": {
			look: Look{From: client, To: self, Want: true, Answered: at(1), Unproven: "the way was blocked"}, want: Void, why: "blocked",
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := tc.opening
			if o.Reason == "" {
				o = opening
			}
			got, why := tc.history.Judge(o, tc.look, tc.blinks)
			if got != tc.want || !strings.Contains(why, tc.why) {
				t.Errorf("outcome %d because %q, want %d because %q", got, why, tc.want, tc.why)
			}
		})
	}
}

func TestObservationEndsWithTheNextFaultOrEdit(t *testing.T) {
	o := Opening{Namespace: "shop", At: at(0), Stamped: at(0.5)}
	for name, tc := range map[string]struct {
		history History
		want    bool
	}{
		"nothing has happened":         {},
		"a fault is in force":          {history: History{Faults: []Window{{Begin: at(-1)}}}},
		"a fault has begun":            {history: History{Faults: []Window{{Begin: at(1)}}}, want: true},
		"an edit has begun":            {history: History{Edits: []Edit{{Namespace: "shop", Begin: at(1)}}}, want: true},
		"another namespace was edited": {history: History{Edits: []Edit{{Namespace: "bank", Begin: at(1)}}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tc.history.Ended(o, at(2)); got != tc.want {
				t.Errorf("ended %t, want %t", got, tc.want)
			}
		})
	}
}

func TestCalmIsTheTimeWithoutFaults(t *testing.T) {
	h := History{Faults: []Window{{Begin: at(-5), End: at(2)}, {Begin: at(4), End: at(5)}, {Begin: at(8)}}}
	if got, want := h.Calm(at(0), at(10)), 5*time.Second; got != want {
		t.Errorf("calm for %v, want %v", got, want)
	}
	if h.Disturbed(at(2.5), at(3.5)) {
		t.Error("disturbed between two faults")
	}
	if !h.Disturbed(at(2.5), at(4.5)) {
		t.Error("not disturbed though a fault began")
	}
}

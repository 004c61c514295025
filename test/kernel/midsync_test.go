// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/controllers/expect"
)

// recording is what kube-router did to the kernel after the objects had
// changed: testdata/midsync/README.md says how it was made.
type recording struct {
	name    string
	objects *objects
	// states are the kernel's, one after each change, the first from before.
	states []moment
}

// moment is what the kernel held after a command.
type moment struct {
	after string
	// files are those that iptables-save, ipset save or nft printed, by name.
	files map[string]string
}

// readRecordings reads the recordings of a mode, in their order.
func readRecordings(t testing.TB, mode string) []recording {
	t.Helper()
	text, err := readFile(filepath.Join("testdata", "midsync", mode+".txt.gz"))
	if err != nil {
		t.Fatal(err)
	}
	var all []recording
	for part := range strings.SplitSeq("\n"+text, "\n-- ") {
		heading, content, ok := strings.Cut(part, " --\n")
		if !ok {
			continue
		}
		content += "\n"
		path := strings.Split(heading, "/")
		switch {
		case len(path) == 2 && path[1] == "objects.yaml":
			all = append(all, recording{name: path[0], objects: parseObjects(t, []byte(content))})
		case len(path) == 3 && len(all) > 0 && all[len(all)-1].name == path[0]:
			states := &all[len(all)-1].states
			if path[2] == "after" {
				(*states)[len(*states)-1].after = strings.TrimSpace(content)
				continue
			}
			if len(*states) == 0 || (*states)[len(*states)-1].after != "" {
				*states = append(*states, moment{files: map[string]string{}})
			}
			(*states)[len(*states)-1].files[path[2]] = content
		default:
			t.Fatalf("a recording has no place for %q", heading)
		}
	}
	return all
}

// load puts the kernel into the recorded state.
func (m moment) load(t testing.TB, r *rig, tool string) {
	t.Helper()
	if tool == "" {
		r.node.run(t, "flush ruleset\n", "nft", "-f", "-")
		r.node.loadNFT(t, m.files["nft-ruleset.txt"])
		return
	}
	r.clear(t, tool)
	r.node.run(t, "", "ipset", "destroy")
	r.node.run(t, m.files["ipset-save.txt"], "ipset", "restore")
	r.node.restore(t, "iptables-"+tool+"-restore", m.files["iptables-save.txt"])
}

// standing is how a state stands to one subject.
type standing struct {
	// confirms: every required expectation holds.
	confirms bool
	// open: those that are Allowed hold, so that without a control the
	// subject would be confirmed.
	open bool
	// violated is a flow of the subject that the state answers otherwise than
	// the policies, "" if there is none.
	violated string
}

// judge asks what the manager asks for the subject, and then of every flow
// that the subject can have with the Pods and with an outsider.
func judge(t *testing.T, look *kernel.Look, cluster *expect.Cluster, o *objects, a assigned) standing {
	t.Helper()
	answers, err := a.answers(t.Context(), look)
	if err != nil {
		t.Fatal(err)
	}
	s := standing{confirms: true, open: true}
	for i, e := range a.expectations {
		v := answers[i].Verdict
		if v.Answer == flow.Inconclusive && (!e.External || answers[i].Routed) {
			t.Errorf("%s: %s", a.name(e), v)
		}
		if e.Advisory || v.Answer == e.Want || e.External && !answers[i].Routed {
			continue
		}
		s.confirms = false
		s.open = s.open && e.Want == flow.Denied
	}
	subject := cluster.Pod(types.UID(a.subject))
	for _, f := range o.flowsOf(a.subject) {
		want, advisory := cluster.Demand(capturedNode, f)
		if want == flow.Inconclusive || advisory || want == flow.Denied && !concerns(cluster, subject, f) {
			continue
		}
		if v := look.Verdict(f); v.Answer != want {
			s.violated = f.String() + " is " + v.String()
			break
		}
	}
	return s
}

// concerns reports whether a flow that is to be denied is so for the subject's
// sake: because its own policies refuse it, or those of a Pod that name the
// subject as a peer. Otherwise it is about a Pod to which the subject is a
// stranger, and that one's own gate waits for it.
func concerns(c *expect.Cluster, subject *expect.Pod, f flow.Flow) bool {
	d, x := expect.Ingress, expect.Conn{Protocol: f.Protocol, Port: f.Port}
	x.Src, x.Dst = end(c, f.Src), end(c, f.Dst)
	other := x.Src.Pod
	if x.Src.Pod == subject {
		d, other = expect.Egress, x.Dst.Pod
	}
	own := expect.Selecting(c.PoliciesIn(subject.Namespace), subject)
	if subject.Node == capturedNode && c.Admission(own, d, x) == expect.Refused {
		return true
	}
	return other != nil && slices.ContainsFunc(c.Naming(subject), func(q *expect.Policy) bool {
		return q.Selects(other) && q.Isolates[1-d]
	})
}

func end(c *expect.Cluster, a netip.Addr) expect.End {
	for _, pod := range c.Holding(a) {
		return expect.End{Addr: a, Pod: pod}
	}
	return expect.End{Addr: a}
}

// flowsOf returns the flows between a Pod and every other, and an outsider, by
// every port that a Pod has and one that none has.
func (o *objects) flowsOf(subject string) []flow.Flow {
	var self netip.Addr
	others := []netip.Addr{addr("198.51.100.7")}
	ports := []uint16{61002}
	for _, p := range o.pods {
		if string(p.UID) == subject {
			self = addr(p.Status.PodIP)
		} else {
			others = append(others, addr(p.Status.PodIP))
		}
		for _, port := range p.Spec.Containers[0].Ports {
			if number := uint16(port.ContainerPort); !slices.Contains(ports, number) {
				ports = append(ports, number)
			}
		}
	}
	var flows []flow.Flow
	for _, other := range others {
		for _, port := range ports {
			flows = append(flows, flow.Flow{Protocol: flow.TCP, Src: self, Dst: other, Port: port},
				flow.Flow{Protocol: flow.TCP, Src: other, Dst: self, Port: port})
		}
	}
	return flows
}

// TestNoStateInTheMiddleOfASyncConfirms: kube-router writes sets before rules,
// the rules of one policy after those of another, and a Pod that it has just
// learned of without its policies. None of these states may confirm a Pod that
// it is not right for; the last of each recording must confirm them all.
func TestNoStateInTheMiddleOfASyncConfirms(t *testing.T) {
	for mode, tool := range map[string]string{"iptables-legacy": "legacy", "iptables-nft": "nft", "nftables": ""} {
		t.Run(mode, func(t *testing.T) {
			r := newRig(t, nil, nil)
			recordings := readRecordings(t, mode)
			if len(recordings) < 7 {
				t.Fatalf("only %d recordings", len(recordings))
			}
			for _, rec := range recordings {
				t.Run(rec.name, func(t *testing.T) { rec.check(t, r, tool) })
			}
		})
	}
}

func (rec recording) check(t *testing.T, r *rig, tool string) {
	options := expect.DefaultOptions()
	options.Families = expect.FamiliesV4
	assignments, cluster := rec.objects.assignments(t, options, 1), rec.objects.cluster(t)
	unready, caught := 0, 0
	for i, state := range rec.states {
		state.load(t, r, tool)
		last := i == len(rec.states)-1
		r.look(t, func(look *kernel.Look) error {
			for _, a := range assignments {
				s := judge(t, look, cluster, rec.objects, a)
				switch {
				case last && (!s.confirms || s.violated != ""):
					t.Errorf("the last state does not confirm %s (%s)", a.subject, s.violated)
				case s.confirms && s.violated != "":
					t.Errorf("state %d, after %s, confirms %s, but %s", i+1, state.after, a.subject, s.violated)
				case s.violated != "":
					unready++
					if s.open {
						caught++
					}
				}
			}
			return nil
		})
	}
	t.Logf("%d states of %d subjects: %d times not right for one, of which %d only a stranger shows", len(rec.states), len(assignments), unready, caught)
	if unready == 0 && rec.name != "settled" {
		t.Error("every state was right for every subject")
	}
	if caught == 0 && rec.name == "server-arrives" {
		t.Error("no state was one that only a stranger shows")
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/controllers/expect"
)

// What a tally counts beside the rows of the tables.
const (
	isolatedAllowed = "connections that the policies of an isolated Pod allow"
	isolatedDenied  = "connections that they deny"
	isolatedDoubt   = "connections of which they say nothing"
	openAllowed     = "connections of a Pod that is not isolated"
	nodeAnswers     = "answers of nodes"
	nodeDoubt       = "answers of nodes that are in doubt"
)

// TestBothReadNetworkPolicyAlike also holds the two tables against what
// happens: without any of its rows something would be unexplained.
func TestBothReadNetworkPolicyAlike(t *testing.T) {
	want := tally{isolatedAllowed: 30_000, isolatedDenied: 80_000, openAllowed: 50_000, nodeAnswers: 500_000}
	for _, d := range differences() {
		want[d.name] = 1
	}
	for _, a := range abstentions() {
		want[a.name] = 1
	}
	counts := run(t, 400, semantics, want)
	if counts[isolatedDoubt] > (counts[isolatedAllowed]+counts[isolatedDenied])/5 {
		t.Errorf("%d answers are in doubt: too many to show anything", counts[isolatedDoubt])
	}
}

// judges are cyclonus with every correction, and with all but one.
type judges struct {
	all    *cyclonus
	allBut map[string]*cyclonus
}

func newJudges(w *world, counts tally) (*judges, error) {
	out := &judges{allBut: map[string]*cyclonus{}}
	var err error
	if out.all, err = newCyclonus(w, everyCorrection()); err != nil {
		return nil, err
	}
	for _, d := range differences() {
		c, err := newCyclonus(w, everyCorrection()&^d.correct)
		if err != nil {
			counts[d.name]++
			continue
		}
		out.allBut[d.name] = c
	}
	return out, nil
}

// semantics compares Admission and Demand.
func semantics(w *world, r *rand.Rand, counts tally) string {
	c, err := w.cluster()
	if err != nil {
		return err.Error()
	}
	j, err := newJudges(w, counts)
	if err != nil {
		return err.Error()
	}
	book := newRulebook(j.all)
	for x := range w.connections(r) {
		truth := j.all.ask(x)
		if truth.err != nil {
			return fmt.Sprintf("%s: %v", x, truth.err)
		}
		for _, disagreement := range []string{
			compareAdmissions(c, book, truth, counts),
			j.compareDemands(c, truth, counts),
		} {
			if disagreement != "" {
				return disagreement
			}
		}
	}
	return ""
}

// compareAdmissions compares each direction of x by itself.
func compareAdmissions(c *expect.Cluster, book *rulebook, truth sided, counts tally) string {
	x := truth.connection
	for _, d := range directions() {
		isolated, _ := x.sides(d)
		if isolated.pod == nil {
			continue
		}
		target := c.Pod(isolated.pod.UID)
		selecting := expect.Selecting(c.PoliciesIn(target.Namespace), target)
		got := c.Admission(selecting, d, x.conn(c))
		want, _ := got.Answer()
		if disagreement := compare(want, truth.admitted[d]); disagreement != "" {
			return fmt.Sprintf("%s of %s: %s", d, x, disagreement)
		}
		switch {
		case !expect.Isolated(selecting, d):
			counts[openAllowed]++
			if got != expect.Admitted {
				return fmt.Sprintf("%s of %s: admission %d where no policy isolates", d, x, got)
			}
		case want == flow.Allowed:
			counts[isolatedAllowed]++
		case want == flow.Denied:
			counts[isolatedDenied]++
		default:
			counts[isolatedDoubt]++
		}
		if got != expect.Doubtful && got != expect.Deviating {
			continue
		}
		because := book.explain(got, x, d)
		if len(because) == 0 {
			return fmt.Sprintf("%s of %s: admission %d without a reason in the table of abstentions", d, x, got)
		}
		// Where there are several, neither is shown to be needed.
		if len(because) == 1 {
			counts[because[0]]++
		}
	}
	return ""
}

// compare holds what expect wants against what cyclonus says. It returns an
// empty string if they agree, or expect does not say.
func compare(want flow.Answer, admitted bool) string {
	said := flow.Denied
	if admitted {
		said = flow.Allowed
	}
	if want == flow.Inconclusive || want == said {
		return ""
	}
	return fmt.Sprintf("expect says %s, cyclonus with every correction says %s", want, said)
}

// compareDemands compares what each node has to do, and counts the corrections
// without which cyclonus would say something else.
func (j *judges) compareDemands(c *expect.Cluster, truth sided, counts tally) string {
	x := truth.connection
	but := map[string]sided{}
	nodes := map[string]bool{"elsewhere": true}
	for name, one := range j.allBut {
		s := one.ask(x)
		but[name] = s
		for _, e := range []end{s.src, s.dst} {
			if e.pod != nil {
				nodes[e.pod.Spec.NodeName] = true
			}
		}
	}
	for node := range nodes {
		want, advisory := c.Demand(node, x.flow())
		if disagreement := compare(want, truth.on(node)); disagreement != "" {
			return fmt.Sprintf("%s, seen from node %q: %s", x, node, disagreement)
		}
		if advisory && want != flow.Allowed {
			return fmt.Sprintf("%s, seen from node %q: advisory although %s", x, node, want)
		}
		if want == flow.Inconclusive {
			counts[nodeDoubt]++
			continue
		}
		counts[nodeAnswers]++
		for name, s := range but {
			if s.err != nil || s.on(node) != truth.on(node) {
				counts[name]++
			}
		}
	}
	return ""
}

// connections yields those between all addresses, on every port of interest or,
// with r, on some.
func (w *world) connections(r *rand.Rand) func(yield func(connection) bool) {
	ports := w.interesting()
	addresses := w.addresses()
	return func(yield func(connection) bool) {
		for _, src := range addresses {
			for _, dst := range addresses {
				if src == dst || src.Is4() != dst.Is4() || !w.inside(src) && !w.inside(dst) {
					continue
				}
				some := ports
				if r != nil {
					some = sample(r, ports, w.portsAt(dst))
				}
				for _, port := range some {
					for _, protocol := range protocols() {
						if !yield(connection{end{addr: src}, end{addr: dst}, protocol, port}) {
							return
						}
					}
				}
			}
		}
	}
}

// addresses are those of all Pods and nodes, and some that nobody has.
func (w *world) addresses() []netip.Addr {
	var out []netip.Addr
	for _, p := range w.pods {
		out = append(out, p.addrs...)
	}
	for _, n := range w.nodes {
		out = append(out, n.Addresses...)
	}
	for text := range strings.FieldsSeq("10.0.1.250 10.128.0.6 198.51.100.7 198.51.100.70 169.254.1.1 203.0.113.77 " +
		"fd00:0:0:1::fa fd02::7 fc00::1 2001:db8::77 2001:db8:1::77 fe80::1") {
		out = append(out, netip.MustParseAddr(text))
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// inside reports whether any Pod has addr.
func (w *world) inside(addr netip.Addr) bool {
	return slices.ContainsFunc(w.pods, func(p *pod) bool { return slices.Contains(p.addrs, addr) })
}

// interesting are the ports that rules and Pods name, those beside the ends of
// ranges, and one that nobody names.
func (w *world) interesting() []uint16 {
	out := []uint16{1, 65535, 61001}
	for _, number := range portNumbers() {
		out = append(out, uint16(number))
	}
	for _, bounds := range portRanges() {
		for _, bound := range bounds {
			for port := max(bound-1, 1); port <= min(bound+1, 65535); port++ {
				out = append(out, uint16(port))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// portsAt are the ports of the Pods that have addr.
func (w *world) portsAt(addr netip.Addr) []uint16 {
	var out []uint16
	for _, p := range w.pods {
		if slices.Contains(p.addrs, addr) {
			for _, port := range p.ports() {
				out = append(out, port.number)
			}
		}
	}
	return out
}

// sample returns one of each list.
func sample(r *rand.Rand, lists ...[]uint16) []uint16 {
	var out []uint16
	for _, list := range lists {
		if len(list) > 0 {
			out = append(out, list[r.IntN(len(list))])
		}
	}
	return out
}

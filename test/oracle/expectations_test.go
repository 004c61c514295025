// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/controllers/expect"
)

// What a tally counts.
const (
	askedAllowed    = "flows asked, to be allowed"
	askedDenied     = "flows asked, to be denied"
	askedAdvisory   = "flows asked that need not be realized"
	askedWitness    = "flows asked between older Pods"
	askedOutside    = "flows asked from or to an address outside"
	askedBecause    = "flows asked because an address had another Pod"
	subjectsPlanned = "subjects"
	completeNaming  = "rules that name a subject, and are asked about an older Pod elsewhere"
	completeOwn     = "rules of a subject that are asked about an older Pod elsewhere"
)

// way is a way to ask what is expected of a subject.
type way struct {
	name    string
	options func(*expect.Options)
	subject func(*world, *pod, *expect.Subject)
	// absent: the Cluster does not have the subject yet.
	absent bool
}

func ways() []way {
	return []way{
		{name: "defaults"},
		{name: "a small budget", options: func(o *expect.Options) { o.Budget = 7 }},
		{name: "no foreign nodes", options: func(o *expect.Options) { o.MaxForeignNodes = 0 }},
		{name: "one foreign node", options: func(o *expect.Options) { o.MaxForeignNodes = 1 }},
		{name: "v4 only", options: func(o *expect.Options) { o.Families = expect.FamiliesV4 }},
		{name: "v6 only", options: func(o *expect.Options) { o.Families = expect.FamiliesV6 }},
		{name: "ranges to avoid", options: func(o *expect.Options) {
			o.Families = expect.FamiliesBoth
			o.Avoid = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/26"), netip.MustParsePrefix("2001:db8::/48")}
		}},
		{name: "own node only", subject: func(_ *world, _ *pod, s *expect.Subject) { s.LocalOnly = true }},
		{name: "witnesses", subject: func(_ *world, _ *pod, s *expect.Subject) { s.Witnesses = true }},
		{name: "predecessors", subject: (*world).precede},
		{name: "not seen yet", absent: true},
	}
}

// of returns what to ask of p.
func (how way) of(w *world, p *pod) (expect.Subject, expect.Options) {
	subject, options := expect.Subject{Pod: p.read()}, expect.DefaultOptions()
	if how.options != nil {
		how.options(&options)
	}
	if how.subject != nil {
		how.subject(w, p, &subject)
	}
	return subject, options
}

// precede gives every address of p to a Pod like each other one before.
func (w *world) precede(p *pod, s *expect.Subject) {
	s.Predecessors = map[netip.Addr][]*expect.Pod{}
	for _, other := range w.pods {
		for _, addr := range p.addrs {
			if other != p && other.peer() {
				previous := *other.read()
				previous.UID += "/before"
				previous.IPs = []netip.Addr{addr}
				s.Predecessors[addr] = append(s.Predecessors[addr], &previous)
			}
		}
	}
}

// TestEveryExpectationIsWhatTheOtherSays compares what is asked of each node.
func TestEveryExpectationIsWhatTheOtherSays(t *testing.T) {
	run(t, 1500, expectations, tally{
		subjectsPlanned: 15_000, askedAllowed: 50_000, askedDenied: 25_000,
		askedWitness: 100, askedAdvisory: 3000, askedOutside: 10_000, askedBecause: 2000,
	})
}

func expectations(w *world, r *rand.Rand, counts tally) string {
	truth, err := newCyclonus(w, everyCorrection())
	if err != nil {
		return err.Error()
	}
	for _, p := range w.pods {
		if !p.peer() || len(p.addrs) == 0 {
			continue
		}
		some := ways()
		if r != nil {
			r.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
			some = some[:3]
		}
		for _, how := range some {
			a, err := w.asked(p, how)
			if err != nil {
				return err.Error()
			}
			counts[subjectsPlanned]++
			if disagreement := a.compare(truth, counts); disagreement != "" {
				return fmt.Sprintf("%s, %s: %s", p.UID, how.name, disagreement)
			}
		}
	}
	return ""
}

// asked is the answer to one way of asking.
type asked struct {
	world   *world
	pod     *pod
	how     way
	options expect.Options
	subject expect.Subject
	cluster *expect.Cluster
	result  expect.Result
}

func (w *world) asked(p *pod, how way) (*asked, error) {
	in := *w
	if how.absent {
		in.pods = slices.DeleteFunc(slices.Clone(w.pods), func(q *pod) bool { return q == p })
	}
	c, err := in.cluster()
	if err != nil {
		return nil, err
	}
	a := &asked{world: w, pod: p, how: how, cluster: c}
	a.subject, a.options = how.of(w, p)
	a.result = c.Expect(a.subject, a.options)
	return a, nil
}

func (a *asked) compare(truth *cyclonus, counts tally) string {
	flows := 0
	for node, list := range a.result.Nodes {
		if a.subject.LocalOnly && node != a.pod.Spec.NodeName {
			return fmt.Sprintf("node %s is asked", node)
		}
		seen := map[flow.Flow]bool{}
		for _, e := range list {
			if seen[e.Flow] {
				return fmt.Sprintf("%s is asked %s twice", node, e.Flow)
			}
			seen[e.Flow] = true
			if !e.Witness {
				flows++
			}
			if wrong := a.compareOne(truth, node, &e); wrong != "" {
				return fmt.Sprintf("%s %s, asked of %s because of %q: %s", e.Want, e.Flow, node, e.Why, wrong)
			}
			a.count(&e, counts)
		}
	}
	if flows > a.options.Budget {
		return fmt.Sprintf("%d flows are asked with a budget of %d", flows, a.options.Budget)
	}
	return ""
}

func (a *asked) count(e *expect.Expectation, counts tally) {
	if e.Want == flow.Allowed {
		counts[askedAllowed]++
	} else {
		counts[askedDenied]++
	}
	for name, is := range map[string]bool{
		askedAdvisory: e.Advisory, askedWitness: e.Witness, askedOutside: e.External,
		askedBecause: a.subject.Predecessors != nil && e.Want == flow.Denied && a.result.Settle,
	} {
		if is {
			counts[name]++
		}
	}
}

// compareOne returns what is wrong with an expectation.
func (a *asked) compareOne(truth *cyclonus, node string, e *expect.Expectation) string {
	if err := e.Flow.Validate(); err != nil {
		return err.Error()
	}
	said := truth.ask(connection{end{addr: e.Flow.Src}, end{addr: e.Flow.Dst}, protocolName(e.Flow.Protocol), e.Flow.Port})
	switch {
	case said.err != nil:
		return said.err.Error()
	case e.Flow.Src == e.Flow.Dst:
		return "both ends are one address"
	case e.Want != flow.Allowed && e.Want != flow.Denied:
		return "no expectation"
	case said.on(node) != (e.Want == flow.Allowed):
		return "cyclonus with every correction says otherwise"
	case !said.judgedBy(node):
		return "it judges neither side"
	case e.Advisory && e.Want != flow.Allowed:
		return "only what is allowed can be advisory"
	case e.Witness && (e.Want != flow.Allowed || slices.Contains(a.pod.addrs, e.Flow.Src) || slices.Contains(a.pod.addrs, e.Flow.Dst)):
		return "a witness is an allowed flow between others"
	case e.Flow.Src.Is6() && a.options.Families == expect.FamiliesV4, e.Flow.Src.Is4() && a.options.Families == expect.FamiliesV6:
		return "it is of a family that is not asked"
	}
	for _, addr := range []netip.Addr{e.Flow.Src, e.Flow.Dst} {
		if holders := a.world.peersAt(addr); len(holders) > 1 {
			return fmt.Sprintf("%s is the address of %s and of %s", addr, holders[0].UID, holders[1].UID)
		}
		for _, p := range a.world.pods {
			if slices.Contains(p.addrs, addr) && (p.hostNetwork() || p.terminating() && !p.finished()) && len(a.world.peersAt(addr)) == 0 {
				return fmt.Sprintf("%s is the address of %s, of which nothing can be demanded", addr, p.UID)
			}
		}
	}
	if a.how.absent {
		return ""
	}
	want, deviates := a.cluster.Demand(node, e.Flow)
	if want != e.Want || deviates && !e.Advisory {
		return fmt.Sprintf("Demand says %s, advisory %v", want, deviates)
	}
	return ""
}

// judgedBy reports whether an end of the connection runs on node.
func (s sided) judgedBy(node string) bool {
	return slices.ContainsFunc([]end{s.src, s.dst}, func(e end) bool { return e.pod != nil && e.pod.Spec.NodeName == node })
}

// TestEveryRuleThatMeansTwoPodsIsAskedAbout: a rule that admits a subject to an
// older Pod elsewhere, or an older Pod to the subject, is asked about where it
// is realized.
func TestEveryRuleThatMeansTwoPodsIsAskedAbout(t *testing.T) {
	run(t, 1500, completeness, tally{completeNaming: 1000, completeOwn: 1500})
}

func completeness(w *world, _ *rand.Rand, counts tally) string {
	truth, err := newCyclonus(w, everyCorrection())
	if err != nil {
		return err.Error()
	}
	book := newRulebook(truth)
	everything := way{name: "everything", options: func(o *expect.Options) { o.Budget, o.MaxForeignNodes = 1<<20, 1<<20 }}
	for _, p := range w.pods {
		if !p.peer() || len(p.addrs) == 0 {
			continue
		}
		a, err := w.asked(p, everything)
		if err != nil {
			return err.Error()
		}
		for _, other := range w.pods {
			if other.UID == p.UID || !other.peer() || other.seq > p.seq || other.Spec.NodeName == p.Spec.NodeName {
				continue
			}
			for _, r := range book.rules {
				if missing := a.missing(book, r, other, counts); missing != "" {
					return fmt.Sprintf("%s and %s, %s of %s: %s", p.UID, other.UID, r.direction, r.policy.UID, missing)
				}
			}
		}
	}
	return ""
}

// missing returns what is not asked about r, the subject and an older Pod on
// another node, and should be.
func (a *asked) missing(book *rulebook, r *rule, other *pod, counts tally) string {
	for _, self := range a.world.ends(a.pod) {
		for _, peer := range a.world.ends(other) {
			if self.addr.Is4() != peer.addr.Is4() || !r.isolates {
				continue
			}
			if book.selects(r.policy, a.pod) && r.means(book, peer) {
				if missing := a.missingAt(book, r, self, peer, completeOwn, counts); missing != "" {
					return missing
				}
			}
			if book.selects(r.policy, other) && r.means(book, self) && a.waitsFor(r, other) {
				if missing := a.missingAt(book, r, peer, self, completeNaming, counts); missing != "" {
					return missing
				}
			}
		}
	}
	return ""
}

// waitsFor reports whether a subject has to wait for the node of other because
// of a rule that selects other.
func (a *asked) waitsFor(r *rule, other *pod) bool {
	n := a.cluster.Node(other.Spec.NodeName)
	ns := a.cluster.Namespace(r.policy.Namespace)
	return n != nil && !n.Out && (r.policy.Namespace == a.pod.Namespace || ns != nil && ns.Inject)
}

// missingAt is about the node of isolated, which r selects and which admits
// other.
func (a *asked) missingAt(book *rulebook, r *rule, isolated, other end, what string, counts tally) string {
	node := isolated.pod.Spec.NodeName
	x := connection{src: other, dst: isolated}
	if r.direction == expect.Egress {
		x.src, x.dst = isolated, other
	}
	admitted := ""
	for _, port := range slices.Concat(a.world.interesting(), a.world.portsAt(x.dst.addr)) {
		for _, protocol := range protocols() {
			x.protocol, x.port = protocol, port
			if r.admits(book, viewed(x, r.direction)) {
				admitted = x.String()
			}
		}
	}
	if admitted == "" {
		return ""
	}
	if !slices.Contains(a.result.Span, node) {
		return fmt.Sprintf("%s is not in the span %v, although the rule admits %s there", node, a.result.Span, admitted)
	}
	for _, e := range a.result.Nodes[node] {
		x.protocol, x.port = protocolName(e.Flow.Protocol), e.Flow.Port
		if e.Want == flow.Allowed && e.Flow.Src == x.src.addr && e.Flow.Dst == x.dst.addr && r.admits(book, viewed(x, r.direction)) {
			counts[what]++
			return ""
		}
	}
	return fmt.Sprintf("%s is asked no flow that the rule admits, although it admits %s", node, admitted)
}

// ends returns the Pod at each address that no other Pod has.
func (w *world) ends(p *pod) []end {
	var out []end
	for _, addr := range p.addrs {
		if len(w.peersAt(addr)) == 1 {
			out = append(out, end{addr, p})
		}
	}
	return out
}

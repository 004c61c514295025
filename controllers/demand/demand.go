// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package demand

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"weak"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/gate/deviation"
	"github.com/policygate/policygate/controllers/hub"
)

// Demand is what one node must confirm. It is a value: two of one Coverage are
// equal exactly if they ask the same for the same policies, and share their
// memory then, however many Pods have them. The zero Demand asks nothing.
type Demand struct{ shared *demand }

// demand is what is shared. It is never written to.
type demand struct {
	// description is what is sent.
	description hub.Description
	// asked has the expectations in the description's order.
	asked []asked
	whys  []Why
}

// asked is what the ledger keeps of an expectation.
type asked struct {
	// why indexes whys.
	why uint32
	// denied is true if the flow must be denied.
	denied bool
	// own is true if the flow comes from the subject, at its IPv6 address if
	// v6 is true.
	own, v6 bool
}

// Why is a rule that demands something.
type Why struct {
	// Rule's policy is zero if no policy demands it.
	Rule deviation.Rule
	// Witnessed is true if a flow between older Pods is asked as well.
	Witnessed bool
	// Allows is what must be known not to be realized for the subject not to
	// wait for any Allowed of the Rule: nothing if there is none to wait for.
	Allows deviation.Extent
}

// Content returns what is sent.
func (d Demand) Content() hub.Description {
	if d.shared == nil {
		return hub.Description{}
	}
	return d.shared.description
}

// Whys returns the rules, in the order in which reports index them.
func (d Demand) Whys() []Why {
	if d.shared == nil {
		return nil
	}
	return d.shared.whys
}

// Len returns how many expectations there are.
func (d Demand) Len() int {
	if d.shared == nil {
		return 0
	}
	return len(d.shared.asked)
}

// Policy returns what demands the index-th expectation, in words fit for the
// owner of a Pod in namespace: a policy of another has no name. It returns ""
// if no policy does, and for an index that d does not have.
func (d Demand) Policy(index uint32, namespace string) string {
	if int64(index) >= int64(d.Len()) {
		return ""
	}
	switch policy := d.shared.whys[d.shared.asked[index].why].Rule.Policy; {
	case policy.Name == "":
		return ""
	case policy.Namespace != namespace:
		return "a policy in another namespace"
	default:
		return policy.String() + " (this namespace)"
	}
}

// Awaits returns what the index-th expectation lacks, in words fit for the
// owner of a Pod in namespace at ips: no other namespace's names, and no
// address but the Pod's own. It returns "" for an index that d does not have.
func (d Demand) Awaits(index uint32, namespace string, ips []netip.Addr) string {
	if int64(index) >= int64(d.Len()) {
		return ""
	}
	a := d.shared.asked[index]
	who := d.Policy(index, namespace)
	switch {
	case who == "":
		return "the rules there are not complete yet"
	case d.shared.whys[a.why].Rule.Policy.Namespace != namespace:
	case a.denied:
		return who + " does not isolate its Pods there yet"
	case a.own:
		for _, ip := range ips {
			if ip.Is6() == a.v6 {
				return who + " does not admit " + ip.String() + " there yet"
			}
		}
	}
	return who + " is not in force there yet"
}

// Expectation returns the index-th expectation of a subject at ips. It returns
// false for an index that d does not have. It decodes d each time: it is for
// people's questions.
func (d Demand) Expectation(index uint32, ips []netip.Addr) (expect.Expectation, bool) {
	if int64(index) >= int64(d.Len()) {
		return expect.Expectation{}, false
	}
	message, err := d.shared.description.Message()
	if err != nil || int64(index) >= int64(len(message.GetExpectations())) {
		return expect.Expectation{}, false
	}
	sent := message.GetExpectations()[index]
	// What was left out is the only address of the other end's family.
	f := sent.GetFlow()
	for _, ip := range ips {
		switch raw := ip.AsSlice(); {
		case len(f.GetSrc()) == 0 && len(f.GetDst()) == len(raw):
			f.Src = raw
		case len(f.GetDst()) == 0 && len(f.GetSrc()) == len(raw):
			f.Dst = raw
		}
	}
	asked, err := f.Value()
	if err != nil {
		return expect.Expectation{}, false
	}
	want := flow.Allowed
	if d.shared.asked[index].denied {
		want = flow.Denied
	}
	rule := d.shared.whys[d.shared.asked[index].why].Rule
	return expect.Expectation{
		Flow: asked, Want: want, Advisory: sent.GetAdvisory(), External: sent.GetExternal(), Witness: sent.GetWitness(),
		Policy: rule.Policy, Generation: rule.Generation, Why: rule.Why,
	}, true
}

// Unrealized says of which policies rules are meant, in words fit for the
// owner of a Pod in namespace, each once and sorted. Indices that d does not
// have are passed over.
func (d Demand) Unrealized(whys []uint32, namespace string) []string {
	var out []string
	for _, i := range whys {
		if int64(i) >= int64(len(d.Whys())) {
			continue
		}
		switch policy := d.Whys()[i].Rule.Policy; {
		case policy.Name == "":
			out = append(out, "connections that no policy restricts")
		case policy.Namespace != namespace:
			out = append(out, "a policy in another namespace")
		default:
			out = append(out, policy.String())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Excused returns the rules of d that are known not to be realized on node,
// for Pods of the namespace, as Assign.excused has them.
func (d Demand) Excused(known *deviation.Table, node, namespace string) []uint32 {
	if !known.Any(node) {
		return nil
	}
	var out []uint32
	for i, w := range d.Whys() {
		if w.Excusable() && known.Extent(node, w.Rule, namespace) >= w.Allows {
			out = append(out, uint32(i))
		}
	}
	return out
}

// Excusable reports whether a deviation of the rule would be of any use.
func (w Why) Excusable() bool { return w.Allows != deviation.None && w.Rule.Policy.Name != "" }

// Table makes each Demand once. It holds a Demand as long as anybody else
// does. The zero Table is not usable: see NewTable.
type Table struct {
	mu sync.Mutex
	// known is keyed by what appendKey makes of the expectations.
	known map[string]weak.Pointer[demand]
	// key is where that is made.
	key []byte
}

// NewTable returns a Table that holds nothing.
func NewTable() *Table { return &Table{known: map[string]weak.Pointer[demand]{}} }

// Of returns the Demand that asks for the expectations of a subject at ips.
// For one that is known it makes nothing.
func (t *Table) Of(expectations []expect.Expectation, ips []netip.Addr) (Demand, error) {
	if len(expectations) == 0 {
		return Demand{}, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.key = appendKey(t.key[:0], expectations, ips)
	if known := t.known[string(t.key)].Value(); known != nil {
		return Demand{known}, nil
	}
	message, made := newDemand(expectations, ips)
	description, err := hub.Describe(message)
	if err != nil {
		return Demand{}, err
	}
	made.description = description
	key, pointer := string(t.key), weak.Make(made)
	t.known[key] = pointer
	runtime.AddCleanup(made, func(key string) { t.forget(key, pointer) }, key)
	return Demand{made}, nil
}

// forget drops what is no longer held, unless it was made anew.
func (t *Table) forget(key string, pointer weak.Pointer[demand]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known[key] == pointer {
		delete(t.known, key)
	}
}

// appendKey appends what tells the demand of these expectations from others.
func appendKey(key []byte, expectations []expect.Expectation, ips []netip.Addr) []byte {
	text := func(s string) {
		key = binary.AppendUvarint(key, uint64(len(s)))
		key = append(key, s...)
	}
	address := func(a netip.Addr, own bool) {
		if own {
			a = unspecified(a)
		}
		raw := a.As16()
		key = append(key, flag(own), flag(a.Is4()))
		key = append(key, raw[:]...)
	}
	for _, e := range expectations {
		src, dst := ownEnd(e, ips)
		address(e.Flow.Src, src)
		address(e.Flow.Dst, dst)
		key = append(key, byte(e.Flow.Protocol), byte(e.Want), flag(e.Advisory), flag(e.External), flag(e.Witness))
		key = binary.AppendUvarint(key, uint64(e.Flow.Port))
		key = binary.AppendVarint(key, e.Generation)
		text(e.Policy.Namespace)
		text(e.Policy.Name)
		text(e.Why)
	}
	return key
}

func flag(set bool) byte {
	if set {
		return 1
	}
	return 0
}

// unspecified returns the unspecified address of a's family.
func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// ownEnd reports which end of the flow, at most one, is left out of what is
// sent, as it is the subject's own address.
func ownEnd(e expect.Expectation, ips []netip.Addr) (src, dst bool) {
	if e.Witness {
		return false, false
	}
	src = isOnly(e.Flow.Src, ips)
	return src, !src && isOnly(e.Flow.Dst, ips)
}

// newDemand returns the expectations as they are sent, each rule once and the
// subject's own address left out, and what the ledger keeps of them.
func newDemand(expectations []expect.Expectation, ips []netip.Addr) (*hubv1.Description, *demand) {
	message := &hubv1.Description{Expectations: make([]*hubv1.Expectation, len(expectations))}
	made := &demand{asked: make([]asked, len(expectations))}
	index := map[deviation.Rule]uint32{}
	for i, e := range expectations {
		rule := deviation.Rule{Policy: e.Policy, Generation: e.Generation, Why: e.Why}
		at, known := index[rule]
		if !known {
			at = uint32(len(made.whys)) //nolint:gosec // a subject has at most 256 flows
			index[rule] = at
			made.whys = append(made.whys, Why{Rule: rule})
			message.Whys = append(message.Whys, e.Why)
		}
		made.whys[at].add(e)
		sent := hubv1.FlowOf(e.Flow)
		src, dst := ownEnd(e, ips)
		switch {
		case src:
			sent.Src = nil
		case dst:
			sent.Dst = nil
		}
		made.asked[i] = asked{why: at, denied: e.Want == flow.Denied, own: src, v6: e.Flow.Src.Is6()}
		message.Expectations[i] = &hubv1.Expectation{
			Flow:     sent,
			Want:     hubv1.AnswerOf(e.Want),
			Advisory: e.Advisory,
			External: e.External,
			Why:      at,
			Witness:  e.Witness,
		}
	}
	return message, made
}

// add notes an expectation of the rule.
func (w *Why) add(e expect.Expectation) {
	switch {
	case e.Want != flow.Allowed:
	case e.Witness:
		w.Witnessed = true
	case e.Advisory:
		w.Allows = max(w.Allows, deviation.Advisory)
	default:
		w.Allows = deviation.Entire
	}
}

// isOnly reports whether addr is the only address of its family in ips, so
// that it can be told from the flow's other end.
func isOnly(addr netip.Addr, ips []netip.Addr) bool {
	is, family := false, 0
	for _, ip := range ips {
		if ip.Is4() == addr.Is4() {
			family++
		}
		is = is || ip == addr
	}
	return is && family == 1
}

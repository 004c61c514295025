// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// tracer asks what the integration bridge does with a packet.
type tracer interface {
	// Trace returns what `ofproto/trace` prints for it. An error is one of
	// asking: no later trace is worth it.
	Trace(ctx context.Context, packet string) (string, error)
}

// batch answers questions with the ports of one moment. What it learns of the
// network is kept for later batches.
type batch struct {
	tracer  tracer
	ports   *ports
	learned *learned
	// ended, if not nil, is told how each trace ended.
	ended func(end)
	// failed is why asking is over.
	failed error
	// controls are the outcomes of those packets that were sent to prove that
	// a way is open, by packet. They follow all that is to be proved.
	controls map[string]outcome
}

// suspicion is a verdict that may still need a control.
type suspicion struct {
	verdict flow.Verdict
	// proved, if not nil, proves the verdict or says what else it is.
	proved func(ctx context.Context) flow.Verdict
}

// answer answers all questions. The error is why vswitchd could not be asked.
func (b *batch) answer(ctx context.Context, questions []Question) ([]Answer, error) {
	b.controls = map[string]outcome{}
	suspicions := make([]suspicion, len(questions))
	answers := make([]Answer, len(questions))
	for i, q := range questions {
		answers[i].Routed, answers[i].Traced = true, true
		if err := q.Flow.Validate(); err != nil {
			answers[i].Verdict = inconclusive(err.Error())
			continue
		}
		if s, d := b.ports.ends(q.Flow.Src, q.Flow.Dst); s == nil && d == nil {
			answers[i] = Answer{Verdict: inconclusive(flow.NoRoute + ": neither end is on a logical port of this node")}
			continue
		}
		suspicions[i] = b.judge(ctx, q)
		answers[i].Verdict = suspicions[i].verdict
		if b.failed != nil {
			return nil, b.failed
		}
	}
	// Behind the traces of all of them: what is proved open now, was not empty
	// then.
	for i := range questions {
		if suspicions[i].proved != nil {
			answers[i].Verdict = suspicions[i].proved(ctx)
		}
		if b.failed != nil {
			return nil, b.failed
		}
		if answers[i].Verdict.Answer == flow.Inconclusive {
			b.learned.doubt(b.ports, questions[i].Flow)
		}
	}
	return answers, nil
}

// trace asks and reads. After a failure it asks no more.
func (b *batch) trace(ctx context.Context, packet string) outcome {
	if b.failed != nil {
		return outcome{why: b.failed.Error()}
	}
	text, err := b.tracer.Trace(ctx, packet)
	if err != nil {
		b.failed = err
		return outcome{why: err.Error()}
	}
	o := outcomeOf(text)
	if b.ended != nil {
		b.ended(o.end)
	}
	return o
}

// control asks once in a batch.
func (b *batch) control(ctx context.Context, packet string) outcome {
	o, ok := b.controls[packet]
	if !ok {
		o = b.trace(ctx, packet)
		b.controls[packet] = o
	}
	return o
}

// judge judges a flow of which at least one end is local.
func (b *batch) judge(ctx context.Context, q Question) suspicion {
	s, d := b.ports.ends(q.Flow.Src, q.Flow.Dst)
	switch {
	case s != nil && s.why != "":
		return unknown(s.why)
	case d != nil && d.why != "":
		return unknown(d.why)
	case s == d:
		return unknown("both ends are on the same logical port")
	case s == nil:
		return b.ingress(ctx, q.Flow, d)
	}
	return b.egress(ctx, q, s, d)
}

// egress judges what a local Pod sends, to another local one if d is not nil.
func (b *batch) egress(ctx context.Context, q Question, s, d *port) suspicion {
	w := b.fromPod(ctx, s, q.Flow)
	o := b.trace(ctx, first(w, q.Flow))
	if o.end == output {
		return b.leaves(q, d, o)
	}
	at, entry := o.place(), o.entry()
	why := o.why
	switch {
	case o.end == unclear:
	case !entry.known():
		return unknown(fmt.Sprintf("the bridge has no flows for interface %s", s.name))
	case at.datapath == entry.datapath && at.port == 0:
		return suspicion{proved: func(ctx context.Context) flow.Verdict { return b.proveEgress(ctx, q.Flow, w, entry) }}
	default:
		why = "dropped beyond the switch of the source: by a router, or for want of a way to the destination"
	}
	if d == nil || b.failed != nil {
		return unknown(why)
	}
	// Whatever became of it: it is Denied if the destination admits no such
	// packet wherever it comes from.
	elsewhere := b.ingress(ctx, q.Flow, d)
	if elsewhere.proved == nil {
		return unknown(why)
	}
	return elsewhere
}

// leaves judges a packet that is sent somewhere.
func (b *batch) leaves(q Question, d *port, o outcome) suspicion {
	switch {
	case o.destination:
		return unknown(flow.DestinationRewritten + ": " + o.sections[len(o.sections)-1].actions)
	case o.source && !q.External:
		return unknown(flow.SourceRewritten + ": " + o.sections[len(o.sections)-1].actions)
	case d != nil && !o.reaches(d):
		return unknown(fmt.Sprintf("%s, but the destination is at %d", o, d.ofport))
	case d != nil:
		return suspicion{verdict: allowed("output to interface " + d.name)}
	}
	for _, to := range o.outputs() {
		if b.ports.taken[int64(to)] {
			return unknown(fmt.Sprintf("%s, which is another Pod's", o))
		}
	}
	return suspicion{verdict: allowed(o.String())}
}

// proveEgress proves that a packet was dropped by the ACLs of the source: one
// that they do not judge leaves the source's switch on the same way.
func (b *batch) proveEgress(ctx context.Context, f flow.Flow, w way, entry keys) flow.Verdict {
	o := b.control(ctx, neighbourReply(w, f.Src, documentation(f.Dst)))
	at := o.place()
	if o.entry() == entry && (at.datapath != entry.datapath || at.port != 0) {
		return denied("dropped by the switch of the source")
	}
	return inconclusive("dropped by the switch of the source, as is what no policy judges: " + o.String())
}

// ingress judges what comes to a local Pod from elsewhere.
func (b *batch) ingress(ctx context.Context, f flow.Flow, d *port) suspicion {
	w, why := b.toPod(ctx, f, d)
	if why != "" {
		return unknown(why)
	}
	at := b.learned.keys[d.ground].keys
	o := b.trace(ctx, first(w, f))
	switch {
	case o.end == unclear:
		return unknown(o.why)
	case o.end == output && (o.source || o.destination):
		return unknown(flow.DestinationRewritten + ": " + o.sections[len(o.sections)-1].actions)
	case o.reaches(d):
		return suspicion{verdict: allowed("output to interface " + d.name)}
	case o.end == output:
		return unknown(fmt.Sprintf("%s, but the destination is at %d", o, d.ofport))
	case !o.entry().known():
		return unknown("the bridge has no flows for what comes from elsewhere")
	case o.place() != at:
		return unknown("dropped before it came to the logical port of the destination")
	}
	return suspicion{proved: func(ctx context.Context) flow.Verdict { return b.proveIngress(ctx, f, w, d) }}
}

// mostSiblings bounds the controls that are tried where there is no tunnel.
const mostSiblings = 4

// proveIngress proves that a packet was dropped by the ACLs of the
// destination: one that they do not judge is output to it.
func (b *batch) proveIngress(ctx context.Context, f flow.Flow, w way, d *port) flow.Verdict {
	verdict := denied("dropped by the logical port of the destination")
	var last outcome
	if w.key.known() {
		if last = b.control(ctx, neighbourReply(w, documentation(f.Src), f.Dst)); last.reaches(d) {
			return verdict
		}
		return inconclusive("dropped by the logical port of the destination, as is what no policy judges: " + last.String())
	}
	// What is routed is IP, so ask from the ports of the switch instead.
	mac := b.learned.routed[d.ground].mac
	tried := 0
	for _, s := range b.ports.siblings {
		if s == d || s.why != "" || mac == "" {
			continue
		}
		if tried++; tried > mostSiblings {
			break
		}
		from := way{in: s.ofport, from: b.routed(ctx, s).mac, to: mac}
		if last = b.control(ctx, neighbourReply(from, documentation(f.Src), f.Dst)); last.reaches(d) {
			return verdict
		}
	}
	if tried == 0 {
		return inconclusive("dropped by the logical port of the destination, and nothing else of its switch is here to prove that the port is reached")
	}
	return inconclusive("dropped by the logical port of the destination, as is what no policy judges: " + last.String())
}

// fromPod returns the way of a Pod's packet to the flow's destination.
func (b *batch) fromPod(ctx context.Context, s *port, f flow.Flow) way {
	routed := b.routed(ctx, s)
	w := way{in: s.ofport, from: routed.mac, to: b.peer(ctx, s, routed.mac, f)}
	if w.to == "" {
		w.to = routed.router
	}
	return w
}

// toPod returns the way of a packet from elsewhere to a local Pod, or why there
// is none that is known.
func (b *batch) toPod(ctx context.Context, f flow.Flow, d *port) (way, string) {
	at := b.keys(ctx, d)
	if !at.known() {
		return way{}, fmt.Sprintf("the bridge has no flows for interface %s", d.name)
	}
	routed := b.routed(ctx, d)
	switch {
	case b.ports.geneve != 0:
		return way{in: b.ports.geneve, key: at, from: stranger, to: routed.mac}, ""
	case len(b.ports.tunnels) > 0:
		return way{}, "what comes by tunnels of " + strings.Join(b.ports.tunnels, " and ") + " cannot be traced"
	case b.ports.node == nil || b.ports.node.ofport < 1:
		return way{}, "the node has neither a Geneve tunnel nor the interface " + nodePort
	}
	join := b.join(ctx, f.Dst)
	if join == "" {
		return way{}, "the router behind " + nodePort + " is not known"
	}
	return way{in: b.ports.node.ofport, from: b.ports.nodeMAC, to: join}, ""
}

func allowed(reason string) flow.Verdict {
	return flow.Verdict{Answer: flow.Allowed, Reason: trace.Clean(reason)}
}

func denied(reason string) flow.Verdict { return flow.Verdict{Answer: flow.Denied, Reason: reason} }

// inconclusive returns a verdict with a reason that may have a trace's words.
func inconclusive(reason string) flow.Verdict {
	return flow.Verdict{Answer: flow.Inconclusive, Reason: trace.Clean(reason)}
}

func unknown(reason string) suspicion { return suspicion{verdict: inconclusive(reason)} }

// documentation returns an address that no route or ACL names.
func documentation(of netip.Addr) netip.Addr {
	if of.Is4() {
		return netip.AddrFrom4([4]byte{192, 0, 2, 1})
	}
	return netip.MustParseAddr("2001:db8::1")
}

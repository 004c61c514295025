// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/policygate/policygate/test/e2e/chaos/packet"
)

const (
	// answerWait is for how long a packet's answer is awaited: an idle machine needs
	// 1 ms, one with two processors and a hundred Pods was seen to need 200.
	answerWait = 700 * time.Millisecond
	// again is the pause before a flow that was to pass is asked again.
	again = 200 * time.Millisecond
	// tries is how often one that is not answered is asked.
	tries = 4
)

// observer looks at gates from outside.
type observer struct {
	record   *record
	places   *places
	evidence *evidence
	variant  Variant
	// outside is the vantage outside of the cluster.
	outside *packet.Vantage
	// blinks is for how long the engine may refuse by itself.
	blinks time.Duration
	client kubernetes.Interface

	work sync.WaitGroup

	mu sync.Mutex // guards let
	// let are Pods to which a stranger was let in while their gates were shut.
	let map[types.UID]bool
}

// see takes note of a Pod's state and sets off the looks that it calls for.
func (o *observer) see(ctx context.Context, pod *corev1.Pod, deleted bool) {
	c := o.record.see(pod, deleted, time.Now())
	if c.early != "" {
		o.wrong(ctx, c.life.Opening(), c.early, nil, pod.Spec.NodeName)
	}
	if ip := c.life.IP(); ip.IsValid() && (c.gone || c.addressed) {
		// The address is nobody's now, or another's than it was.
		o.places.close(ip)
	}
	if c.life.RoleOf() == Stranger {
		return
	}
	switch {
	case c.opened:
		o.work.Go(func() { o.observe(ctx, c.life) })
	case c.addressed && c.life.Gated():
		o.work.Go(func() { o.before(ctx, c.life) })
	}
	if c.gone && c.life.Done() && !deleted {
		o.work.Go(func() { o.dialled(ctx, c.life) })
	}
}

// before lets a stranger try while the gate is shut.
func (o *observer) before(ctx context.Context, l Life) {
	from, ok := elsewhere(l, o.strangers("a"))
	if !ok {
		return
	}
	look := o.ask(ctx, Look{From: from.Party(), To: l.Party(), Port: servedPort})
	now := o.record.life(l.Pod.UID)
	if look.Got == packet.Admitted && !now.Open() && now.Gone.IsZero() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.let[l.Pod.UID] = true
	}
}

// observe looks at an opening until nothing can be said of it any more.
func (o *observer) observe(ctx context.Context, l Life) {
	opening := l.Opening()
	start := time.Now()
	for n, at := range rounds() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(start.Add(at))):
		}
		now := o.record.life(l.Pod.UID)
		if !now.Gone.IsZero() || now.Opened != l.Opened || o.record.over(opening, time.Now()) {
			return
		}
		intent, settled := o.record.intent(l.Pod.Namespace)
		if !settled {
			return
		}
		looks := plan(now, surroundings{
			intent: intent, strangers: o.strangers("a"),
			peers:    o.record.pods(func(p Life) bool { return p.Pod.Namespace == l.Pod.Namespace && p.Gone.IsZero() }),
			outsider: Party{Name: "outside of the cluster", Role: Stranger, IP: o.outside.Local()},
		})
		o.round(ctx, opening, looks, n == 0)
	}
}

// round asks all flows at once and judges the answers.
func (o *observer) round(ctx context.Context, opening Opening, looks []Look, first bool) {
	var all sync.WaitGroup
	refused := make([]bool, len(looks))
	for i, l := range looks {
		all.Go(func() {
			l = o.ask(ctx, l)
			if ctx.Err() != nil {
				return
			}
			outcome := o.judge(ctx, opening, l)
			refused[i] = outcome == Proven && !l.Want && l.From.Role == Stranger
		})
	}
	all.Wait()
	if !first {
		return
	}
	o.mu.Lock()
	let := o.let[types.UID(opening.UID)]
	o.mu.Unlock()
	for _, r := range refused {
		if let && r {
			o.record.tell(func(r *Report) { r.Retried++ })
			return
		}
	}
}

// judge says what an answer means, and reports it if the gate opened wrongly.
func (o *observer) judge(ctx context.Context, opening Opening, l Look) Outcome {
	good := (l.Got == packet.Admitted) == l.Want
	saved := ""
	if !good {
		if outcome, _ := o.record.past().Judge(opening, l, o.blinks); outcome == Wrong && !l.Want {
			// The rules as they are, whatever becomes known yet.
			saved = o.evidence.suspect(ctx, l.From.Node, l.To.Node)
		}
		// The end of a Pod may become known late.
		if !pause(ctx, time.Until(l.Answered.Add(settleEnd))) {
			return Void
		}
		l = o.hindsight(ctx, l)
		if l.Want && l.Got == packet.Silent && l.Unproven == "" && !o.connected(ctx, l) {
			l.Unproven = "the stranger does not get to anybody there"
		}
	}
	if good && !l.Want && l.Unproven != "" {
		o.record.tell(func(r *Report) { r.Void[l.Got.String()+": "+l.Unproven]++ })
		return Void
	}
	history := o.record.past()
	outcome, why := history.Judge(opening, l, o.blinks)
	// Nobody answered: was there still somebody?
	for until := l.Answered.Add(lateEnd); outcome == Wrong && l.Got == packet.Silent && time.Now().Before(until); {
		if !pause(ctx, time.Second) {
			return Void
		}
		l = o.hindsight(ctx, l)
		history = o.record.past()
		outcome, why = history.Judge(opening, l, o.blinks)
	}
	o.record.tell(func(r *Report) {
		switch outcome {
		case Proven:
			r.Proven++
			if !l.Want {
				r.Refusals++
			}
		case Void:
			r.Void[l.Got.String()+": "+why]++
		case Blinked:
			r.Blinks++
		case Wrong:
		}
	})
	if outcome == Wrong {
		if saved != "" {
			saved = "; the rules at that moment: " + saved
		}
		o.wrong(ctx, opening, describe(l)+saved, history.Near(l.Answered), l.From.Node, l.To.Node)
	} else {
		o.evidence.drop(saved)
	}
	return outcome
}

// hindsight adds to a look what has become known since: who has gone, and
// whether an address is another Pod's by now.
func (o *observer) hindsight(ctx context.Context, l Look) Look {
	for _, p := range []*Party{&l.From, &l.To} {
		if p.Node == "" || p == &l.From && l.Dialled {
			continue // not a Pod; and a client's end is what tells of its dials
		}
		owners := o.record.pods(func(owner Life) bool {
			return owner.Party().Name == p.Name || slices.ContainsFunc(owner.Pod.Status.PodIPs, func(ip corev1.PodIP) bool {
				return ip.IP == p.IP.String()
			})
		})
		for _, owner := range owners {
			switch {
			case owner.Party().Name == p.Name:
				p.Gone = earliest(owner.going(), o.finished(ctx, owner.Pod))
				if owner.IP() != p.IP {
					l.Unproven = "the Pod has got another address"
				}
			case owner.Addressed.After(l.Sent) || owner.Gone.IsZero():
				l.Unproven = "the address has become another Pod's"
			case l.Want && l.Got == packet.Silent:
				l.Unproven = "the address was another Pod's, whom its node may still send to"
			}
		}
	}
	return l
}

// finished asks when a Pod's own container has ended: on a busy machine the
// observer's watch can be seconds late. Zero if it has not, or who knows.
func (o *observer) finished(ctx context.Context, p *corev1.Pod) time.Time {
	calling, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	now, err := o.client.CoreV1().Pods(p.Namespace).Get(calling, p.Name, metav1.GetOptions{})
	if err != nil || now.UID != p.UID {
		return time.Time{}
	}
	return finished(now)
}

func describe(l Look) string {
	want := "is to be refused"
	if l.Want {
		want = "is to be let through"
	}
	text := fmt.Sprintf("%s to %s port %d %s and was %s (%s), sent %s, known %s",
		l.From, l.To, l.Port, want, l.Got, l.Detail, l.Sent.Format(clock), l.Answered.Format(clock))
	if l.Recovered > 0 {
		text += fmt.Sprintf(", let through %v later", l.Recovered.Round(time.Millisecond))
	}
	return text
}

// clock is how times of day are printed.
const clock = "15:04:05.000"

// wrong reports an opening that was wrong, once.
func (o *observer) wrong(ctx context.Context, opening Opening, what string, near []Window, nodes ...string) {
	key := opening.UID + opening.At.String()
	o.record.mu.Lock()
	known := o.record.wrong[key]
	o.record.wrong[key] = true
	o.record.mu.Unlock()
	if known {
		return
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s/%s (%s, %s, %s on %s) opened %s, address %s, condition %s of %s %q: %s",
		opening.Namespace, opening.Pod, opening.Role, opening.UID, opening.IP, opening.Node,
		opening.At.Format(clock), opening.Addressed.Format(clock), opening.Reason, opening.Stamped.Format(time.TimeOnly), opening.Message, what)
	for _, w := range near {
		fmt.Fprintf(&text, "; fault %q of %s from %s", w.Kind, w.Target, w.Begin.Format(clock))
		if !w.End.IsZero() {
			fmt.Fprintf(&text, " to %s", w.End.Format(clock))
		}
	}
	saved := o.evidence.save(ctx, "wrong", text.String(), nodes...)
	o.record.tell(func(r *Report) { r.Wrong = append(r.Wrong, text.String()+"; saved in "+saved) })
}

// strangers returns the living strangers of that name's kind, see newStranger.
func (o *observer) strangers(kind string) []Life {
	return o.record.pods(func(l Life) bool {
		return l.RoleOf() == Stranger && l.Pod.Labels[unitLabel] == kind && l.Gone.IsZero() && l.IP().IsValid() && !l.Running().IsZero()
	})
}

// ask sends what a look needs, and fills in what came of it.
func (o *observer) ask(ctx context.Context, l Look) Look {
	l.Sent = time.Now()
	vantage, err := o.vantage(ctx, l.From)
	if err != nil {
		l.Answered, l.Unproven = time.Now(), "a Pod's network namespace is not there"
		return l
	}
	to := netip.AddrPortFrom(l.To.IP, l.Port)
	if !l.Want {
		answer, err := vantage.Ask(ctx, to, answerWait)
		l.Answered, l.Got, l.Detail = time.Now(), answer.Verdict, answer.Detail
		if err != nil {
			l.Unproven = "a packet could not be sent"
		} else if l.Got != packet.Admitted && l.From.Role == Stranger && !o.passes(ctx, vantage, l) {
			l.Unproven = "the stranger does not get to anybody there"
		}
		return l
	}
	for n := 0; n < tries || l.Got == packet.Refused && time.Since(l.Answered) < blink; n++ {
		answer, err := vantage.Ask(ctx, to, answerWait)
		switch {
		case err != nil:
			l.Answered, l.Unproven = time.Now(), "a packet could not be sent"
			return l
		case answer.Verdict == packet.Admitted && l.Got == packet.Refused:
			l.Recovered = time.Since(l.Answered)
			return l
		case answer.Verdict == packet.Silent && l.Got == packet.Refused:
		case l.Got != packet.Refused:
			l.Answered, l.Got, l.Detail = time.Now(), answer.Verdict, answer.Detail
		}
		if l.Got == packet.Admitted {
			return l
		}
		select {
		case <-ctx.Done():
			return l
		case <-time.After(again):
		}
	}
	return l
}

// connected says whether the stranger of a flow that was not answered, if there
// is one, is where it was thought to be: its node may have rebooted while nobody
// could tell.
func (o *observer) connected(ctx context.Context, l Look) bool {
	stranger, other := l.From, l.To
	if l.From.Role != Stranger {
		stranger, other = l.To, l.From
	}
	if stranger.Role != Stranger || stranger.Node == "" {
		return true
	}
	vantage, err := o.vantage(ctx, stranger)
	return err == nil && o.passes(ctx, vantage, Look{From: stranger, To: other})
}

// passes says whether a stranger who was refused gets to a Pod beside, which
// no policy concerns.
func (o *observer) passes(ctx context.Context, from *packet.Vantage, l Look) bool {
	if l.From.Node == "" && !o.variant.outsidersPass() {
		return true
	}
	for _, beside := range o.strangers("b") {
		if beside.Pod.Spec.NodeName != l.To.Node {
			continue
		}
		for range tries {
			answer, err := from.Ask(ctx, netip.AddrPortFrom(beside.IP(), otherPort), answerWait)
			if err == nil && answer.Verdict == packet.Admitted {
				return true
			}
		}
	}
	return false
}

func (o *observer) vantage(ctx context.Context, p Party) (*packet.Vantage, error) {
	if p.Node == "" {
		return o.outside, nil
	}
	return o.places.vantage(ctx, p.Node, p.IP)
}

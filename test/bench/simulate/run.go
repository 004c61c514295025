// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/bench/fleet"
	"github.com/policygate/policygate/test/bench/replica"
	"github.com/policygate/policygate/test/bench/store"
)

const (
	// quick is how long a Pod may wait so that it costs one write in all.
	quick = 3 * time.Second
	// messagesPerSecond is the manager's budget of writes.
	messagesPerSecond = 20
	// messageInterval is how often one Pod's message is written at most.
	messageInterval = 10 * time.Second
	// echoEvery is how often the bare round trip is measured.
	echoEvery = 10 * time.Millisecond
	// maxNamed bounds what is named of many that are alike.
	maxNamed = 5
)

// Outcome is what became of the gated Pods of a run, and what was measured.
type Outcome struct {
	// Created, Opened and Left count gated Pods; Left are those that the end
	// of the run cut short.
	Created, Opened int
	// Strangers and Peers are the flows that the truth was held against, and
	// Beyond the Pods that demand more than is asked.
	Strangers, Peers, Beyond, Unjudged int
	// Adds is what a replica adds between the last node's report and the
	// release, once the barrier has passed; Behind counts the releases for
	// which the barrier came last.
	Adds   Distribution
	Behind int
	// Assigns is from the event with a Pod's addresses to the first
	// assignment; Nodes how many were assigned a Pod.
	Assigns Distribution
	Nodes   float64
	// Seen is from the last report to the first release as agents see it, where
	// no barrier came last, and Bare the round trip of an echo.
	Seen, Bare Distribution
	// Total is from a Pod's address to its open gate.
	Total Distribution
	// Resident and Peak are bytes of the largest replica.
	Resident, Peak uint64
	// Cores are the processors that a replica used, and Rest those of this
	// process: of agents, their kernels and the driver.
	Cores, Rest float64
	// CPU is a replica's processor time per Pod, and Bytes what it sent to
	// agents per Pod.
	CPU   time.Duration
	Bytes uint64
	// Lists are the LISTs per second of the kind that was listed most often.
	Lists float64
	// Writes counts quick Pods by how many patches of the agents' and the
	// manager's changed one, and Requests by how many there were. Messages are
	// the manager's.
	Writes, Requests map[int]int
	Messages         int
	// WrongFlows are the flows that kernels treated otherwise than they must
	// when a gate opened.
	WrongFlows int
	// Wrong is what must not be, those flows included.
	Wrong []string
}

// outcome is an Outcome in the making.
type outcome struct {
	Outcome
	passages []*passage
	messages []time.Time
	gates    []replica.Gate
	waited   []fleet.Waited
	// behind are the Pods for which a barrier came last.
	behind map[string]bool
}

// stream has gated Pods created at a rate until ctx ends, and does what the
// shape's users do.
func (c *cluster) stream(ctx context.Context, s Shape, rate float64, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	var disturbing sync.WaitGroup
	defer disturbing.Wait()
	if s.disturb != nil {
		disturbing.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 2))
			for sleep(ctx, s.often) {
				s.disturb(c, rng)
			}
		})
	}
	step := time.Duration(float64(time.Second) / rate)
	count := 1
	if s.every > 0 {
		count = max(int(rate*s.every.Seconds()), 1)
		step = s.every
	}
	// By the clock, so that a driver which is late catches up.
	for next := time.Now(); ; next = next.Add(step) {
		if !sleep(ctx, time.Until(next)) {
			return
		}
		for range count {
			c.pods.run(context.WithoutCancel(ctx), s.next(c, rng), rng)
		}
	}
}

// collect adds to o what has come to be known since the last call.
func (c *cluster) collect(ctx context.Context, o *outcome) error {
	var errs []error
	for _, r := range c.running() {
		told, err := r.Tell(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		o.gates = append(o.gates, told.Gates...)
	}
	passages, messages := c.pods.take()
	o.passages, o.messages = append(o.passages, passages...), append(o.messages, messages...)
	o.waited = append(o.waited, c.fleet.Waited()...)
	return errors.Join(errs...)
}

// sum makes figures of what was collected.
func (o *outcome) sum(patience time.Duration) {
	var adds, assigns, seen, total []time.Duration
	o.behind = map[string]bool{}
	nodes := 0
	for _, g := range o.gates {
		last := g.Confirmed
		if g.Passed.After(last) {
			last = g.Passed
			o.behind[g.UID] = true
			o.Behind++
		}
		if !g.Confirmed.IsZero() {
			adds = append(adds, g.Released.Sub(last))
		}
		if !g.Assigned.IsZero() && !g.Addressed.IsZero() {
			assigns = append(assigns, g.Assigned.Sub(g.Addressed))
		}
		nodes += g.Nodes
	}
	for _, w := range o.waited {
		if !o.behind[w.UID] {
			seen = append(seen, w.Released.Sub(w.Reported))
		}
	}
	o.Writes, o.Requests = map[int]int{}, map[int]int{}
	for _, x := range o.passages {
		o.Created++
		o.judge(x, patience)
		if x.opened.IsZero() {
			continue
		}
		o.Opened++
		total = append(total, x.opened.Sub(x.addressed))
		if x.opened.Sub(x.addressed) < quick {
			o.Writes[x.writes+x.messages]++
			o.Requests[x.requests+x.messages]++
		}
	}
	for n, pods := range o.Writes {
		if n != 1 {
			o.Wrong = append(o.Wrong, fmt.Sprintf("%d Pods that were confirmed within %s had %d writes of their status: want 1", pods, quick, n))
		}
	}
	o.Messages = len(o.messages)
	if d := mostWithin(o.messages, time.Second); d > 2*messagesPerSecond {
		o.Wrong = append(o.Wrong, fmt.Sprintf("messages: %d were written within a second: want at most %d and a burst as large", d, messagesPerSecond))
	}
	o.Adds, o.Assigns, o.Seen, o.Total = distribution(adds), distribution(assigns), distribution(seen), distribution(total)
	o.Nodes = ratio(float64(nodes), float64(len(o.gates)))
}

// judge adds what the truth says of one Pod.
func (o *outcome) judge(x *passage, patience time.Duration) {
	if x.opened.IsZero() {
		o.Wrong = append(o.Wrong, fmt.Sprintf("pod %s was not opened within %s", x.uid, patience))
		return
	}
	o.Strangers += x.opening.Strangers
	o.Peers += x.opening.Peers
	if x.opening.Beyond {
		o.Beyond++
	}
	if x.opening.Unjudged != "" {
		o.Unjudged++
	}
	// One each ten seconds, and one each that says that the timeout has passed
	// or the address has changed.
	if most := 3 + int(x.opened.Sub(x.addressed)/messageInterval); x.messages > most {
		o.Wrong = append(o.Wrong, fmt.Sprintf("pod %s had %d messages: want at most %d", x.uid, x.messages, most))
	}
	if x.reason == v1alpha1.ReasonPartiallyConfirmed {
		return // and says so
	}
	o.WrongFlows += len(x.opening.Wrong)
	o.Wrong = append(o.Wrong, x.opening.Wrong...)
}

// mostWithin returns the greatest number of moments within a span of time.
func mostWithin(moments []time.Time, span time.Duration) int {
	most, from := 0, 0
	for to := range moments {
		for moments[to].Sub(moments[from]) >= span {
			from++
		}
		most = max(most, to-from+1)
	}
	return most
}

// measured runs do and returns what came of the Pods and what it cost.
func (c *cluster) measured(ctx context.Context, do func(context.Context, *outcome) error) (*outcome, error) {
	o := &outcome{}
	if err := c.collect(ctx, o); err != nil {
		return nil, err
	}
	*o = outcome{} // what was before does not count
	before, err := c.costs()
	if err != nil {
		return nil, err
	}
	own, err := replica.UsageOf(os.Getpid())
	if err != nil {
		return nil, err
	}
	echoing, enough := context.WithCancel(ctx)
	defer enough()
	var bare []time.Duration
	var echo sync.WaitGroup
	var echoErr error
	echo.Go(func() {
		bare, echoErr = replica.RoundTrips(echoing, c.running()[c.steady].Echo(), serverName, c.identity.roots, echoEvery)
	})
	began := time.Now()
	err = do(ctx, o)
	enough()
	echo.Wait()
	c.pods.running.Wait()
	took := time.Since(began)
	if err := errors.Join(err, c.collect(ctx, o)); err != nil {
		return nil, err
	}
	after, err := c.costs()
	if err != nil {
		return nil, err
	}
	o.sum(c.options.Patience)
	o.Bare = distribution(bare)
	if len(bare) == 0 && echoErr != nil {
		return nil, echoErr
	}
	o.cost(before, after, took)
	now, err := replica.UsageOf(os.Getpid())
	if err != nil {
		return nil, err
	}
	o.Rest = (now.CPU - own.CPU).Seconds() / took.Seconds()
	return o, nil
}

// cost is what a replica has taken.
type cost struct {
	usage replica.Usage
	bytes uint64
	lists map[store.Kind]int
}

// costs returns what each replica has taken by now, by its name. What it sent is
// as of the last collect.
func (c *cluster) costs() (map[string]cost, error) {
	out := map[string]cost{}
	for _, r := range c.running() {
		usage, err := r.Usage()
		if err != nil {
			return nil, err
		}
		out[r.Name()] = cost{usage: usage, bytes: r.Sent(), lists: map[store.Kind]int{
			store.NetworkPolicies: r.Lists(store.NetworkPolicies), store.Namespaces: r.Lists(store.Namespaces),
		}}
	}
	return out, nil
}

// cost makes figures of what the replicas took that were there all the time.
func (o *outcome) cost(before, after map[string]cost, took time.Duration) {
	replicas := 0
	for name, b := range before {
		a, ok := after[name]
		if !ok {
			continue
		}
		replicas++
		o.Resident, o.Peak = max(o.Resident, a.usage.Resident), max(o.Peak, a.usage.Peak)
		o.CPU += a.usage.CPU - b.usage.CPU
		o.Bytes += a.bytes - b.bytes
		for kind, lists := range a.lists {
			n := lists - b.lists[kind]
			o.Lists = max(o.Lists, float64(n)/took.Seconds())
			// One each second, and one at either end.
			if float64(n) > took.Seconds()+2 {
				o.Wrong = append(o.Wrong, fmt.Sprintf("%s: %d LISTs of %s in %s: want at most one a second", name, n, kind, took.Round(time.Millisecond)))
			}
		}
	}
	if replicas > 0 {
		o.Cores = o.CPU.Seconds() / took.Seconds() / float64(replicas)
	}
	if pods := o.Created * replicas; pods > 0 {
		o.CPU /= time.Duration(pods)
		o.Bytes /= uint64(pods)
	}
}

// several says how many Pods had how many.
func several(counts map[int]int) string {
	out := []string{fmt.Sprintf("%d with 1", counts[1])}
	for _, n := range slices.Sorted(maps.Keys(counts)) {
		if n != 1 {
			out = append(out, fmt.Sprintf("%d with %d", counts[n], n))
		}
	}
	return strings.Join(out, ", ")
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	testclock "k8s.io/utils/clock/testing"

	"github.com/policygate/policygate/api/flow"
)

// process is a vswitchd that answers as a recorded node did.
type process struct {
	*node
	id     string
	clock  *testclock.FakeClock
	takes  time.Duration
	waits  chan wait
	mu     sync.Mutex
	closed bool
}

// wait is what becomes of a wait for the revalidators.
type wait struct {
	takes time.Duration
	err   error
}

func (p *process) ID() string { return p.id }

func (p *process) Trace(ctx context.Context, bridge, packet string) (string, error) {
	if bridge != "br-int" {
		return "", errors.New("bridge " + bridge)
	}
	p.clock.Step(p.takes)
	return p.node.Trace(ctx, packet)
}

func (p *process) WaitRevalidators(ctx context.Context) error {
	select {
	case w := <-p.waits:
		p.clock.Step(w.takes)
		return w.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *process) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}

// world is a Dataplane with all of its edges.
type world struct {
	*Dataplane
	clock   *testclock.FakeClock
	vswitch *process
	state   State
	unknown error
	away    error
	told    chan string
}

func (w *world) State() (State, error) { return w.state, w.unknown }

func newWorld(t *testing.T) *world {
	clock := testclock.NewFakeClock(time.Unix(1000, 0))
	w := &world{
		clock: clock, told: make(chan string, 16),
		vswitch: &process{node: replay(t, "pair"), id: "1", clock: clock, waits: make(chan wait)},
		state:   State{Session: 1, Version: 1, Bridge: true, Acknowledged: "7", Interfaces: interfacesOf("pair")},
	}
	w.Dataplane = New(Options{
		Connect:  func(context.Context) (Session, error) { return w.vswitch, w.away },
		Database: w, Routes: joinRoutes{}, Clock: clock, Registerer: prometheus.NewRegistry(),
	})
	t.Cleanup(w.Close)
	ctx, cancel := context.WithCancel(context.Background())
	watched := make(chan struct{})
	go func() {
		w.Watch(ctx, func(source string) { w.told <- source })
		close(watched)
	}()
	for w.watched() == 0 {
		time.Sleep(time.Millisecond)
	}
	t.Cleanup(func() { cancel(); <-watched })
	return w
}

// watched returns how many watch.
func (w *world) watched() int {
	w.watching.Lock()
	defer w.watching.Unlock()
	return len(w.watchers)
}

// ask answers questions on a look of its own.
func (w *world) ask(t *testing.T, questions ...string) (answers []string, rewrites uint64) {
	t.Helper()
	look, err := w.Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all []Question
	for _, q := range questions {
		all = append(all, question(t, q))
	}
	given, err := look.Together(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range given {
		answers = append(answers, a.Verdict.String())
	}
	return answers, look.Rewrites()
}

// cycle lets waits for the revalidators end, and waits until that was told.
func (w *world) cycle(waits ...wait) {
	for _, one := range waits {
		w.vswitch.waits <- one
	}
	<-w.told
}

const (
	admitted = "tcp 10.16.0.6 10.16.0.5 80"
	refused  = "tcp 10.16.0.6 10.16.0.5 81"
)

func want(t *testing.T, got []string, beginnings ...string) {
	t.Helper()
	for i, b := range beginnings {
		if !strings.HasPrefix(got[i], b) {
			t.Errorf("answer %d: %s, want %s", i, got[i], b)
		}
	}
}

const (
	newAllowed = "inconclusive (allowed, but the flow cache may still hold what was before)"
	newDenied  = "inconclusive (denied, but the flow cache may still hold what was before)"
)

func TestAnAnswerCountsWhenTheFlowCacheIsFresh(t *testing.T) {
	w := newWorld(t)
	got, _ := w.ask(t, admitted, refused)
	want(t, got, newAllowed, newDenied)
	w.cycle(wait{takes: 500 * time.Millisecond})
	got, _ = w.ask(t, admitted, refused)
	want(t, got, "allowed", "denied")
	// It goes on to count, without another wait.
	got, _ = w.ask(t, admitted, refused)
	want(t, got, "allowed", "denied")
}

func TestAShortOrLongWaitMayHaveEndedADumpThatHadBegunBefore(t *testing.T) {
	for name, tc := range map[string][]wait{
		"short": {{takes: 399 * time.Millisecond}, {takes: time.Millisecond}},
		"long":  {{takes: 601 * time.Millisecond}, {takes: 601 * time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.ask(t, admitted)
			w.vswitch.waits <- tc[0]
			got, _ := w.ask(t, admitted)
			want(t, got, newAllowed)
			w.cycle(tc[1])
			got, _ = w.ask(t, admitted)
			want(t, got, "allowed")
		})
	}
}

func TestAnAnswerThatChangesIsNewAgain(t *testing.T) {
	w := newWorld(t)
	w.ask(t, admitted)
	w.cycle(wait{takes: 500 * time.Millisecond})
	_, before := w.ask(t, admitted)
	allows := w.vswitch.traces
	w.vswitch.node = replay(t, "pair")
	for packet := range allows {
		if strings.HasPrefix(packet, "tcp,in_port=1,tun_id=0x2") {
			w.vswitch.traces[packet] = recorded(t, "ingress-denied")
		}
	}
	got, rewrites := w.ask(t, admitted)
	want(t, got, newDenied)
	if rewrites != before+1 {
		t.Errorf("%d rewrites, want %d", rewrites, before+1)
	}
	w.cycle(wait{takes: 500 * time.Millisecond})
	got, _ = w.ask(t, admitted)
	want(t, got, "denied")
}

// A wait that was under way when an answer came up says nothing of it.
func TestAnAnswerNeedsACycleThatBeganAfterIt(t *testing.T) {
	w := newWorld(t)
	w.ask(t, admitted)
	for w.cycles.mark() == 0 {
		time.Sleep(time.Millisecond)
	}
	w.ask(t, refused)
	w.cycle(wait{takes: 500 * time.Millisecond})
	got, _ := w.ask(t, admitted, refused)
	want(t, got, "allowed", newDenied)
	w.cycle(wait{takes: 500 * time.Millisecond})
	got, _ = w.ask(t, admitted, refused)
	want(t, got, "allowed", "denied")
}

func TestSeveralDatapathsAreWaitedForByTheClock(t *testing.T) {
	w := newWorld(t)
	w.ask(t, admitted)
	w.vswitch.waits <- wait{err: ErrSeveralDatapaths}
	for !w.clock.HasWaiters() {
		time.Sleep(time.Millisecond)
	}
	got, _ := w.ask(t, admitted)
	want(t, got, newAllowed)
	w.clock.Step(severalTake)
	<-w.told
	got, _ = w.ask(t, admitted)
	want(t, got, "allowed")
}

func TestAWaitThatFailsProvesNothing(t *testing.T) {
	w := newWorld(t)
	w.ask(t, admitted)
	w.vswitch.waits <- wait{takes: 500 * time.Millisecond, err: errors.New("the connection broke")}
	for {
		w.cycles.mu.Lock()
		running := w.cycles.running
		w.cycles.mu.Unlock()
		if !running {
			break
		}
		time.Sleep(time.Millisecond)
	}
	got, _ := w.ask(t, admitted)
	want(t, got, newAllowed)
	w.cycle(wait{takes: 500 * time.Millisecond})
	got, _ = w.ask(t, admitted)
	want(t, got, "allowed")
}

func TestWhatIsRememberedIsForgotten(t *testing.T) {
	for name, tc := range map[string]struct {
		change   func(*world)
		want     string
		rewrites uint64
	}{
		"with another process": {func(w *world) {
			w.vswitch = &process{node: w.vswitch.node, id: "2", clock: w.clock, waits: make(chan wait)}
			w.hangUp()
		}, newAllowed, 0},
		"with another connection to the database": {func(w *world) { w.state.Session, w.state.Version = 2, 2 }, newAllowed, 0},
		"with the port's row": {func(w *world) {
			w.state.Version++
			w.state.Interfaces = interfacesOf("pair")
			w.state.Interfaces[2].UUID = "new"
		}, newAllowed, 1},
		"not with another port's row": {func(w *world) {
			w.state.Version++
			w.state.Interfaces = interfacesOf("pair")
			w.state.Interfaces[4].UUID = "new"
		}, "allowed", 1},
		"not with an acknowledgement": {func(w *world) { w.state.Version, w.state.Acknowledged = 2, "8" }, "allowed", 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.ask(t, admitted)
			w.cycle(wait{takes: 500 * time.Millisecond})
			got, before := w.ask(t, admitted)
			want(t, got, "allowed")
			tc.change(w)
			got, rewrites := w.ask(t, admitted)
			want(t, got, tc.want)
			if rewrites != before+tc.rewrites {
				t.Errorf("%d rewrites, want %d", rewrites, before+tc.rewrites)
			}
		})
	}
}

func TestAProcessThatEndsFailsTheLook(t *testing.T) {
	w := newWorld(t)
	w.ask(t, admitted)
	w.cycle(wait{takes: 500 * time.Millisecond})
	look, err := w.Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	old := w.vswitch
	old.fails = "tcp"
	if _, err := look.Together(t.Context(), []Question{question(t, admitted)}); err == nil || !old.closed {
		t.Fatalf("error %v, and closed is %t", err, old.closed)
	}
	w.away = errors.New("no pidfile")
	if _, err := w.Look(t.Context()); err == nil || !strings.Contains(err.Error(), "no pidfile") {
		t.Errorf("error %v while it is away", err)
	}
	// The next one has its flows, but nobody knows of its cache.
	w.away = nil
	w.vswitch = &process{node: replay(t, "pair"), id: "2", clock: w.clock, waits: make(chan wait)}
	got, _ := w.ask(t, admitted)
	want(t, got, newAllowed)
}

func TestPortsThatKeepChangingAreNoMoment(t *testing.T) {
	w := newWorld(t)
	look, err := w.Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.options.Database = changing{w}
	if _, err := look.Together(t.Context(), []Question{question(t, admitted)}); !errors.Is(err, ErrUnsettled) {
		t.Errorf("error %v, want ErrUnsettled", err)
	}
}

// changing is a database in which the port's row changes with each look.
type changing struct{ *world }

func (c changing) State() (State, error) {
	c.state.Version++
	c.state.Interfaces = interfacesOf("pair")
	c.state.Interfaces[2].UUID = strings.Repeat("x", int(c.state.Version))
	return c.state, nil
}

func TestADatabaseThatIsNotInSyncFailsTheLook(t *testing.T) {
	w := newWorld(t)
	w.unknown = errors.New("not connected")
	if _, err := w.Look(t.Context()); err == nil || !strings.Contains(err.Error(), "not connected") {
		t.Errorf("error %v", err)
	}
	if !w.Local(netip.MustParseAddr("192.0.2.1")) {
		t.Errorf("an address is known not to be local")
	}
	w.unknown = nil
	if w.Local(netip.MustParseAddr("192.0.2.1")) || !w.Local(netip.MustParseAddr("fd00::5")) {
		t.Errorf("local addresses are not told from others")
	}
}

func TestTracesTakeAtMostTheirShareOfTheTime(t *testing.T) {
	clock := testclock.NewFakeClock(time.Unix(1000, 0))
	b := newBudget(clock)
	spent := func(d time.Duration) {
		t.Helper()
		if short := b.short(); short != 0 {
			t.Fatalf("there is nothing left for %s", short)
		}
		b.charge(d)
	}
	spent(200 * time.Millisecond)
	spent(50 * time.Millisecond)
	if short := b.short(); short == 0 {
		t.Error("there is something left of 250 ms that were taken")
	}
	clock.Step(time.Second)
	spent(50 * time.Millisecond) // one twentieth of it
	if short := b.short(); short == 0 || short > 2*time.Millisecond {
		t.Errorf("short for %s, want the least", short)
	}
	// However long a trace took, there is rest for 5 s and no longer.
	clock.Step(time.Second)
	spent(time.Hour)
	if short := b.short(); short < 4*time.Second || short > 6*time.Second {
		t.Errorf("short for %s, want 5 s", short)
	}
	clock.Step(time.Hour)
	spent(250 * time.Millisecond)
	if b.short() == 0 {
		t.Error("an hour of rest is saved for more than 250 ms")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.wait(ctx); err == nil || !strings.Contains(err.Error(), "5 %") || !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestALookWaitsForTheBudget(t *testing.T) {
	w := newWorld(t)
	w.vswitch.takes = 100 * time.Millisecond
	done := make(chan []string)
	go func() {
		got, _ := w.ask(t, admitted)
		done <- got
	}()
	for {
		select {
		case got := <-done:
			want(t, got, newAllowed)
			return
		default:
			if w.clock.HasWaiters() {
				w.clock.Step(time.Second)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	m := newMemory()
	never := func(uint64) bool { return false }
	m.batch = 1
	q := question(t, admitted)
	for port := range mostRemembered {
		q.Flow.Port = uint16(port + 1)
		m.settle(q, "", flow.Verdict{Answer: flow.Allowed}, 0, never)
	}
	q.Flow.Port = 0
	v, _ := m.settle(q, "", flow.Verdict{Answer: flow.Allowed}, 0, never)
	if len(m.answers) != mostRemembered || !strings.Contains(v.Reason, "more flows") {
		t.Errorf("%d answers, and %s", len(m.answers), v)
	}
	m.batch = 2
	v, _ = m.settle(q, "", flow.Verdict{Answer: flow.Allowed}, 0, never)
	if len(m.answers) != mostRemembered || !strings.Contains(v.Reason, stale) {
		t.Errorf("%d answers, and %s", len(m.answers), v)
	}
}

func TestSurveyAndAudit(t *testing.T) {
	w := newWorld(t)
	got, err := w.Survey(t.Context())
	if diff := cmp.Diff(Survey{Present: true, Pods: 4}, got); diff != "" || err != nil {
		t.Errorf("(-want +got):\n%s\n%v", diff, err)
	}
	if why := w.Audit(t.Context()); why != "" {
		t.Errorf("hidden: %s", why)
	}
	w.state.Version++
	w.state.Interfaces = []Interface{
		{UUID: "g", Name: "ovn-n2-0", Type: "stt", OFPort: 1}, podInterface("a", "srv0", -1, "srv.db", "10.16.0.5"),
	}
	got, err = w.Survey(t.Context())
	if diff := cmp.Diff(Survey{Present: true, Pods: 1, Unjudged: []string{"interface srv0 has no OpenFlow port"}}, got); diff != "" || err != nil {
		t.Errorf("(-want +got):\n%s\n%v", diff, err)
	}
	if why := w.Audit(t.Context()); !strings.Contains(why, "stt") {
		t.Errorf("tunnels of stt are not said to hide anything: %q", why)
	}
}

func TestWhatIsAcknowledged(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*world)
		want   uint64
		err    string
	}{
		"a number":         {func(*world) {}, 7, ""},
		"nothing":          {func(w *world) { w.state.Acknowledged = "" }, 0, "nothing yet"},
		"no number":        {func(w *world) { w.state.Acknowledged = "-1" }, 0, `"-1"`},
		"without a bridge": {func(w *world) { w.state.Bridge = false }, 0, ErrNoBridge.Error()},
		"not in sync":      {func(w *world) { w.unknown = errors.New("not connected") }, 0, "not connected"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tc.change(w)
			got, err := w.Acknowledged(t.Context())
			if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%d, %v; want %d and %q", got, err, tc.want, tc.err)
			}
		})
	}
}

func TestTheDatabaseIsNoticed(t *testing.T) {
	w := newWorld(t)
	w.Changed()
	if got := <-w.told; got != "ovsdb" {
		t.Errorf("told of %q", got)
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/api/flow"
)

func TestLookAnswersOfTheNewestView(t *testing.T) {
	t.Parallel()
	d := example()
	p := New(d.newest)
	look, err := p.Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := func() (answers []flow.Answer) {
		t.Helper()
		all, err := look.Together(t.Context(), []Question{{Flow: tcp(client, server, 80)}, {Flow: tcp(other, server, 80), External: true}})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			if !a.Routed || !a.Traced {
				t.Errorf("%+v: want routed and traced", a)
			}
			answers = append(answers, a.Verdict.Answer)
		}
		return answers
	}
	if diff := cmp.Diff([]flow.Answer{flow.Allowed, flow.Denied}, ask()); diff != "" {
		t.Error(diff)
	}
	before := look.Rewrites()
	d.set(allowSet, "db/np/ingress", other)
	if diff := cmp.Diff([]flow.Answer{flow.Denied, flow.Allowed}, ask()); diff != "" {
		t.Error(diff)
	}
	if got := look.Rewrites(); got != before+1 {
		t.Errorf("%d rewrites after one more than %d", got, before)
	}
	d.next(tableGlobal)
	ask()
	if got := look.Rewrites(); got != before+1 {
		t.Errorf("%d rewrites, though nothing that judges has changed", got)
	}
	if why := p.Audit(t.Context()); why != "" {
		t.Error(why)
	}
	if state, err := p.Survey(t.Context()); err != nil || len(state.GetDataplanes()) != 1 {
		t.Errorf("%v %v", state, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := look.Together(ctx, []Question{{}}); !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up got %v", err)
	}

	d.err = errNoConnection
	if _, err := look.Together(t.Context(), nil); !errors.Is(err, errNoConnection) {
		t.Errorf("without a connection: %v", err)
	}
	if _, err := p.Look(t.Context()); !errors.Is(err, errNoConnection) {
		t.Errorf("without a connection: %v", err)
	}
	if _, err := p.Survey(t.Context()); !errors.Is(err, errNoConnection) {
		t.Errorf("without a connection: %v", err)
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	p := New(example().newest)
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	noticed := make(chan string, 100)
	watching.Go(func() { p.Watch(ctx, func(source string) { noticed <- source }) })
	for {
		p.Changed()
		select {
		case source := <-noticed:
			if source != "northbound" {
				t.Errorf("told by %q", source)
			}
		default:
			continue
		}
		break
	}
	cancel()
	watching.Wait()
	for len(noticed) > 0 {
		<-noticed
	}
	p.Changed()
	if len(noticed) > 0 {
		t.Error("told after the watch had ended")
	}
}

func FuzzVerdict(f *testing.F) {
	f.Add("outport == @np.db && ip", "allow-related", "to-lport", "10.16.0.6", "0a:00:00:00:00:06 10.16.0.6")
	f.Add("inport == {@np.db} || !(tcp)", "drop", "from-lport", "10.16.0.6/33", "dynamic 10.16.0.6")
	f.Fuzz(func(t *testing.T, match, action, direction, address, entry string) {
		d := example()
		// What cannot be read must not open a server whose own ACLs are in force:
		// it stands before them, and none of them lets others in.
		d.acl("x", "", direction, 3000, match, action)
		d.group("np", "db", []string{"srv.db"}, []string{"drop", "allow", "x"})
		d.set(exceptSet, "db/np/ingress", address)
		d.with(tablePort, "cli.db", map[string]any{"addresses": []string{entry}})
		follower := newFollower()
		follower.follow(d.view)
		m := follower.model
		for _, f := range []flow.Flow{tcp(client, server, 80), tcp(other, server, 80), tcp(server, other, 80)} {
			_ = m.verdict(f)
		}
		reading := m.acls["x"].match
		does := m.acls["x"].does()
		if v := m.verdict(tcp(other, server, 80)); v.Answer == flow.Allowed && (reading.Doubt() != "" || does == odd || does == drop) {
			t.Errorf("%q %q %q: %s", match, action, direction, v)
		}
	})
}

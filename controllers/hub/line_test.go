// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

func TestSourcesTakeTurnsInALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(1)
		if err := l.enter(t.Context(), "attacker"); err != nil {
			t.Fatal(err)
		}
		var passed []string
		wait := func(source string, n int) {
			for i := range n {
				go func() {
					if err := l.enter(context.Background(), source); err != nil {
						t.Error(err)
						return
					}
					passed = append(passed, fmt.Sprint(source, " ", i))
					l.leave()
				}()
				synctest.Wait()
			}
		}
		wait("attacker", 5)
		wait("agent", 1)
		wait("another", 2)
		l.leave()
		synctest.Wait()
		want := []string{
			"attacker 0", "agent 0", "another 0", "attacker 1", "another 1", "attacker 2", "attacker 3", "attacker 4",
		}
		if diff := cmp.Diff(want, passed); diff != "" {
			t.Errorf("let through (-want +got):\n%s", diff)
		}
	})
}

func TestWhoLeavesALineTakesNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(2)
		for range 2 {
			if err := l.enter(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.enter(ctx, "b") }()
		synctest.Wait()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want Canceled", err)
		}
		if len(l.waiting) > 0 || len(l.turns.namespaces) > 0 {
			t.Errorf("%d wait and %d sources have a turn, want none", len(l.waiting), len(l.turns.namespaces))
		}
		l.leave()
		l.leave()
		if l.free != 2 {
			t.Errorf("%d places are free, want 2", l.free)
		}
	})
}

// FuzzLine lets callers come, go and give up in any order.
func FuzzLine(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 1, 2, 128, 2, 129})
	f.Fuzz(func(t *testing.T, steps []byte) {
		const places = 2
		synctest.Test(t, func(t *testing.T) {
			l := newLine(places)
			inside := 0
			var giveUp []context.CancelFunc
			for _, step := range steps[:min(len(steps), 64)] {
				switch {
				case step%4 < 2:
					ctx, cancel := context.WithCancel(t.Context())
					giveUp = append(giveUp, cancel)
					go func() {
						if l.enter(ctx, fmt.Sprint(step/4%3)) == nil {
							inside++
						}
					}()
				case step%4 == 2 && inside > 0:
					inside--
					l.leave()
				case step%4 == 3 && len(giveUp) > 0:
					at := int(step/4) % len(giveUp)
					giveUp[at]()
					giveUp = slices.Delete(giveUp, at, at+1)
				}
				synctest.Wait()
				if inside+l.free != places || len(l.waiting) > 0 && l.free > 0 {
					t.Fatalf("%d inside, %d places free of %d, %d wait", inside, l.free, places, len(l.waiting))
				}
			}
			for _, cancel := range giveUp {
				cancel()
			}
			synctest.Wait()
			if len(l.waiting) > 0 {
				t.Errorf("%d wait that have given up", len(l.waiting))
			}
		})
	})
}

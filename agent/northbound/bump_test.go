// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"context"
	"errors"
	"testing"
	"time"

	testclock "k8s.io/utils/clock/testing"
)

// bumping is a Bumper whose increments wait for the test.
type bumping struct {
	*Bumper
	clock *testclock.FakeClock
	// began gets each increment as it begins, which ends with what is put there.
	began chan chan error
}

func newBumping(t *testing.T) *bumping {
	t.Helper()
	b := &bumping{clock: testclock.NewFakeClock(time.Unix(1, 0)), began: make(chan chan error)}
	number := int64(40)
	b.Bumper = NewBumper(func(ctx context.Context) (int64, error) {
		number++
		end := make(chan error)
		select {
		case b.began <- end:
			return number, <-end
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}, b.clock)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b
}

type covered struct {
	number int64
	err    error
}

func (b *bumping) cover(t *testing.T) <-chan covered {
	t.Helper()
	n, got := b.ask(), make(chan covered, 1)
	go func() {
		<-n.done
		got <- covered{n.number, n.err}
	}()
	return got
}

// awaitPause waits until nothing happens but by the clock.
func (b *bumping) awaitPause(t *testing.T) {
	t.Helper()
	for !b.clock.HasWaiters() {
		select {
		case <-t.Context().Done():
			t.Fatal("no pause")
		default:
		}
	}
}

func TestBumperSharesIncrements(t *testing.T) {
	t.Parallel()
	b := newBumping(t)
	first := b.cover(t)
	end := <-b.began
	// What is seen while an increment is under way is not covered by it.
	second, third := b.cover(t), b.cover(t)
	end <- nil
	if got := <-first; got.number != 41 || got.err != nil {
		t.Errorf("first: %+v", got)
	}
	b.awaitPause(t)
	b.clock.Step(BumpEvery - time.Second)
	select {
	case <-b.began:
		t.Fatal("a second increment after 9 s")
	case <-second:
		t.Fatal("covered without an increment")
	default:
	}
	b.clock.Step(time.Second)
	end = <-b.began
	end <- errors.New("no leader")
	for _, c := range []<-chan covered{second, third} {
		if got := <-c; got.err == nil {
			t.Errorf("after a failed increment: %+v", got)
		}
	}
	b.awaitPause(t)
	fourth := b.cover(t)
	b.clock.Step(BumpEvery)
	(<-b.began) <- nil
	if got := <-fourth; got.number != 43 || got.err != nil {
		t.Errorf("after a failure: %+v", got)
	}
	b.awaitPause(t)
	b.clock.Step(time.Hour)
	// Nobody waits for one who gave up, but the increment that was asked for begins.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Cover(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gave up: %v", err)
	}
	(<-b.began) <- nil
}

func TestBumperEndsWithItsCallers(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	b := NewBumper(func(ctx context.Context) (int64, error) {
		<-ctx.Done()
		return 0, ctx.Err()
	}, testclock.NewFakeClock(time.Unix(1, 0)))
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	n := b.ask()
	cancel()
	<-n.done
	if err := <-done; err != nil || n.err == nil {
		t.Errorf("%v, %v", err, n.err)
	}
}

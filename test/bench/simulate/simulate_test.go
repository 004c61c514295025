// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/policygate/policygate/test/bench/replica"
)

func TestMain(m *testing.M) {
	if was, err := replica.Main(context.Background()); was {
		if err != nil {
			fmt.Fprintln(os.Stderr, "replica:", err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	// They wait rather than compute, so more of them than processors can run.
	if err := flag.Set("test.parallel", "8"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// small returns a cluster for a test.
func small() Options {
	return Options{
		Nodes: 30, Replicas: 1, Seed: 1, Least: 10 * time.Millisecond, Most: 300 * time.Millisecond,
		// A hundred times what a Pod takes, and less than what a change that
		// was forgotten is found after.
		Patience: 25 * time.Second,
	}
}

func TestSustained(t *testing.T) {
	for _, s := range Shapes() {
		t.Run(s.About, func(t *testing.T) {
			t.Parallel()
			o, err := Sustained(t.Context(), small(), s, Load{Rate: 10, Lasts: 3 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v", *o)
			for _, wrong := range o.Wrong {
				t.Error(wrong)
			}
		})
	}
}

func TestKill(t *testing.T) {
	shape := shapeOf(t, "small")
	for name, leader := range map[string]bool{
		"all Pods are opened rightly though the leader is killed": true,
		"all Pods are opened rightly though the other is killed":  false,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k, err := Kill(t.Context(), small(), shape, Load{Rate: 10, Lasts: 6 * time.Second}, leader)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v", *k)
			for _, wrong := range k.Wrong {
				t.Error(wrong)
			}
		})
	}
}

func TestFrozen(t *testing.T) {
	shape := shapeOf(t, "edits")
	t.Run("no gate is opened wrongly while a replica hears of no policy", func(t *testing.T) {
		t.Parallel()
		o, err := Frozen(t.Context(), small(), shape, Load{Rate: 20, Lasts: 6 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", *o)
		for _, wrong := range o.Wrong {
			t.Error(wrong)
		}
	})
	t.Run("gates are seen to be opened wrongly where the barrier is lied to", func(t *testing.T) {
		t.Parallel()
		options := small()
		options.Lies = true
		o, err := Frozen(t.Context(), options, shape, Load{Rate: 20, Lasts: 6 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d wrong: %q", len(o.Wrong), o.Wrong)
		if len(o.Wrong) == 0 {
			t.Error("no wrong opening was seen: the judge sees nothing")
		}
	})
}

func TestFounding(t *testing.T) {
	t.Run("Pods beside a storm are opened rightly", func(t *testing.T) {
		t.Parallel()
		s, err := Founding(t.Context(), small(), shapeOf(t, "small"), Load{Rate: 10, Lasts: 4 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", *s)
		for _, wrong := range append(s.Calm.Wrong, s.Storm.Wrong...) {
			t.Error(wrong)
		}
		if s.Assigned < s.Held {
			t.Errorf("%d assignments were made during the storm: want at least one of each of the %d Pods that are held", s.Assigned, s.Held)
		}
	})
}

func TestHeldAtOnce(t *testing.T) {
	t.Run("Pods beside those that wait for late engines are opened, and all of these once the engines are done", func(t *testing.T) {
		t.Parallel()
		h, err := HeldAtOnce(t.Context(), small(), shapeOf(t, "small"), Load{Rate: 10, Lasts: 2 * time.Second}, 150)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", *h)
		for _, wrong := range slices.Concat(h.Calm.Wrong, h.Arrival.Wrong, h.Beside.Wrong, h.Release.Wrong) {
			t.Error(wrong)
		}
		if h.Release.Opened != 150 || h.Beside.Opened == 0 || h.Release.Strangers == 0 || h.Release.Peers == 0 {
			t.Errorf("opened %d held Pods and %d others, judged %d strangers and %d peers: want 150, and some of each",
				h.Release.Opened, h.Beside.Opened, h.Release.Strangers, h.Release.Peers)
		}
	})
}

func shapeOf(t *testing.T, name string) Shape {
	t.Helper()
	s, err := ShapeOf(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

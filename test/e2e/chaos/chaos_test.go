// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/policygate/policygate/test/e2e/chaos/fault"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// TestChaos is a short run with some kinds of faults: what `make chaos` does for
// long works.
func TestChaos(t *testing.T) {
	bed, err := testbed.Start(t.Context(), testbed.Options{Name: "chaos-short", Nodes: 3, Progress: testLog{t}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's own context has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := bed.Stop(ctx); err != nil {
			t.Errorf("stop the cluster: %v", err)
		}
	})
	want := []string{"manager killed", "engine frozen", "two nodes cut from each other"}
	kinds := slices.DeleteFunc(fault.Kinds(), func(k fault.Kind) bool { return !slices.Contains(want, k.Name) })
	report, err := Run(t.Context(), Options{
		Bed: bed, Duration: 75 * time.Second, Seed: 1, Kinds: kinds,
		Evidence: t.ArtifactDir(), Progress: testLog{t},
	})
	if err != nil {
		t.Error(err)
	}
	if err := report.Write(testLog{t}); err != nil {
		t.Error(err)
	}
	if err := report.Check(); err != nil {
		t.Error(err)
	}
	if _, kinds := report.faults(); kinds != len(want) {
		t.Errorf("faults of %d kinds, want %d", kinds, len(want))
	}
	for what, n := range map[string]int{
		"gates opened": report.Gates(), "refusals that were proven": report.Refusals,
		"first dials": report.Dials, "edits": report.Edits,
	} {
		if n < 5 {
			t.Errorf("%s: %d, want some", what, n)
		}
	}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

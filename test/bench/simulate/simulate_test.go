// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"context"
	"fmt"
	"os"
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
	os.Exit(m.Run())
}

// small returns a cluster for a test.
func small() Options {
	return Options{Nodes: 30, Replicas: 1, Seed: 1, Least: 10 * time.Millisecond, Most: 300 * time.Millisecond}
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

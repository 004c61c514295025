// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package declared

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree writes files into a directory and returns it.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestMetrics(t *testing.T) {
	tests := map[string]struct {
		source  string
		want    []Metric
		wantErr string
	}{
		"a counter with labels": {
			source: `var c = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x_total", Help: "What " + "it is."}, []string{"reason", kind})
const kind = "kind"`,
			want: []Metric{{Name: "x_total", Kind: "counter", Labels: []string{"kind", "reason"}, Help: "What it is."}},
		},
		"a histogram of a factory": {
			source: `var h = factory.NewHistogram(prometheus.HistogramOpts{Name: "x_seconds", Help: "H", Buckets: prometheus.DefBuckets})`,
			want:   []Metric{{Name: "x_seconds", Kind: "histogram", Help: "H"}},
		},
		"gauges that differ in a constant label": {
			source: `func f() {
	factory.NewGaugeFunc(prometheus.GaugeOpts{Name: "x", Help: "H", ConstLabels: prometheus.Labels{"a": "1"}}, nil)
	factory.NewGaugeFunc(prometheus.GaugeOpts{Name: "x", Help: "H", ConstLabels: prometheus.Labels{"a": "2"}}, nil)
}`,
			want: []Metric{{Name: "x", Kind: "gauge", Labels: []string{"a"}, Help: "H"}},
		},
		"a description": {
			source: `var d = prometheus.NewDesc("x", "H", []string{"a"}, nil)`,
			want:   []Metric{{Name: "x", Kind: "gauge", Labels: []string{"a"}, Help: "H"}},
		},
		"a function that is given the name": {
			source: `func f() {
	counter := func(name, help string, labels []string) prometheus.Counter {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	counter("x_total", "H", []string{"a"})
	counter("y_total", "I", nil)
}`,
			want: []Metric{
				{Name: "x_total", Kind: "counter", Labels: []string{"a"}, Help: "H"},
				{Name: "y_total", Kind: "counter", Help: "I"},
			},
		},
		"a function that is never called": {
			source:  `func f(name string) any { return prometheus.NewCounter(prometheus.CounterOpts{Name: name}) }`,
			wantErr: "want a metric's options written out in the call that makes it",
		},
		"a name that is put together": {
			source:  `var c = prometheus.NewCounter(prometheus.CounterOpts{Name: name(), Help: "H"})`,
			wantErr: "want a string that is written out",
		},
		"options that are made elsewhere": {
			source:  `var o = prometheus.CounterOpts{Name: "x_total", Help: "H"}`,
			wantErr: "want a metric's options written out in the call that makes it",
		},
		"a name in parts": {
			source:  `var c = prometheus.NewCounter(prometheus.CounterOpts{Namespace: "x", Name: "y_total", Help: "H"})`,
			wantErr: "want the whole name in Name",
		},
		"two of one name": {
			source: `var c = prometheus.NewCounter(prometheus.CounterOpts{Name: "x_total", Help: "H"})
var d = prometheus.NewCounter(prometheus.CounterOpts{Name: "x_total", Help: "I"})`,
			wantErr: "x_total is declared elsewhere",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			root := tree(t, map[string]string{"p/p.go": "package p\n" + tc.source, "p/testdata/no.go": "no Go"})
			got, err := Metrics(root, "p")
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("error = %v, want one that says %s", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("metrics (-want +got):\n%s", diff)
			}
		})
	}
}

func TestConstants(t *testing.T) {
	root := tree(t, map[string]string{"p.go": `package p

// Reasons.
const (
	// ReasonDone (True): all is well, unlike with
	// ReasonWaiting.
	ReasonDone = "Done"
	// ReasonWaiting: not yet.
	ReasonWaiting = "Wait" + "ing"
	Reasons = "no reason"
)

// KeyOne is an annotation.
const KeyOne = "x/one"

const LagSilent = "x"
`})
	got, err := Constants(root, ".", regexp.MustCompile("^(Reason|Key)[A-Z]"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Constant{
		{Name: "ReasonDone", Value: "Done", Doc: "True: all is well, unlike with `Waiting`."},
		{Name: "ReasonWaiting", Value: "Waiting", Doc: "Not yet."},
		{Name: "KeyOne", Value: "x/one", Doc: "An annotation."},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("constants (-want +got):\n%s", diff)
	}
	for pattern, say := range map[string]string{"^Lag": "LagSilent has no doc comment", "^None": "no constant is called"} {
		if _, err := Constants(root, ".", regexp.MustCompile(pattern)); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: error = %v, want one that says %s", pattern, err, say)
		}
	}
}

func TestFieldsGoIntoStructsAndLeaveMarkersOut(t *testing.T) {
	root := tree(t, map[string]string{"p.go": `package p

type Status struct {
	Other ` + "`json:\",inline\"`" + `
	// nodes are those
	// that lag.
	// +optional
	Nodes []Node ` + "`json:\"nodes,omitempty\"`" + `
}

type Node struct {
	// count counts.
	Count *int32 ` + "`json:\"count\"`" + `
	hidden int
}
`})
	got, err := Fields(root, ".", "Status")
	if err != nil {
		t.Fatal(err)
	}
	want := []Field{
		{Path: "nodes[]", Type: "[]Node", Doc: "nodes are those that lag."},
		{Path: "nodes[].count", Type: "int", Doc: "count counts."},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
}

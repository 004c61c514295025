// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// values are what the queries ask labels to be, beside others.
var values = map[string][]string{
	"answer":     {"allowed", "denied", "inconclusive"},
	"role":       {"own", "peer", "policy"},
	"programmed": {"true", "false", "unknown"},
	"reason":     {"Confirmed", "Drifted", "Unseen", "EngineDeviates"},
	"failed":     {"true", "false"},
	"synced":     {"true", "false"},
	"result":     {"ok", "error", "allowed"},
}

// exporter serves all declared metrics whose names begin with prefix. With each
// scrape everything has happened once more.
func exporter(t *testing.T, prefix string) string {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var happen []func()
	for _, m := range declaredMetrics(t) {
		if !strings.HasPrefix(m.Name, prefix) || strings.HasPrefix(m.Name, "policygate_agent_") != (prefix == "policygate_agent_") {
			continue
		}
		for _, labels := range combinations(m.Labels) {
			constant := prometheus.Labels{}
			for i, l := range m.Labels {
				constant[l] = labels[i]
			}
			happen = append(happen, register(registry, m.Name, m.Kind, constant))
		}
	}
	handler := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, f := range happen {
			f()
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// register makes one series, and returns what makes it go on.
func register(r prometheus.Registerer, name, kind string, labels prometheus.Labels) func() {
	switch kind {
	case "counter":
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: "x", ConstLabels: labels})
		r.MustRegister(c)
		return c.Inc
	case "histogram":
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: "x", ConstLabels: labels})
		r.MustRegister(h)
		return func() { h.Observe(0.3) }
	default:
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: "x", ConstLabels: labels})
		r.MustRegister(g)
		return g.Inc
	}
}

// combinations returns all values of the labels together.
func combinations(labels []string) [][]string {
	all := [][]string{nil}
	for _, l := range labels {
		known := values[l]
		if known == nil {
			known = []string{"x"}
		}
		var longer [][]string
		for _, c := range all {
			for _, v := range known {
				longer = append(longer, append(slices.Clone(c), v))
			}
		}
		all = longer
	}
	return all
}

// start starts a Prometheus that scrapes a manager and two agents, and returns
// once each was scraped often enough for a rate.
func start(t *testing.T) *Prometheus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	rules, err := filepath.Abs(filepath.Join(files, "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(t.Context(), Options{
		Dir: t.TempDir(), Rules: []string{rules}, Interval: time.Second,
		Targets: []Target{
			{Job: "policygate-manager", Instance: "manager-1", Address: exporter(t, "policygate_"), Path: "/metrics"},
			{Job: "policygate-agent", Instance: "n1", Address: exporter(t, "policygate_agent_")},
			{Job: "policygate-agent", Instance: "n2", Address: exporter(t, "policygate_agent_")},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := p.AwaitScrapes(ctx); err != nil {
		t.Fatal(err)
	}
	often := Check{URL: p.URL, Window: time.Minute, Queries: []Query{
		{Where: "scrapes", Expr: `count(count_over_time(up[$__rate_interval]) >= 3) >= 3`},
	}}
	if err := p.await(ctx, often.Run); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAgainstARealPrometheus(t *testing.T) {
	p := start(t)
	queries, err := Queries(files)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("every query of the dashboard and of the alerts finds something", func(t *testing.T) {
		err := Check{URL: p.URL, Queries: queries, Window: time.Minute, Quiet: Quiet()}.Run(t.Context())
		if err != nil {
			t.Error(err)
		}
	})

	tests := map[string]struct {
		query Query
		want  string
	}{
		"a metric that there is not": {
			query: Query{Where: "w", Expr: `sum(policygate_gates_shout) or vector(0)`},
			want:  "w: no series is called policygate_gates_shout",
		},
		"a label that nothing has":   {query: Query{Where: "w", Expr: `policygate_gates_shut{colour="red"}`}, want: "w: finds nothing"},
		"nothing but no numbers":     {query: Query{Where: "w", Expr: `0 * policygate_gates_shut / 0`}, want: "w: finds nothing"},
		"a malformed query":          {query: Query{Where: "w", Expr: `sum(policygate_gates_shut`}, want: "w: prometheus says: "},
		"a scalar":                   {query: Query{Where: "w", Expr: `1`}, want: "w: the result is a scalar"},
		"a variable of somebody's":   {query: Query{Where: "w", Expr: `up{job="$job"}`}, want: "w: it has a variable"},
		"an alert that would be on":  {query: Query{Where: "w", Expr: `up == 1`, Alert: true}},
		"an alert that is off":       {query: Query{Where: "w", Expr: `up == 0`, Alert: true}},
		"a panel with such a limit":  {query: Query{Where: "w", Expr: `up == 0`}, want: "w: finds nothing"},
		"an alert on nothing at all": {query: Query{Where: "w", Expr: `up{job="x"} == 0`, Alert: true}, want: "w: finds nothing"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			err := Check{URL: p.URL, Queries: []Query{tc.query}, Window: time.Minute}.Run(t.Context())
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error = %v, want one that says %s", err, tc.want)
			}
		})
	}

	t.Run("a rule that cannot be evaluated", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		dir := t.TempDir()
		rules := filepath.Join(dir, "rules.yaml")
		// Two series to one: known only once it is evaluated.
		rule := `{groups: [{name: g, rules: [{alert: Broken, expr: 'vector(1) + on () (label_replace(vector(1), "a", "b", "", "") or vector(2))'}]}]}`
		if err := os.WriteFile(rules, []byte(rule), 0o600); err != nil {
			t.Fatal(err)
		}
		other, err := Start(t.Context(), Options{Dir: dir, Rules: []string{rules}, Interval: time.Second, Targets: []Target{{Job: "j", Instance: "i", Address: strings.TrimPrefix(p.URL, "http://")}}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := other.Stop(); err != nil {
				t.Error(err)
			}
		}()
		says := func(ctx context.Context) error {
			if err := (Check{URL: other.URL}).Run(ctx); err == nil || !strings.Contains(err.Error(), "alert Broken: Prometheus says") {
				return errNotYet{err}
			}
			return nil
		}
		if err := other.await(ctx, says); err != nil {
			t.Error(err)
		}
	})
}

// errNotYet is that the rule was not evaluated yet, or not complained of.
type errNotYet struct{ err error }

func (e errNotYet) Error() string {
	if e.err == nil {
		return "nobody complains of the rule"
	}
	return "the complaint is another: " + e.err.Error()
}

func TestStartSaysWhyItCannot(t *testing.T) {
	dir := t.TempDir()
	p, err := Start(t.Context(), Options{Dir: dir, Interval: time.Second, Targets: []Target{{Job: "j", Instance: "i", Address: "no/address"}}})
	if err == nil {
		err = p.Stop()
		t.Fatalf("it started; stopping it: %v", err)
	}
	if !strings.Contains(err.Error(), "prometheus has ended") || !strings.Contains(err.Error(), dir) {
		t.Errorf("error = %v, want one that says that it has ended, and where its log is", err)
	}
}

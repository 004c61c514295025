// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/policygate/policygate/hack/reference/declared"
)

const (
	repository = "../.."
	files      = repository + "/config/prometheus"
)

// foreign are metrics that are no product code's.
var foreign = []string{"up", "process_cpu_seconds_total", "process_resident_memory_bytes"}

// declaredMetrics are the product's.
func declaredMetrics(t *testing.T) map[string]declared.Metric {
	t.Helper()
	all, err := declared.Metrics(repository, "controllers", "webhook", "agent", "cmd")
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]declared.Metric{}
	for _, m := range all {
		byName[m.Name] = m
	}
	return byName
}

func TestPromtoolFindsNothingWrong(t *testing.T) {
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		command := exec.Command("promtool", args...)
		command.Dir = files
		if output, err := command.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, output)
		}
	}
}

func TestEveryAlertSaysWhatToDo(t *testing.T) {
	alerts, err := readAlerts(filepath.Join(files, "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile(filepath.Join(files, "alerts_test.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range alerts {
		if !strings.Contains(string(tests), `alertname="`+a.Alert+`"`) {
			t.Errorf("%s: alerts_test.yaml has no test of it", a.Alert)
		}
		for _, key := range []string{"summary", "description"} {
			if len(a.Annotations[key]) < 20 {
				t.Errorf("%s: annotation %s is %q, want a sentence", a.Alert, key, a.Annotations[key])
			}
		}
		switch a.Labels["severity"] {
		case "info", "warning", "critical":
		default:
			t.Errorf("%s: severity %q, want info, warning or critical", a.Alert, a.Labels["severity"])
		}
		// That there is such a heading is tested with the links of the docs.
		if !strings.Contains(a.Annotations["runbook_url"], "/docs/troubleshooting.md#") {
			t.Errorf("%s: runbook_url %q, want a heading of docs/troubleshooting.md", a.Alert, a.Annotations["runbook_url"])
		}
	}
}

func TestThePrometheusRuleIsTheAlerts(t *testing.T) {
	var alerts, rule map[string]any
	for name, into := range map[string]*map[string]any{"alerts.yaml": &alerts, "prometheusrule.yaml": &rule} {
		content, err := os.ReadFile(filepath.Join(files, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.UnmarshalStrict(content, into); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if diff := cmp.Diff(any(alerts), rule["spec"]); diff != "" {
		t.Errorf("spec of the PrometheusRule (-alerts.yaml +prometheusrule.yaml):\n%s", diff)
	}
}

// base returns the name of the metric that a series belongs to.
func base(series string) string {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if metric, ok := strings.CutSuffix(series, suffix); ok {
			return metric
		}
	}
	return series
}

func TestQueriesAskForWhatIsDeclared(t *testing.T) {
	metrics := declaredMetrics(t)
	for _, name := range foreign {
		metrics[name] = declared.Metric{}
	}
	queries, err := Queries(files)
	if err != nil {
		t.Fatal(err)
	}
	grouping := regexp.MustCompile(`\bby \(([^)]*)\)`)
	where := map[string]bool{}
	for _, q := range queries {
		where[q.Where] = true
		// Those that a scrape adds, and a histogram has.
		labels := []string{"instance", "job", "le"}
		for _, n := range MetricNames(q.Expr) {
			m, ok := metrics[n]
			if !ok {
				m, ok = metrics[base(n)]
				ok = ok && m.Kind == "histogram"
			}
			if !ok {
				t.Errorf("%s: no metric %s is declared", q.Where, n)
			}
			labels = append(labels, m.Labels...)
		}
		for _, list := range grouping.FindAllStringSubmatch(q.Expr, -1) {
			for label := range strings.SplitSeq(list[1], ", ") {
				if !slices.Contains(labels, label) {
					t.Errorf("%s: no metric that it asks for has a label %s", q.Where, label)
				}
			}
		}
	}
	for w := range Quiet() {
		if !where[w] {
			t.Errorf("Quiet excuses %s, which there is not", w)
		}
	}
}

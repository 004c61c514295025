// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

// Query is an expression of PromQL and where it comes from.
type Query struct {
	// Where names the panel or the alert, for people.
	Where string
	// Expr may hold Grafana's $__rate_interval.
	Expr string
	// Alert is set for the condition of an alert, which is meant to find
	// nothing while all is well; what it compares must be there all the same.
	Alert bool
}

// Queries returns those of dashboard.json and alerts.yaml in dir, which is
// config/prometheus.
func Queries(dir string) ([]Query, error) {
	panels, err := dashboardQueries(filepath.Join(dir, "dashboard.json"))
	if err != nil {
		return nil, err
	}
	alerts, err := alertQueries(filepath.Join(dir, "alerts.yaml"))
	return append(panels, alerts...), err
}

// panel is the part of a panel of Grafana that is of interest here.
type panel struct {
	Title   string  `json:"title"`
	Type    string  `json:"type"`
	Panels  []panel `json:"panels"`
	Targets []struct {
		Expr string `json:"expr"`
	} `json:"targets"`
}

func dashboardQueries(path string) ([]Query, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var dashboard struct {
		Panels []panel `json:"panels"`
	}
	if err := json.Unmarshal(content, &dashboard); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var all []Query
	var add func([]panel) error
	add = func(panels []panel) error {
		for _, p := range panels {
			if len(p.Targets) == 0 && p.Type != "row" && p.Type != "text" {
				return fmt.Errorf("%s: panel %q asks nothing", path, p.Title)
			}
			for _, t := range p.Targets {
				all = append(all, Query{Where: fmt.Sprintf("panel %q", p.Title), Expr: t.Expr})
			}
			if err := add(p.Panels); err != nil {
				return err
			}
		}
		return nil
	}
	return all, add(dashboard.Panels)
}

// alert is an alerting rule.
type alert struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// readAlerts reads a rule file.
func readAlerts(path string) ([]alert, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Groups []struct {
			Name  string  `json:"name"`
			Rules []alert `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.UnmarshalStrict(content, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var all []alert
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	return all, nil
}

func alertQueries(path string) ([]Query, error) {
	alerts, err := readAlerts(path)
	if err != nil {
		return nil, err
	}
	all := make([]Query, 0, len(alerts))
	for _, a := range alerts {
		all = append(all, Query{Where: "alert " + a.Alert, Expr: a.Expr, Alert: true})
	}
	return all, nil
}

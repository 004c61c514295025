// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

const ruleHead = `# Generated from alerts.yaml by hack/reference; do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: policygate
  namespace: policygate-system
spec:
`

// prometheusRule returns the alerts as an object of the Prometheus operator,
// whose spec is a rule file.
func prometheusRule(root string) ([]byte, error) {
	path := filepath.Join(root, "config", "prometheus", "alerts.yaml")
	alerts, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	_, groups, found := bytes.Cut(alerts, []byte("\ngroups:\n"))
	if !found {
		return nil, fmt.Errorf("%s: no line %q", path, "groups:")
	}
	rule := bytes.NewBufferString(ruleHead + "  groups:\n")
	for line := range bytes.Lines(groups) {
		if len(bytes.TrimSpace(line)) > 0 {
			rule.WriteString("  ")
		}
		rule.Write(line)
	}
	return rule.Bytes(), nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// Exit statuses of "doctor". 1 says that nothing could be found out.
const (
	ExitHealthy  = 0
	ExitFindings = 2
)

// Report is all that the command prints, as JSON or in words.
type Report struct {
	Findings []Finding `json:"findings"`
	// Replicas are what those said that answered, by their Pods' names.
	Replicas map[string]*explainv1.Diagnosis `json:"replicas,omitempty"`
}

// NewReport returns the report of the facts.
func NewReport(f *Facts) *Report {
	r := &Report{Findings: Findings(f), Replicas: map[string]*explainv1.Diagnosis{}}
	for _, replica := range f.Replicas {
		if replica.Diagnosis != nil {
			r.Replicas[replica.Pod] = replica.Diagnosis
		}
	}
	return r
}

// count returns how many findings are of the severity.
func (r *Report) count(s Severity) int {
	n := 0
	for _, f := range r.Findings {
		if f.Severity == s {
			n++
		}
	}
	return n
}

// ExitStatus tells a script whether there is anything to be looked at.
func (r *Report) ExitStatus() int {
	if slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity != OK }) {
		return ExitFindings
	}
	return ExitHealthy
}

// WriteText writes the findings for people, one a line with what to do under
// it, and how many are bad at the end.
func (r *Report) WriteText(w io.Writer) error {
	var out bytes.Buffer
	for _, f := range r.Findings {
		fmt.Fprintf(&out, "%-4s  %-12s  %s\n", tracev1.Printable(string(f.Severity)), tracev1.Printable(f.Subject), tracev1.Printable(f.Text))
		if f.Do != "" {
			fmt.Fprintf(&out, "%20s-> %s\n", "", tracev1.Printable(f.Do))
		}
	}
	summary := "Everything that was checked is in order."
	if fails, warnings := r.count(Fail), r.count(Warn); fails+warnings > 0 {
		summary = plural(fails, "failure") + ", " + plural(warnings, "warning") + "."
	}
	fmt.Fprintf(&out, "\n%s\n", summary)
	_, err := w.Write(out.Bytes())
	return err
}

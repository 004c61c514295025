// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package status

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
	"github.com/policygate/policygate/api/v1alpha1"
)

// Exit statuses of "status". 1 says that there is no answer.
const (
	ExitProgrammed    = 0
	ExitNotProgrammed = 2
	ExitUnknown       = 3
)

// ExitStatus returns the exit status that tells a script of all policies:
// ExitNotProgrammed if one is known not to be in force, else ExitUnknown if
// that cannot be told of one.
func ExitStatus(items []v1alpha1.PolicyStatus) int {
	status := ExitProgrammed
	for i := range items {
		switch programmed(&items[i]) {
		case metav1.ConditionTrue:
		case metav1.ConditionFalse:
			return ExitNotProgrammed
		case metav1.ConditionUnknown:
			status = ExitUnknown
		default:
			status = ExitUnknown
		}
	}
	return status
}

// programmed returns the condition's status; Unknown if there is none.
func programmed(p *v1alpha1.PolicyStatus) metav1.ConditionStatus {
	if c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.PolicyProgrammed); c != nil {
		return c.Status
	}
	return metav1.ConditionUnknown
}

// Options say how to write a table.
type Options struct {
	// Namespaces adds their column.
	Namespaces bool
	// Wide adds what the conditions say, and the generation.
	Wide bool
	Now  time.Time
}

// Table writes one row for each object, and under it the nodes that lag behind,
// and what the policy engine deviates in. Without objects it writes the header
// alone.
func Table(w io.Writer, items []v1alpha1.PolicyStatus, o Options) error {
	var rows bytes.Buffer
	columns := tabwriter.NewWriter(&rows, 0, 0, 3, ' ', 0)
	row := func(cells ...string) {
		_, _ = fmt.Fprintln(columns, printable(strings.Join(cells, "\t"), '\t'))
	}
	row(o.header()...)
	for i := range items {
		row(o.cells(&items[i])...)
	}
	if err := columns.Flush(); err != nil {
		return err
	}
	lines := strings.SplitAfter(rows.String(), "\n")
	var out bytes.Buffer
	out.WriteString(lines[0])
	for i := range items {
		out.WriteString(lines[i+1])
		for _, line := range o.details(&items[i]) {
			out.WriteString("  " + printable(line, 0) + "\n")
		}
	}
	_, err := w.Write(out.Bytes())
	return err
}

func (o Options) header() []string {
	cells := []string{"NAME", "PROGRAMMED", "NODES", "PODS", "PENDING", "TOOK", "AGE"}
	if o.Namespaces {
		cells = append([]string{"NAMESPACE"}, cells...)
	}
	if o.Wide {
		cells = append(cells, "REASON", "DEGRADED", "GENERATION")
	}
	return cells
}

func (o Options) cells(p *v1alpha1.PolicyStatus) []string {
	age := "<unknown>"
	if !p.CreationTimestamp.IsZero() {
		age = explainv1.Rounded(o.Now.Sub(p.CreationTimestamp.Time))
	}
	cells := []string{
		p.Name, string(programmed(p)), or(p.Status.Nodes.Summary), number(p.Status.Pods.Selected),
		number(p.Status.Pods.Pending), or(p.Status.LastProgrammed.Took), age,
	}
	if o.Namespaces {
		cells = append([]string{p.Namespace}, cells...)
	}
	if o.Wide {
		cells = append(cells, reason(p, v1alpha1.PolicyProgrammed), reason(p, v1alpha1.PolicyDegraded), number(p.Status.ObservedGeneration))
	}
	return cells
}

// details are the lines under a row.
func (o Options) details(p *v1alpha1.PolicyStatus) []string {
	var lines []string
	for _, t := range []string{v1alpha1.PolicyProgrammed, v1alpha1.PolicyDegraded} {
		c := meta.FindStatusCondition(p.Status.Conditions, t)
		// Nodes that lag say why by themselves.
		why := t == v1alpha1.PolicyProgrammed && c != nil && c.Status != metav1.ConditionTrue && len(p.Status.LaggingNodes) == 0
		if c != nil && c.Message != "" && (o.Wide || why) {
			lines = append(lines, fmt.Sprintf("%s %s%s: %s", t, c.Status, o.since(&c.LastTransitionTime), c.Message))
		}
	}
	for _, n := range p.Status.LaggingNodes {
		line := fmt.Sprintf("%s: %s%s", place(n.Name), n.Reason, o.since(n.Since))
		if n.Message != "" {
			line += ": " + n.Message
		}
		lines = append(lines, line)
	}
	if left := p.Status.LaggingNodesLeftOut; left != nil {
		lines = append(lines, fmt.Sprintf("and %d more nodes", *left))
	}
	for _, d := range p.Status.Deviations {
		lines = append(lines, "not carried out "+where(d)+": "+d.Message)
	}
	return lines
}

// since returns " for 12s", or nothing if that is not known.
func (o Options) since(t *metav1.Time) string {
	if t.IsZero() {
		return ""
	}
	return " for " + explainv1.Rounded(max(o.Now.Sub(t.Time), 0))
}

// where says on which nodes a deviation is.
func where(d v1alpha1.Deviation) string {
	if len(d.Nodes) == 0 {
		return "on any node"
	}
	words := "on " + strings.Join(d.Nodes, ", ")
	if d.NodesLeftOut != nil {
		words += fmt.Sprintf(" and %d more", *d.NodesLeftOut)
	}
	return words
}

func reason(p *v1alpha1.PolicyStatus, conditionType string) string {
	if c := meta.FindStatusCondition(p.Status.Conditions, conditionType); c != nil {
		return or(c.Reason)
	}
	return or("")
}

// or stands "-" in for what is not there.
func or(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func number[N int32 | int64](n *N) string {
	if n == nil {
		return or("")
	}
	return strconv.FormatInt(int64(*n), 10)
}

// printable keeps a terminal from obeying what somebody wrote into an object.
func printable(line string, but rune) string {
	return strings.Map(func(r rune) rune {
		if r != but && (r < ' ' || r > '~') {
			return '?'
		}
		return r
	}, line)
}

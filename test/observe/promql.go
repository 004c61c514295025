// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"regexp"
	"slices"
	"strings"
)

// token is a word of PromQL: a name, a number, a string, a selector's braces
// with all in them, or one sign.
var token = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|` +
	`\{(?:[^}"']|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')*\}|\[[^\]]*\]|` +
	`[a-zA-Z_:][a-zA-Z0-9_:]*|[0-9][0-9a-zA-Z.]*|[=!<>]=|=~|!~|\S`)

// A name is one of these only ahead of a list of labels.
var grouping = []string{"by", "without", "on", "ignoring", "group_left", "group_right"}

// Operators that are written as words, and other words that are no metrics.
var words = []string{"and", "or", "unless", "bool", "offset", "atan2", "inf", "nan"}

// name is how a metric or a function is written.
var name = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)

// MetricNames returns the names of the metrics that an expression selects,
// sorted, each once. It knows no selectors without a name.
func MetricNames(expr string) []string {
	tokens := token.FindAllString(expr, -1)
	var names []string
	for i := 0; i < len(tokens); i++ {
		t := strings.ToLower(tokens[i])
		next := ""
		if i+1 < len(tokens) {
			next = tokens[i+1]
		}
		switch {
		case slices.Contains(grouping, t):
			if next == "(" {
				for i++; i < len(tokens) && tokens[i] != ")"; i++ {
				}
			}
		case !name.MatchString(tokens[i]) || slices.Contains(words, t):
		case next == "(" || slices.Contains(grouping, strings.ToLower(next)):
			// A function, or an aggregation whose labels come first.
		default:
			names = append(names, tokens[i])
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Measured returns the part of an alert's condition that is compared: what is
// left of its last comparison, outside of parentheses, with a number. It is the
// whole expression if there is none.
func Measured(expr string) string {
	depth, cut := 0, len(expr)
	at := token.FindAllStringIndex(expr, -1)
	for i, t := range at {
		switch expr[t[0]:t[1]] {
		case "(":
			depth++
		case ")":
			depth--
		case "==", "!=", "<", ">", "<=", ">=":
			if depth == 0 && i == len(at)-2 {
				cut = t[0]
			}
		}
	}
	return strings.TrimSpace(expr[:cut])
}

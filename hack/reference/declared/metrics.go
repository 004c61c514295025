// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package declared

import (
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"path/filepath"
	"slices"
	"strings"
)

// Metric is a metric of client_golang.
type Metric struct {
	Name string
	// Kind is Prometheus' type: "counter", "gauge", "histogram" or "summary".
	Kind string
	// Labels are those of the metric itself, sorted.
	Labels []string
	Help   string
}

// kinds are the options that metrics are made with.
var kinds = map[string]string{
	"CounterOpts": "counter", "GaugeOpts": "gauge", "HistogramOpts": "histogram", "SummaryOpts": "summary",
}

// Metrics returns the metrics that the packages under the given directories of
// the repository declare, by name. It understands the constructors of
// prometheus and promauto with their options written out in the call, functions
// of one file that do that with a name that they are given, and
// prometheus.NewDesc. Any other use of the options is an error.
func Metrics(root string, under ...string) ([]Metric, error) {
	byName := map[string]Metric{}
	var errs []error
	for _, u := range under {
		dirs, err := directories(filepath.Join(root, u))
		if err != nil {
			return nil, err
		}
		for _, dir := range dirs {
			s, err := parse(dir)
			if err != nil {
				return nil, err
			}
			found, err := s.metrics()
			errs = append(errs, err)
			for _, m := range found {
				if other, ok := byName[m.Name]; ok && !same(m, other) {
					errs = append(errs, fmt.Errorf("%s: %s is declared elsewhere with another kind, help or labels", dir, m.Name))
				}
				byName[m.Name] = m
			}
		}
	}
	all := make([]Metric, 0, len(byName))
	for _, m := range byName {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b Metric) int { return cmp.Compare(a.Name, b.Name) })
	return all, errors.Join(errs...)
}

func same(a, b Metric) bool {
	return a.Kind == b.Kind && a.Help == b.Help && slices.Equal(a.Labels, b.Labels)
}

// metrics returns the package's.
func (s *source) metrics() ([]Metric, error) {
	var found []Metric
	var errs []error
	for _, tree := range s.trees {
		f := &metricsOfFile{source: s, understood: map[*ast.CompositeLit]bool{}}
		f.findMakers(tree)
		inspect(tree, f.read)
		inspect(tree, func(n ast.Node) {
			if e, ok := n.(ast.Expr); ok {
				if options, _ := optionsOf(e); options != nil && !f.understood[options] {
					errs = append(errs, fmt.Errorf("%s: want a metric's options written out in the call that makes it", s.files.Position(e.Pos())))
				}
			}
		})
		found, errs = append(found, f.found...), append(errs, f.errs...)
	}
	return found, errors.Join(errs...)
}

// metricsOfFile is what is read of one file.
type metricsOfFile struct {
	*source
	makers []maker
	// understood are the options that some call makes a metric of.
	understood map[*ast.CompositeLit]bool
	found      []Metric
	errs       []error
}

// maker is a function of the file that makes metrics with a name that it is
// given.
type maker struct {
	name       string
	parameters []string
	call       *ast.CallExpr
}

// findMakers finds functions with a parameter that is the name of a metric.
func (f *metricsOfFile) findMakers(tree *ast.File) {
	add := func(name string, of *ast.FuncType, body *ast.BlockStmt) {
		m := maker{name: name}
		for _, p := range of.Params.List {
			for _, n := range p.Names {
				m.parameters = append(m.parameters, n.Name)
			}
		}
		if body == nil {
			return
		}
		inspect(body, func(n ast.Node) {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return
			}
			options, _ := optionsOf(call.Args[0])
			if given, ok := valueOf(options, "Name").(*ast.Ident); ok && slices.Contains(m.parameters, given.Name) {
				made := m
				made.call = call
				f.makers = append(f.makers, made)
			}
		})
	}
	inspect(tree, func(n ast.Node) {
		switch n := n.(type) {
		case *ast.FuncDecl:
			add(n.Name.Name, n.Type, n.Body)
		case *ast.AssignStmt:
			name, named := n.Lhs[0].(*ast.Ident)
			if literal, ok := n.Rhs[0].(*ast.FuncLit); ok && named {
				add(name.Name, literal.Type, literal.Body)
			}
		}
	})
}

// read looks at one node of the file.
func (f *metricsOfFile) read(n ast.Node) {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 || slices.ContainsFunc(f.makers, func(m maker) bool { return m.call == call }) {
		return
	}
	if function, ok := call.Fun.(*ast.Ident); ok {
		for _, m := range f.makers {
			if m.name == function.Name && len(m.parameters) == len(call.Args) {
				f.given = map[string]ast.Expr{}
				for i, p := range m.parameters {
					f.given[p] = call.Args[i]
				}
				f.construct(m.call)
				f.given = nil
			}
		}
		return
	}
	constructor, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !strings.HasPrefix(constructor.Sel.Name, "New") {
		return
	}
	if constructor.Sel.Name == "NewDesc" && len(call.Args) == 4 {
		f.add(f.description(call))
		return
	}
	f.construct(call)
}

// construct reads a call of a constructor; anything else is left alone.
func (f *metricsOfFile) construct(call *ast.CallExpr) {
	if options, kind := optionsOf(call.Args[0]); options != nil {
		f.understood[options] = true
		f.add(f.constructed(call, options, kind))
	}
}

func (f *metricsOfFile) add(m Metric, err error) {
	if err != nil {
		f.errs = append(f.errs, err)
		return
	}
	slices.Sort(m.Labels)
	f.found = append(f.found, m)
}

// valueOf returns the value of a field of a literal; nil if it has none.
func valueOf(literal *ast.CompositeLit, field string) ast.Expr {
	if literal == nil {
		return nil
	}
	for _, element := range literal.Elts {
		if pair, ok := element.(*ast.KeyValueExpr); ok {
			if key, ok := pair.Key.(*ast.Ident); ok && key.Name == field {
				return pair.Value
			}
		}
	}
	return nil
}

func inspect(root ast.Node, f func(ast.Node)) {
	ast.Inspect(root, func(n ast.Node) bool {
		if n != nil {
			f(n)
		}
		return true
	})
}

// optionsOf returns a literal of prometheus' options and the kind that it makes,
// or nil.
func optionsOf(e ast.Expr) (*ast.CompositeLit, string) {
	literal, ok := e.(*ast.CompositeLit)
	if !ok {
		return nil, ""
	}
	name, ok := literal.Type.(*ast.SelectorExpr)
	if !ok {
		return nil, ""
	}
	kind := kinds[name.Sel.Name]
	if from, ok := name.X.(*ast.Ident); !ok || from.Name != "prometheus" || kind == "" {
		return nil, ""
	}
	return literal, kind
}

// constructed reads a call such as NewCounterVec(CounterOpts{...}, labels).
func (s *source) constructed(call *ast.CallExpr, options *ast.CompositeLit, kind string) (Metric, error) {
	m := Metric{Kind: kind}
	var err error
	for _, element := range options.Elts {
		field, ok := element.(*ast.KeyValueExpr)
		if !ok {
			return m, fmt.Errorf("%s: want options with field names", s.files.Position(element.Pos()))
		}
		switch field.Key.(*ast.Ident).Name {
		case "Name":
			m.Name, err = s.text(field.Value)
		case "Help":
			m.Help, err = s.text(field.Value)
		case "ConstLabels":
			var labels []string
			labels, err = s.texts(field.Value)
			m.Labels = append(m.Labels, labels...)
		case "Namespace", "Subsystem":
			err = fmt.Errorf("%s: want the whole name in Name, so that it can be searched for", s.files.Position(field.Pos()))
		}
		if err != nil {
			return m, err
		}
	}
	if name := call.Fun.(*ast.SelectorExpr).Sel.Name; strings.HasSuffix(name, "Vec") && len(call.Args) > 1 {
		labels, err := s.texts(call.Args[1])
		m.Labels = append(m.Labels, labels...)
		return m, err
	}
	return m, nil
}

// description reads a call of NewDesc(name, help, labels, constLabels). What it
// describes is a gauge, or a counter if its name says so.
func (s *source) description(call *ast.CallExpr) (Metric, error) {
	name, err := s.text(call.Args[0])
	if err != nil {
		return Metric{}, err
	}
	m := Metric{Name: name, Kind: "gauge"}
	if strings.HasSuffix(name, "_total") {
		m.Kind = "counter"
	}
	if m.Help, err = s.text(call.Args[1]); err != nil {
		return m, err
	}
	for _, labels := range call.Args[2:] {
		texts, err := s.texts(labels)
		if err != nil {
			return m, err
		}
		m.Labels = append(m.Labels, texts...)
	}
	return m, nil
}

// texts returns the elements of a slice of strings, or the keys of a map; none
// of nil.
func (s *source) texts(e ast.Expr) ([]string, error) {
	if name, ok := e.(*ast.Ident); ok {
		if name.Name == "nil" {
			return nil, nil
		}
		if given, ok := s.given[name.Name]; ok {
			return s.texts(given)
		}
	}
	literal, ok := e.(*ast.CompositeLit)
	if !ok {
		return nil, fmt.Errorf("%s: want labels that are written out", s.files.Position(e.Pos()))
	}
	var all []string
	for _, element := range literal.Elts {
		if pair, ok := element.(*ast.KeyValueExpr); ok {
			element = pair.Key
		}
		text, err := s.text(element)
		if err != nil {
			return nil, err
		}
		all = append(all, text)
	}
	return all, nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

const markerPrefix = "+kubebuilder:rbac:"

// rule is what a marker asks for.
type rule struct {
	role string
	// namespace is empty for a rule of a ClusterRole.
	namespace                               string
	groups, resources, resourceNames, verbs []string
	// reasons are the lines that say what it is for.
	reasons []string
}

// readTree returns the rules of all Go files below root that are part of the
// product.
func readTree(root string) ([]rule, error) {
	var all []rule
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch name := d.Name(); {
		case err != nil:
			return err
		case d.IsDir():
			below, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			if slices.Contains([]string{"hack", "test", "build", "bin"}, below) || name == "testdata" || strings.HasPrefix(name, ".") && path != root {
				return filepath.SkipDir
			}
			return nil
		case !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rules, err := readFile(files, file)
		all = append(all, rules...)
		return err
	})
	return all, err
}

// readFile returns the rules of one file.
func readFile(files *token.FileSet, file *ast.File) ([]rule, error) {
	var rules []rule
	var errs []error
	for _, group := range file.Comments {
		var reasons []string
		for _, comment := range group.List {
			text := strings.TrimSpace(strings.TrimPrefix(comment.Text, "//"))
			marker, found := strings.CutPrefix(text, markerPrefix)
			if !found {
				reasons = append(reasons, text)
				continue
			}
			r, err := parseMarker(marker)
			switch {
			case err != nil:
			case len(reasons) == 0:
				err = errors.New("want what the right is for in the lines above the marker")
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", files.Position(comment.Pos()), err))
				continue
			}
			r.reasons, reasons = reasons, nil
			rules = append(rules, r)
		}
	}
	return rules, errors.Join(errs...)
}

// parseMarker reads what follows the prefix. It knows the arguments of
// controller-gen's marker but for urls, which no role of ours has.
func parseMarker(text string) (rule, error) {
	var r rule
	for argument := range strings.SplitSeq(text, ",") {
		name, value, found := strings.Cut(argument, "=")
		if !found || value == "" {
			return rule{}, fmt.Errorf("argument %q: want name=value", argument)
		}
		values := strings.Split(value, ";")
		for i, v := range values {
			values[i] = strings.Trim(v, `"`)
		}
		switch name {
		case "groups":
			r.groups = values
		case "resources":
			r.resources = values
		case "resourceNames":
			r.resourceNames = values
		case "verbs":
			r.verbs = values
		case "namespace":
			r.namespace = values[0]
		case "roleName":
			r.role = values[0]
		default:
			return rule{}, fmt.Errorf("argument %q: want groups, resources, resourceNames, verbs, namespace or roleName", name)
		}
	}
	switch {
	case r.role == "":
		return rule{}, errors.New("no roleName: want the role whose right it is")
	case len(r.groups) == 0 || len(r.resources) == 0 || len(r.verbs) == 0:
		return rule{}, fmt.Errorf("%q: want groups, resources and verbs", text)
	case r.namespace != "" && r.namespace != namespace:
		return rule{}, fmt.Errorf("namespace %q: want %q, or none for all", r.namespace, namespace)
	case slices.Contains(slices.Concat(r.groups, r.resources, r.verbs), "*"):
		return rule{}, fmt.Errorf("%q: want each right by its name, not *", text)
	}
	return r, nil
}

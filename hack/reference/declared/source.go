// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package declared reads from the repository's source what it declares for its
// users: metrics, and constants and fields with their doc comments.
//
// It parses and compiles nothing, so it understands only what is written out: a
// metric whose name is put together at run time is an error, never left out.
package declared

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// source is the Go files of one directory, without tests.
type source struct {
	files *token.FileSet
	trees []*ast.File
	// constants are the string constants of the package by name.
	constants map[string]string
	// given are the arguments of the call that is read, by parameter.
	given map[string]ast.Expr
}

// parse reads dir.
func parse(dir string) (*source, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	s := &source{files: token.NewFileSet(), constants: map[string]string{}}
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(s.files, filepath.Join(dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		s.trees = append(s.trees, tree)
	}
	// Constants may be made of others: until no more become known.
	for known := -1; known < len(s.constants); {
		known = len(s.constants)
		s.eachConstant(func(_ *ast.GenDecl, _ *ast.ValueSpec, name *ast.Ident, value ast.Expr) {
			if text, err := s.text(value); err == nil {
				s.constants[name.Name] = text
			}
		})
	}
	return s, nil
}

// eachConstant calls f with every constant that is given a value of its own, in
// the order of the files.
func (s *source) eachConstant(f func(*ast.GenDecl, *ast.ValueSpec, *ast.Ident, ast.Expr)) {
	for _, tree := range s.trees {
		for _, d := range tree.Decls {
			group, ok := d.(*ast.GenDecl)
			if !ok || group.Tok != token.CONST {
				continue
			}
			for _, spec := range group.Specs {
				spec := spec.(*ast.ValueSpec)
				for i, name := range spec.Names {
					if i < len(spec.Values) {
						f(group, spec, name, spec.Values[i])
					}
				}
			}
		}
	}
}

var errNotWrittenOut = errors.New("want a string that is written out, or a constant of the package")

// text returns the value of a string expression.
func (s *source) text(e ast.Expr) (string, error) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			return strconv.Unquote(e.Value)
		}
	case *ast.ParenExpr:
		return s.text(e.X)
	case *ast.BinaryExpr:
		left, err := s.text(e.X)
		if err != nil {
			return "", err
		}
		right, err := s.text(e.Y)
		return left + right, err
	case *ast.Ident:
		if given, ok := s.given[e.Name]; ok {
			return s.text(given)
		}
		if text, ok := s.constants[e.Name]; ok {
			return text, nil
		}
	}
	return "", fmt.Errorf("%s: %w", s.files.Position(e.Pos()), errNotWrittenOut)
}

// directories returns root and the directories under it that hold Go files, but
// for what is no product code: testdata and hidden ones.
func directories(root string) ([]string, error) {
	var all []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		case d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != root:
			return filepath.SkipDir
		}
		all = append(all, path)
		return nil
	})
	return all, err
}

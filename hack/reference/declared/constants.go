// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package declared

import (
	"fmt"
	"go/ast"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
)

// Constant is a string constant and what its doc comment says.
type Constant struct {
	Name, Value string
	// Doc is the comment without the constant's name, in one line, with the
	// values of other constants of the package in place of their names.
	Doc string
}

// Constants returns the string constants of the package in dir, under root,
// whose names are wanted, in the order of the source. It is an error if there is
// none, or one without a doc comment.
func Constants(root, dir string, wanted *regexp.Regexp) ([]Constant, error) {
	s, err := parse(filepath.Join(root, dir))
	if err != nil {
		return nil, err
	}
	var found []Constant
	s.eachConstant(func(group *ast.GenDecl, spec *ast.ValueSpec, name *ast.Ident, _ ast.Expr) {
		value, ok := s.constants[name.Name]
		if !ok || !wanted.MatchString(name.Name) {
			return
		}
		comment := spec.Doc
		if comment == nil && len(group.Specs) == 1 {
			comment = group.Doc
		}
		if comment == nil {
			comment = spec.Comment
		}
		doc := s.prose(comment, name.Name)
		if doc == "" {
			err = fmt.Errorf("%s: %s has no doc comment", s.files.Position(name.Pos()), name.Name)
		}
		found = append(found, Constant{Name: name.Name, Value: value, Doc: doc})
	})
	if len(found) == 0 {
		return nil, fmt.Errorf("%s: no constant is called %s", dir, wanted)
	}
	return found, err
}

var (
	identifier = regexp.MustCompile(`\b[A-Z]\w+\b`)
	// beginning is what stands between a name and what is said of it.
	beginning = regexp.MustCompile(`^( is | are |:| \((True|False|Unknown)\):) *`)
	verdict   = regexp.MustCompile(`\((True|False|Unknown)\)`)
)

// prose returns a comment as one line of Markdown, without name at its front.
func (s *source) prose(comment *ast.CommentGroup, name string) string {
	text := plain(comment)
	if rest, ok := strings.CutPrefix(text, name); ok {
		between := beginning.FindString(rest)
		text = strings.TrimPrefix(rest, between)
		if v := verdict.FindStringSubmatch(between); v != nil {
			text = v[1] + ": " + text
		}
	}
	text = identifier.ReplaceAllStringFunc(text, func(word string) string {
		if value, ok := s.constants[word]; ok && value != word {
			return "`" + value + "`"
		}
		return word
	})
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

// plain returns a comment as one line, without markers for other generators,
// such as +optional.
func plain(comment *ast.CommentGroup) string {
	if comment == nil {
		return ""
	}
	var words []string
	for line := range strings.Lines(comment.Text()) {
		if !strings.HasPrefix(line, "+") {
			words = append(words, strings.Fields(line)...)
		}
	}
	return strings.Join(words, " ")
}

// Field is a field of an object of the API.
type Field struct {
	// Path is that of the field from the top, such as "nodes.summary", or
	// "laggingNodes[].name".
	Path string
	Type string
	Doc  string
}

// Fields returns the fields of a struct of the package in dir, under root, with
// those of the structs that it is made of, in the order of the source.
func Fields(root, dir, structure string) ([]Field, error) {
	s, err := parse(filepath.Join(root, dir))
	if err != nil {
		return nil, err
	}
	structures := map[string]*ast.StructType{}
	for _, tree := range s.trees {
		inspect(tree, func(n ast.Node) {
			if t, ok := n.(*ast.TypeSpec); ok {
				if st, ok := t.Type.(*ast.StructType); ok {
					structures[t.Name.Name] = st
				}
			}
		})
	}
	top := structures[structure]
	if top == nil {
		return nil, fmt.Errorf("%s: no struct %s", dir, structure)
	}
	var all []Field
	var add func(prefix string, t *ast.StructType)
	add = func(prefix string, t *ast.StructType) {
		for _, f := range t.Fields.List {
			name := jsonName(f)
			if name == "" || len(f.Names) != 1 {
				continue
			}
			kind, inner := typeName(f.Type)
			path := prefix + name
			if strings.HasPrefix(kind, "[]") {
				path += "[]"
			}
			all = append(all, Field{Path: path, Type: kind, Doc: plain(f.Doc)})
			if below := structures[inner]; below != nil {
				add(path+".", below)
			}
		}
	}
	add("", top)
	return all, nil
}

// jsonName returns the name of a field in the API; empty if it has none of its
// own.
func jsonName(f *ast.Field) string {
	if f.Tag == nil {
		return ""
	}
	tag, err := strconv.Unquote(f.Tag.Value)
	if err != nil {
		return ""
	}
	name, _, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
	return name
}

// typeName returns a type's name for people, and that of the struct of the same
// package that it is made of, if there is one.
func typeName(e ast.Expr) (string, string) {
	switch e := e.(type) {
	case *ast.Ident:
		return strings.TrimSuffix(strings.TrimSuffix(e.Name, "32"), "64"), e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name, ""
	case *ast.StarExpr:
		return typeName(e.X)
	case *ast.ArrayType:
		name, inner := typeName(e.Elt)
		return "[]" + name, inner
	}
	return "object", ""
}

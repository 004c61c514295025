// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// datum is the value of a column: a set, of which a scalar is one of one
// element, or a map. Both are sorted by their keys, without duplicates. Atoms
// of all types are kept as text, in one way of writing for each value.
type datum struct {
	keys   []string
	values []string // of a map, beside keys
}

const (
	atomTrue  = "true"
	atomFalse = "false"
)

// atomInt reads what parseAtom made of an integer.
func atomInt(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// parseDatum reads a <value> of RFC 7047 section 5.1.
func parseDatum(raw json.RawMessage, t columnType) (datum, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return datum{}, fmt.Errorf("not a value: %w", err)
	}
	if pair, ok := v.([]any); ok && len(pair) == 2 {
		switch list, isList := pair[1].([]any); pair[0] {
		case "set":
			if !isList || t.value != "" {
				return datum{}, fmt.Errorf("a set where a value of type %s should be", t)
			}
			return parseSet(list, t)
		case "map":
			if !isList || t.value == "" {
				return datum{}, fmt.Errorf("a map where a value of type %s should be", t)
			}
			return parseMap(list, t)
		}
	}
	if t.value != "" {
		return datum{}, fmt.Errorf("one atom where a value of type %s should be", t)
	}
	atom, err := parseAtom(v, t.key)
	if err != nil {
		return datum{}, err
	}
	return datum{keys: []string{atom}}, nil
}

func parseSet(list []any, t columnType) (datum, error) {
	if len(list) == 0 {
		return datum{}, nil
	}
	d := datum{keys: make([]string, len(list))}
	for i, v := range list {
		atom, err := parseAtom(v, t.key)
		if err != nil {
			return datum{}, err
		}
		d.keys[i] = atom
	}
	slices.Sort(d.keys)
	for i := range d.keys[1:] {
		if d.keys[i] == d.keys[i+1] {
			return datum{}, errors.New("a set with an element twice")
		}
	}
	return d, nil
}

func parseMap(list []any, t columnType) (datum, error) {
	if len(list) == 0 {
		return datum{}, nil
	}
	pairs := make([][2]string, len(list))
	for i, v := range list {
		pair, ok := v.([]any)
		if !ok || len(pair) != 2 {
			return datum{}, errors.New("a map with what is no pair")
		}
		var err error
		if pairs[i][0], err = parseAtom(pair[0], t.key); err != nil {
			return datum{}, err
		}
		if pairs[i][1], err = parseAtom(pair[1], t.value); err != nil {
			return datum{}, err
		}
	}
	slices.SortFunc(pairs, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	d := datum{keys: make([]string, len(pairs)), values: make([]string, len(pairs))}
	for i, p := range pairs {
		if i > 0 && p[0] == pairs[i-1][0] {
			return datum{}, errors.New("a map with a key twice")
		}
		d.keys[i], d.values[i] = p[0], p[1]
	}
	return d, nil
}

// parseAtom reads an <atom> and writes it in the one way of datum.
func parseAtom(v any, t atomType) (string, error) {
	switch t {
	case typeString:
		if s, ok := v.(string); ok {
			return s, nil
		}
	case typeInteger:
		if n, ok := v.(json.Number); ok {
			if i, err := strconv.ParseInt(n.String(), 10, 64); err == nil {
				return strconv.FormatInt(i, 10), nil
			}
		}
	case typeReal:
		if n, ok := v.(json.Number); ok {
			if f, err := n.Float64(); err == nil {
				return strconv.FormatFloat(f, 'g', -1, 64), nil
			}
		}
	case typeBoolean:
		switch v {
		case true:
			return atomTrue, nil
		case false:
			return atomFalse, nil
		}
	case typeUUID:
		if pair, ok := v.([]any); ok && len(pair) == 2 && pair[0] == "uuid" {
			if s, ok := pair[1].(string); ok && isUUID(s) {
				return s, nil
			}
		}
	}
	return "", fmt.Errorf("%.100q is no %s", fmt.Sprint(v), t)
}

// isUUID returns whether s is a UUID in the way that servers write it, with
// small letters: a row has one name only.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return false
			}
		}
	}
	return true
}

// equal returns whether both hold the same value.
func (d datum) equal(other datum) bool {
	return slices.Equal(d.keys, other.keys) && slices.Equal(d.values, other.values)
}

// apply returns what "modify" of update2 makes of the value: a column of at
// most one element is replaced; of a set the elements of diff that it has are
// removed and those that it lacks are added; of a map a pair of diff that it
// has is removed, another is added or replaces the value.
func (d datum) apply(diff datum, t columnType) datum {
	if t.single() {
		return diff
	}
	size := len(d.keys) + len(diff.keys)
	out := datum{keys: make([]string, 0, size)}
	isMap := t.value != ""
	if isMap {
		out.values = make([]string, 0, size)
	}
	put := func(from datum, i int) {
		out.keys = append(out.keys, from.keys[i])
		if isMap {
			out.values = append(out.values, from.values[i])
		}
	}
	i, j := 0, 0
	for i < len(d.keys) || j < len(diff.keys) {
		switch {
		case j == len(diff.keys) || i < len(d.keys) && d.keys[i] < diff.keys[j]:
			put(d, i)
			i++
		case i == len(d.keys) || diff.keys[j] < d.keys[i]:
			put(diff, j)
			j++
		default:
			if isMap && d.values[i] != diff.values[j] {
				put(diff, j)
			}
			i, j = i+1, j+1
		}
	}
	out.keys, out.values = slices.Clip(out.keys), slices.Clip(out.values)
	if len(out.keys) == 0 {
		return datum{}
	}
	return out
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Kind says by which accessor of Row a column is read.
type Kind uint8

// The kinds of columns. No two of them read the same column but String and
// Strings.
const (
	// String reads a string, or an optional one.
	String Kind = iota + 1
	// Int reads an integer, or an optional one.
	Int
	// Bool reads a boolean, or an optional one.
	Bool
	// Strings reads a set of strings.
	Strings
	// UUIDs reads a reference to a row, an optional one, or a set of them.
	UUIDs
	// Map reads a map; keys and values of other types than string are texts.
	Map
)

// reads returns whether columns of the type can be read as the kind.
func (k Kind) reads(t columnType) bool {
	switch k {
	case String:
		return t.value == "" && t.key == typeString && t.single()
	case Int:
		return t.value == "" && t.key == typeInteger && t.single()
	case Bool:
		return t.value == "" && t.key == typeBoolean && t.single()
	case Strings:
		return t.value == "" && t.key == typeString
	case UUIDs:
		return t.value == "" && t.key == typeUUID
	case Map:
		return t.value != ""
	default:
		return false
	}
}

func (k Kind) String() string {
	names := [...]string{String: "String", Int: "Int", Bool: "Bool", Strings: "Strings", UUIDs: "UUIDs", Map: "Map"}
	if int(k) < len(names) && names[k] != "" {
		return names[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// atomType is the type of an atom, by its name in schemas.
type atomType string

const (
	typeInteger atomType = "integer"
	typeReal    atomType = "real"
	typeBoolean atomType = "boolean"
	typeString  atomType = "string"
	typeUUID    atomType = "uuid"
)

// zero returns the value that an atom has by default, as datum keeps it.
func (t atomType) zero() string {
	switch t {
	case typeInteger, typeReal:
		return "0"
	case typeBoolean:
		return atomFalse
	case typeUUID:
		return "00000000-0000-0000-0000-000000000000"
	case typeString:
	}
	return ""
}

// unlimited is the max of a columnType without one.
const unlimited = -1

// columnType is a <type> of RFC 7047 section 3.2, without what restricts it.
type columnType struct {
	key, value atomType // value is "" but for maps
	min, max   int      // elements
}

// single returns whether a value has no more than one element.
func (t columnType) single() bool { return t.max == 1 }

// zero returns the value of a column that the server leaves out.
func (t columnType) zero() datum {
	if t.min == 0 {
		return datum{}
	}
	d := datum{keys: []string{t.key.zero()}}
	if t.value != "" {
		d.values = []string{t.value.zero()}
	}
	return d
}

func (t columnType) String() string {
	switch {
	case t.value != "":
		return fmt.Sprintf("map of %s to %s", t.key, t.value)
	case t.single() && t.min == 1:
		return string(t.key)
	case t.single():
		return "optional " + string(t.key)
	default:
		return "set of " + string(t.key)
	}
}

// UnmarshalJSON reads a <type>.
func (t *columnType) UnmarshalJSON(raw []byte) error {
	var name atomType
	if json.Unmarshal(raw, &name) == nil {
		*t = columnType{key: name, min: 1, max: 1}
		return t.check()
	}
	var full struct {
		Key   json.RawMessage `json:"key"`
		Value json.RawMessage `json:"value"`
		Min   *int            `json:"min"`
		Max   json.RawMessage `json:"max"`
	}
	if err := json.Unmarshal(raw, &full); err != nil {
		return err
	}
	*t = columnType{min: 1, max: 1}
	var err error
	if t.key, err = parseBaseType(full.Key); err != nil {
		return err
	}
	if full.Value != nil {
		if t.value, err = parseBaseType(full.Value); err != nil {
			return err
		}
	}
	if full.Min != nil {
		t.min = *full.Min
	}
	switch string(full.Max) {
	case "":
	case `"unlimited"`:
		t.max = unlimited
	default:
		if err := json.Unmarshal(full.Max, &t.max); err != nil || t.max < 1 {
			return fmt.Errorf("max %.20s is neither a positive number nor \"unlimited\"", full.Max)
		}
	}
	return t.check()
}

func (t *columnType) check() error {
	for _, atom := range []atomType{t.key, t.value} {
		switch atom {
		case typeInteger, typeReal, typeBoolean, typeString, typeUUID:
		case "":
			if t.key == "" {
				return errors.New("a type without key")
			}
		default:
			return fmt.Errorf("unknown type %.40q", string(atom))
		}
	}
	if t.min != 0 && t.min != 1 {
		return fmt.Errorf("min %d is neither 0 nor 1", t.min)
	}
	return nil
}

// parseBaseType reads a <base-type>: a name, or an object with the name.
func parseBaseType(raw json.RawMessage) (atomType, error) {
	var name atomType
	if json.Unmarshal(raw, &name) == nil && name != "" {
		return name, nil
	}
	var full struct {
		Type atomType `json:"type"`
	}
	if err := json.Unmarshal(raw, &full); err != nil || full.Type == "" {
		return "", fmt.Errorf("%.60q is no base type", raw)
	}
	return full.Type, nil
}

// databaseSchema is what is used of a <database-schema>.
type databaseSchema struct {
	Version string                 `json:"version"`
	Tables  map[string]tableSchema `json:"tables"`
}

type tableSchema struct {
	Columns map[string]struct {
		Type columnType `json:"type"`
	} `json:"columns"`
	MaxRows int `json:"maxRows"`
}

// parseSchema reads the result of get_schema.
func parseSchema(raw json.RawMessage) (*databaseSchema, error) {
	var s databaseSchema
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("the server's schema: %w", err)
	}
	if len(s.Tables) == 0 {
		return nil, errors.New("the server's schema has no tables")
	}
	return &s, nil
}

// table is a table that is monitored: what was asked for and what the server
// has.
type table struct {
	name    string
	columns []column
	index   map[string]int // by the column's name
}

type column struct {
	name string
	as   Kind
	typ  columnType
}

// same returns whether rows of one table are rows of the other.
func (t *table) same(other *table) bool {
	if t.name != other.name || len(t.columns) != len(other.columns) {
		return false
	}
	for i := range t.columns {
		if t.columns[i] != other.columns[i] {
			return false
		}
	}
	return true
}

// resolve finds the tables that were asked for in the server's schema. What is
// optional and not there is left out.
func (s *databaseSchema) resolve(asked []Table) (map[string]*table, error) {
	tables := make(map[string]*table, len(asked))
	for _, a := range asked {
		have, ok := s.Tables[a.Name]
		if !ok {
			if a.Optional {
				continue
			}
			return nil, fmt.Errorf("the server's schema (version %.20q) has no table %s", s.Version, a.Name)
		}
		t := &table{name: a.Name, index: make(map[string]int, len(a.Columns))}
		for _, c := range a.Columns {
			found, ok := have.Columns[c.Name]
			if !ok {
				if c.Optional {
					continue
				}
				return nil, fmt.Errorf("table %s of the server's schema (version %.20q) has no column %s", a.Name, s.Version, c.Name)
			}
			if !c.As.reads(found.Type) {
				return nil, fmt.Errorf("column %s of table %s has the type %s and cannot be read as %s", c.Name, a.Name, found.Type, c.As)
			}
			t.index[c.Name] = len(t.columns)
			t.columns = append(t.columns, column{name: c.Name, as: c.As, typ: found.Type})
		}
		tables[a.Name] = t
	}
	return tables, nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/utils/clock"
)

var (
	aString  = columnType{key: typeString, min: 1, max: 1}
	strs     = columnType{key: typeString, min: 0, max: unlimited}
	anInt    = columnType{key: typeInteger, min: 1, max: 1}
	ints     = columnType{key: typeInteger, min: 0, max: unlimited}
	aReal    = columnType{key: typeReal, min: 0, max: 1}
	aBool    = columnType{key: typeBoolean, min: 1, max: 1}
	refs     = columnType{key: typeUUID, min: 0, max: unlimited}
	texts    = columnType{key: typeString, value: typeString, min: 0, max: unlimited}
	queues   = columnType{key: typeInteger, value: typeUUID, min: 0, max: unlimited}
	allTypes = []columnType{aString, strs, anInt, ints, aReal, aBool, refs, texts, queues}
)

func TestParseDatum(t *testing.T) {
	for name, test := range map[string]struct {
		raw  string
		typ  columnType
		want datum
		err  string
	}{
		"a string":                           {raw: `"a"`, typ: aString, want: datum{keys: []string{"a"}}},
		"an empty string is a value":         {raw: `""`, typ: aString, want: datum{keys: []string{""}}},
		"a string may be called set":         {raw: `["set",["set","map"]]`, typ: strs, want: datum{keys: []string{"map", "set"}}},
		"an atom is a set of one":            {raw: `"a"`, typ: strs, want: datum{keys: []string{"a"}}},
		"an empty set":                       {raw: `["set",[]]`, typ: strs, want: datum{}},
		"sets are sorted":                    {raw: `["set",["b","a","c"]]`, typ: strs, want: datum{keys: []string{"a", "b", "c"}}},
		"an integer":                         {raw: `-7`, typ: anInt, want: datum{keys: []string{"-7"}}},
		"the largest integer":                {raw: `9223372036854775807`, typ: anInt, want: datum{keys: []string{"9223372036854775807"}}},
		"one more is none":                   {raw: `9223372036854775808`, typ: anInt, err: `"9223372036854775808" is no integer`},
		"a real is no integer":               {raw: `1.5`, typ: anInt, err: "no integer"},
		"reals are written in one way":       {raw: `1.50e1`, typ: aReal, want: datum{keys: []string{"15"}}},
		"a boolean":                          {raw: `true`, typ: aBool, want: datum{keys: []string{"true"}}},
		"1 is no boolean":                    {raw: `1`, typ: aBool, err: `"1" is no boolean`},
		"null is no value":                   {raw: `null`, typ: aString, err: "is no string"},
		"a reference":                        {raw: `["uuid","` + row1 + `"]`, typ: refs, want: datum{keys: []string{row1}}},
		"a set of references":                {raw: `["set",[["uuid","` + row2 + `"],["uuid","` + row1 + `"]]]`, typ: refs, want: datum{keys: []string{row1, row2}}},
		"a named reference is none":          {raw: `["named-uuid","x"]`, typ: refs, err: "is no uuid"},
		"a map":                              {raw: `["map",[["b","1"],["a","2"]]]`, typ: texts, want: datum{keys: []string{"a", "b"}, values: []string{"2", "1"}}},
		"an empty map":                       {raw: `["map",[]]`, typ: texts, want: datum{}},
		"a map of integers to references":    {raw: `["map",[[0,["uuid","` + row1 + `"]]]]`, typ: queues, want: datum{keys: []string{"0"}, values: []string{row1}}},
		"a key twice":                        {raw: `["map",[["a","1"],["a","2"]]]`, typ: texts, err: "a key twice"},
		"an element twice":                   {raw: `["set",["a","a"]]`, typ: strs, err: "an element twice"},
		"a map where a set should be":        {raw: `["map",[]]`, typ: strs, err: "a map where a value of type set of string should be"},
		"a set where a map should be":        {raw: `["set",[]]`, typ: texts, err: "a set where a value of type map of string to string should be"},
		"an atom where a map should be":      {raw: `"a"`, typ: texts, err: "one atom where"},
		"a set of what is no list":           {raw: `["set","a"]`, typ: strs, err: "a set where"},
		"a pair of three":                    {raw: `["map",[["a","b","c"]]]`, typ: texts, err: "what is no pair"},
		"an object":                          {raw: `{"a":1}`, typ: aString, err: "is no string"},
		"what is no JSON":                    {raw: `{`, typ: aString, err: "not a value"},
		"a uuid that is too short is none":   {raw: `["uuid","0"]`, typ: refs, err: "is no uuid"},
		"a uuid with another letter is none": {raw: `["uuid","` + strings.Replace(row1, "4", "g", 1) + `"]`, typ: refs, err: "is no uuid"},
		"a uuid is in small letters":         {raw: `["uuid","` + strings.Replace(row1, "4", "A", 1) + `"]`, typ: refs, err: "is no uuid"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseDatum(json.RawMessage(test.raw), test.typ)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want %q", err, test.err)
				}
				return
			}
			if err != nil || !got.equal(test.want) {
				t.Errorf("got %v, %v, want %v", got, err, test.want)
			}
		})
	}
}

// TestApplyUndoesTheDifference makes differences in the way of ovsdb_datum_diff
// in ovsdb's lib/ovsdb-data.c, and holds that applying them gives what they
// were made of.
func TestApplyUndoesTheDifference(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		before, after := randomMap(random), randomMap(random)
		diff := map[string]string{}
		for k, v := range before {
			if now, ok := after[k]; !ok {
				diff[k] = v
			} else if now != v {
				diff[k] = now
			}
		}
		for k, v := range after {
			if _, ok := before[k]; !ok {
				diff[k] = v
			}
		}
		if got := mapDatum(before).apply(mapDatum(diff), texts); !got.equal(mapDatum(after)) {
			t.Fatalf("map %v and difference %v: got %v, want %v", before, diff, got, after)
		}
		for k := range diff {
			if _, both := before[k]; both {
				if _, both = after[k]; both {
					delete(diff, k)
				}
			}
		}
		got := setDatum(before).apply(setDatum(diff), strs)
		if !got.equal(setDatum(after)) {
			t.Fatalf("set %v and difference %v: got %v, want %v", before, diff, got, after)
		}
	}
	if got := (datum{keys: []string{"a"}}).apply(datum{}, aString); len(got.keys) != 0 {
		t.Errorf("an optional value that is taken away is %v", got)
	}
}

func randomMap(random *rand.Rand) map[string]string {
	all := map[string]string{}
	for range random.IntN(6) {
		all[strconv.Itoa(random.IntN(8))] = strconv.Itoa(random.IntN(3))
	}
	return all
}

func mapDatum(m map[string]string) datum {
	var d datum
	for _, k := range slices.Sorted(maps.Keys(m)) {
		d.keys, d.values = append(d.keys, k), append(d.values, m[k])
	}
	return d
}

func setDatum(m map[string]string) datum { return datum{keys: slices.Sorted(maps.Keys(m))} }

func TestColumnTypes(t *testing.T) {
	for name, test := range map[string]struct {
		raw   string
		want  string
		reads []Kind
		err   string
	}{
		"a name":                 {raw: `"string"`, want: "string", reads: []Kind{String, Strings}},
		"a key":                  {raw: `{"key":"integer"}`, want: "integer", reads: []Kind{Int}},
		"an optional one":        {raw: `{"key":{"type":"boolean"},"min":0}`, want: "optional boolean", reads: []Kind{Bool}},
		"an optional reference":  {raw: `{"key":{"type":"uuid","refTable":"T"},"min":0,"max":1}`, want: "optional uuid", reads: []Kind{UUIDs}},
		"an enumeration":         {raw: `{"key":{"type":"string","enum":["set",["a","b"]]}}`, want: "string", reads: []Kind{String, Strings}},
		"a set":                  {raw: `{"key":"string","min":0,"max":"unlimited"}`, want: "set of string", reads: []Kind{Strings}},
		"a set of up to two":     {raw: `{"key":"string","min":0,"max":2}`, want: "set of string", reads: []Kind{Strings}},
		"a set of reals":         {raw: `{"key":"real","min":0,"max":2}`, want: "set of real"},
		"a map":                  {raw: `{"key":"string","value":{"type":"integer"},"min":0,"max":"unlimited"}`, want: "map of string to integer", reads: []Kind{Map}},
		"an unknown type":        {raw: `"blob"`, err: `unknown type "blob"`},
		"an unknown key":         {raw: `{"key":"blob"}`, err: `unknown type "blob"`},
		"no key":                 {raw: `{"min":0}`, err: "is no base type"},
		"a key without a type":   {raw: `{"key":{}}`, err: "is no base type"},
		"a max of none":          {raw: `{"key":"string","max":0}`, err: "max 0"},
		"a max in other words":   {raw: `{"key":"string","max":"many"}`, err: `max "many"`},
		"a min of many":          {raw: `{"key":"string","min":2,"max":3}`, err: "min 2"},
		"a number":               {raw: `7`, err: "cannot unmarshal"},
		"a value of no type":     {raw: `{"key":"string","value":7}`, err: "is no base type"},
		"a min that is no count": {raw: `{"key":"string","min":"x"}`, err: "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			var got columnType
			err := json.Unmarshal([]byte(test.raw), &got)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want %q", err, test.err)
				}
				return
			}
			if err != nil || got.String() != test.want {
				t.Fatalf("got %s, %v, want %s", got, err, test.want)
			}
			var reads []Kind
			for k := Kind(0); k <= Map+1; k++ {
				if k.reads(got) {
					reads = append(reads, k)
				}
			}
			if diff := cmp.Diff(test.reads, reads); diff != "" {
				t.Errorf("kinds that read it (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOptionsThatAreWrong(t *testing.T) {
	tables := fakeTables()
	for name, test := range map[string]struct {
		change func(*Options)
		err    string
	}{
		"no endpoint":      {func(o *Options) { o.Endpoints = nil }, "endpoints: none given"},
		"a wrong endpoint": {func(o *Options) { o.Endpoints = []string{"udp:x"} }, `endpoint "udp:x": unknown kind`},
		"no certificate":   {func(o *Options) { o.Endpoints = []string{"ssl:h:1"} }, "endpoint ssl:h:1 needs a certificate"},
		"no database":      {func(o *Options) { o.Database = "" }, "database: no name"},
		"no clock":         {func(o *Options) { o.Clock = nil }, "clock: none"},
		"no tables":        {func(o *Options) { o.Tables = nil }, "tables: none"},
		"a table twice":    {func(o *Options) { o.Tables = slices.Concat(tables, tables[:1]) }, `"Group" is empty or given twice`},
		"a column twice": {func(o *Options) {
			o.Tables = []Table{{Name: "T", Columns: []Column{{Name: "a", As: Int}, {Name: "a", As: Int}}}}
		}, `"a" is empty or given twice`},
		"a column of no way": {func(o *Options) { o.Tables = []Table{{Name: "T", Columns: []Column{{Name: "a"}}}} }, "to be read as Kind(0)"},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{Endpoints: []string{"unix:/x"}, Database: "Test", Tables: tables, Clock: clock.RealClock{}}
			if _, err := New(o); err != nil {
				t.Fatalf("without the change: %v", err)
			}
			test.change(&o)
			if _, err := New(o); err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("error %v, want %q", err, test.err)
			}
		})
	}
}

func TestPause(t *testing.T) {
	ms := func(all ...int) []time.Duration {
		var out []time.Duration
		for _, n := range all {
			out = append(out, time.Duration(n)*time.Millisecond)
		}
		return out
	}
	for endpoints, want := range map[int][]time.Duration{
		1: ms(0, 100, 200, 400, 800, 1600, 3200, 6400, 8000, 8000),
		3: ms(0, 50, 50, 100, 50, 50, 200, 50, 50, 400),
	} {
		for failed, d := range want {
			if got := pause(failed, endpoints); got != d {
				t.Errorf("%d endpoints, %d failed: %v, want %v", endpoints, failed, got, d)
			}
		}
		if got := pause(1e9*endpoints, endpoints); got != lastPause {
			t.Errorf("%d endpoints, for ever: %v", endpoints, got)
		}
	}
}

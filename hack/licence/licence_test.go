// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package licence

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// read returns a known text, with a name where there is to be one.
func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("texts", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "{any}", "Somebody, Inc. and others")
}

func TestIn(t *testing.T) {
	known, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	mit, bsd := read(t, "MIT"), read(t, "BSD-3-Clause")
	own, err := os.ReadFile("../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		text    string
		want    []string
		wantErr string
	}{
		"the licence of this repository":        {text: string(own), want: []string{"Apache-2.0"}},
		"a notice alone":                        {text: read(t, "Apache-2.0+notice"), want: []string{"Apache-2.0"}},
		"whose it is does not matter":           {text: "The MIT License (MIT)\n\nCopyright © 2020 A. Nobody <a@example.com>\nAll rights reserved.\n\n" + mit, want: []string{"MIT"}},
		"lines, case and marks do not matter":   {text: strings.ReplaceAll(strings.ToUpper(mit), "\n", " "), want: []string{"MIT"}},
		"bullets may be numbers":                {text: strings.ReplaceAll(bsd, "   *", "  2."), want: []string{"BSD-3-Clause"}},
		"two clauses are not three":             {text: read(t, "BSD-2-Clause"), want: []string{"BSD-2-Clause"}},
		"another form of the third clause":      {text: read(t, "BSD-3-Clause+names"), want: []string{"BSD-3-Clause"}},
		"ISC":                                   {text: read(t, "ISC"), want: []string{"ISC"}},
		"two of them":                           {text: "MIT License\n" + mit + "\n-----\n" + bsd, want: []string{"BSD-3-Clause", "MIT"}},
		"nothing":                               {wantErr: "licences known: []"},
		"a heading is no licence":               {text: "Apache License Version 2.0, January 2004\nhttp://www.apache.org/licenses/\n", wantErr: "licences known: []"},
		"a licence that is not known":           {text: "GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007\n", wantErr: `not known: "gnu general public license`},
		"one that is known and one that is not": {text: mit + "\nor the GNU General Public License\n", wantErr: `known: ["MIT"]; not known: "or the gnu general public license"`},
		"a condition before it":                 {text: "Not for use in aircraft.\n" + mit, wantErr: "aircraft"},
		"a condition in the middle": {
			text: strings.Replace(mit, "THE SOFTWARE IS", "The Software shall be used for Good, not Evil.\n\nTHE SOFTWARE IS", 1), wantErr: "licences known: []",
		},
		"a word is missing":                        {text: strings.Replace(mit, "without restriction", "with restriction", 1), wantErr: "licences known: []"},
		"a condition where a name is to be":        {text: strings.Replace(bsd, "Somebody, Inc.", strings.Repeat("and so on ", 10), 1), wantErr: "licences known: []"},
		"a condition behind whose it is, its line": {text: "Copyright (c) 2020 A\nfor a fee\n" + mit, wantErr: "for a fee"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := known.In(tc.text)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("licences (-want +got):\n%s", diff)
			}
			if (err == nil) != (tc.wantErr == "") || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("error %v, want %q", err, tc.wantErr)
			}
		})
	}
}

func FuzzIn(f *testing.F) {
	known, err := Load()
	if err != nil {
		f.Fatal(err)
	}
	f.Add("MIT License", "")
	f.Add("", "\nCopyright (c) 2020 A\n")
	f.Fuzz(func(t *testing.T, before, after string) {
		text := before + "\n" + read(t, "MIT") + "\n" + after
		ids, err := known.In(text)
		if err == nil && len(ids) == 0 {
			t.Fatal("no licence and no error")
		}
		if _, err := known.In(before); err == nil && strings.Contains(strings.ToLower(before), "gpl") {
			t.Fatalf("%q is taken as a known licence", before)
		}
	})
}

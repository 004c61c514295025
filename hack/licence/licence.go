// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package licence tells which licences a text consists of.
//
// It knows the texts in its directory texts and no others: these are the
// licences that may be linked into what is shipped. A text that has a word more
// to say, but for whose the work is and the headings in headings.txt, is an
// error: it may be a further condition. Somebody has to read it then, and add
// it here if it may be linked.
package licence

import (
	"cmp"
	"embed"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Known recognises licences. It is made by Load and safe for concurrent use.
type Known struct {
	forms []form
	// headings are longest first: some are the beginning of others.
	headings []string
	// holder is a line that says whose the work is, marker begins a line of a
	// list, and other is what words do not consist of.
	holder, marker, other *regexp.Regexp
}

// form is one text of a licence.
type form struct {
	id   string
	text *regexp.Regexp
}

//go:embed texts/*.txt headings.txt
var texts embed.FS

// Load reads the known texts.
func Load() (*Known, error) {
	k := &Known{
		holder: regexp.MustCompile(`(?i)^\W*(portions )?(copyright (\(c\)|©|[0-9]{4}|[{\[]yyyy)|©|all rights reserved\W*$)`),
		marker: regexp.MustCompile(`^\s*(\*|-|#+|//|\(?[0-9a-z][.)])\s+`),
		other:  regexp.MustCompile(`[^\p{L}\p{N}]+`),
	}
	headings, err := texts.ReadFile("headings.txt")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(headings)) {
		k.headings = append(k.headings, k.words(line))
	}
	slices.SortFunc(k.headings, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	files, err := texts.ReadDir("texts")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := texts.ReadFile(path.Join("texts", file.Name()))
		if err != nil {
			return nil, err
		}
		// A plus sign tells forms of one licence apart: Apache-2.0+notice.txt.
		id, _, _ := strings.Cut(strings.TrimSuffix(file.Name(), ".txt"), "+")
		// Names come in place of {any}.
		pattern := strings.ReplaceAll(k.words(string(text)), " any ", ` (\S+ ){0,16}?`)
		compiled, err := regexp.Compile(pattern)
		if err != nil {
			return nil, fmt.Errorf("text of %s: %w", file.Name(), err)
		}
		k.forms = append(k.forms, form{id, compiled})
	}
	return k, nil
}

// In returns the SPDX identifiers of the licences in a text, sorted, each once.
// It returns an error that quotes what it does not know.
func (k *Known) In(text string) ([]string, error) {
	// What is taken out leaves a mark, so that what was around it is not read
	// as one.
	const mark = " | "
	rest := k.words(text)
	var ids []string
	for _, f := range k.forms {
		if without := f.text.ReplaceAllString(rest, mark); without != rest {
			rest = without
			ids = append(ids, f.id)
		}
	}
	for _, heading := range k.headings {
		rest = strings.ReplaceAll(rest, heading, mark)
	}
	left := slices.DeleteFunc(strings.Fields(rest), func(word string) bool { return word == strings.TrimSpace(mark) })
	if len(ids) == 0 || len(left) > 0 {
		const most = 20
		if len(left) > most {
			left = append(left[:most:most], "...")
		}
		return nil, fmt.Errorf("licences known: %q; not known: %q", ids, strings.Join(left, " "))
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// words returns the words of a text, small, with a space before and after each:
// neither lines, punctuation nor whose it is tells licences apart.
func (k *Known) words(text string) string {
	var out strings.Builder
	out.WriteByte(' ')
	for line := range strings.Lines(text) {
		if k.holder.MatchString(line) {
			continue
		}
		line = k.marker.ReplaceAllString(line, "")
		for word := range strings.FieldsSeq(k.other.ReplaceAllString(strings.ToLower(line), " ")) {
			out.WriteString(word)
			out.WriteByte(' ')
		}
	}
	return out.String()
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// anchors returns what GitHub calls the headings of a page, and the page without
// its code.
func anchors(t *testing.T, path string) (map[string]bool, string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dropped := regexp.MustCompile(`[^a-z0-9 _-]`)
	found, text, code := map[string]bool{}, "", false
	for line := range strings.Lines(string(content)) {
		switch title := strings.TrimLeft(line, "#"); {
		case strings.HasPrefix(line, "```"):
			code = !code
		case code:
		case title != line:
			slug := dropped.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), "")
			found[strings.ReplaceAll(slug, " ", "-")] = true
		default:
			text += line
		}
	}
	return found, text
}

func TestLinksOfTheDocsLeadSomewhere(t *testing.T) {
	const root = "../.."
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("pages: %v, %v", pages, err)
	}
	link := regexp.MustCompile(`\]\(([^)#]*)(?:#([^)]*))?\)`)
	check := func(page, text string) {
		for _, match := range link.FindAllStringSubmatch(text, -1) {
			file, anchor := match[1], match[2]
			if strings.Contains(file, "://") {
				continue
			}
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", page, file, err)
				continue
			}
			if anchor == "" {
				continue
			}
			if known, _ := anchors(t, target); !known[anchor] {
				t.Errorf("%s links to %s, where there is no heading %q", page, match[0], anchor)
			}
		}
	}
	for _, page := range append(pages, filepath.Join(root, "README.md")) {
		_, text := anchors(t, page)
		check(page, text)
	}

	// Alerts link to what is on GitHub.
	alerts, err := os.ReadFile(filepath.Join(root, "config", "prometheus", "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	runbook := regexp.MustCompile(`runbook_url: https://github.com/policygate/policygate/blob/main/(\S+)`)
	for _, match := range runbook.FindAllSubmatch(alerts, -1) {
		check(filepath.Join(root, "alerts.yaml"), "]("+string(match[1])+")")
	}
}

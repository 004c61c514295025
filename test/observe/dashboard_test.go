// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Grafana draws 24 columns.
const columns = 24

// What Grafana would draw somehow, and nobody could read.
func TestThePanelsCanBeRead(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(files, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			ID          int
			Title       string
			Type        string
			Description string
			GridPos     struct{ X, Y, W, H int }
			FieldConfig struct{ Defaults struct{ Unit string } }
			Datasource  struct{ Type, UID string }
			Targets     []struct {
				RefID, Expr, LegendFormat string
			}
		}
	}
	if err := json.Unmarshal(content, &dashboard); err != nil {
		t.Fatal(err)
	}
	ids, cells := map[int]bool{}, map[[2]int]string{}
	label := regexp.MustCompile(`\{\{(\w+)\}\}`)
	for _, p := range dashboard.Panels {
		if ids[p.ID] || p.Title == "" {
			t.Errorf("panel %d %q: want an id of its own, and a title", p.ID, p.Title)
		}
		ids[p.ID] = true
		if p.GridPos.X+p.GridPos.W > columns || p.GridPos.W < 1 || p.GridPos.H < 1 {
			t.Errorf("panel %q: %+v does not fit into %d columns", p.Title, p.GridPos, columns)
		}
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				cell := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other, taken := cells[cell]; taken {
					t.Fatalf("panels %q and %q overlap", other, p.Title)
				}
				cells[cell] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Description == "" || p.FieldConfig.Defaults.Unit == "" || p.Datasource.UID != "${datasource}" {
			t.Errorf("panel %q: want a description, a unit, and the data source that was chosen", p.Title)
		}
		references := map[string]bool{}
		for _, q := range p.Targets {
			if references[q.RefID] {
				t.Errorf("panel %q: two queries are called %q", p.Title, q.RefID)
			}
			references[q.RefID] = true
			for _, match := range label.FindAllStringSubmatch(q.LegendFormat, -1) {
				// What is not summed keeps the labels of its scrape.
				if !strings.Contains(q.Expr, match[1]) && (match[1] != "instance" || strings.Contains(q.Expr, "sum")) {
					t.Errorf("panel %q: the legend says %s, which %s leaves out", p.Title, match[0], q.Expr)
				}
			}
		}
	}
}

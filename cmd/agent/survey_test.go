// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/agent/kernel"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

func TestWhatAPersonShouldKnowOfANode(t *testing.T) {
	for name, tc := range map[string]struct {
		survey kernel.Survey
		want   []string
	}{
		"nothing":                       {},
		"one variant":                   {survey: kernel.Survey{Dataplanes: []string{kernel.LegacyTables, kernel.NativeTables, kernel.Sets}}},
		"two variants":                  {survey: kernel.Survey{Dataplanes: []string{kernel.LegacyTables, kernel.CompatTables}}, want: []string{hubv1.RemarkTwoVariants}},
		"bridges and virtual servers":   {survey: kernel.Survey{Unfiltered: []string{"cni0"}, VirtualServers: true}, want: []string{hubv1.RemarkBridgeUnfiltered, hubv1.RemarkIPVS}},
		"many bridges with odd names":   {survey: kernel.Survey{Unfiltered: slices.Repeat([]string{"br\xff\x1b-1234567890"}, 50)}, want: []string{hubv1.RemarkBridgeUnfiltered}},
		"everything that may be loaded": {survey: kernel.Survey{Dataplanes: []string{kernel.LegacyTables, kernel.CompatTables, kernel.NativeTables, kernel.Sets}, VirtualServers: true}, want: []string{hubv1.RemarkTwoVariants, hubv1.RemarkIPVS}},
	} {
		t.Run(name, func(t *testing.T) {
			state := stateOf(tc.survey)
			if diff := cmp.Diff(tc.survey.Dataplanes, state.GetDataplanes()); diff != "" {
				t.Errorf("dataplanes (-want +got):\n%s", diff)
			}
			var kinds []string
			for _, r := range state.GetRemarks() {
				kinds = append(kinds, r.GetKind())
				if text := r.GetText(); text == "" || len(text) > 200 || strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' }) {
					t.Errorf("remark %q: want at most 200 bytes of printable ASCII", text)
				}
			}
			if diff := cmp.Diff(tc.want, kinds); diff != "" {
				t.Errorf("remarks (-want +got):\n%s", diff)
			}
		})
	}
}

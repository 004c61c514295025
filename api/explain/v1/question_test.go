// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explainv1

import (
	"strings"
	"testing"
)

func TestQuestionValidateNamesEachWrongField(t *testing.T) {
	if err := (Question{Namespace: "shop", Pod: "backup-0.x"}).Validate(); err != nil {
		t.Errorf("a good question: %v", err)
	}
	err := Question{Namespace: "a/b", Pod: "../x"}.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`namespace "a/b"`, `pod "../x"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q, want one with %q", err, want)
		}
	}
}

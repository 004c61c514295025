// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/go-logr/logr/testr"
)

func TestWithoutAStartupTaintNothingIsAdded(t *testing.T) {
	// Without a manager there is nothing that it could be added to.
	added, err := newStartup(t.Context(), nil, newOptions(), testr.New(t))
	if err != nil || added != nil {
		t.Errorf("%v, %v; want nothing", added, err)
	}
}

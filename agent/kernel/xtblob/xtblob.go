// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package xtblob decodes the structs that the matches and targets of xtables
// keep in the kernel, as the legacy tables and nf_tables' compat expressions
// hand them out. It does no I/O of its own: who reads rules brings the bytes.
//
// The structs are those of a 64-bit little or big endian kernel, in host byte
// order where their header does not say otherwise. What is not known, or is
// not of the size that its revision has, is never left out: it becomes an
// unknown match or target that says why.
package xtblob

import "github.com/policygate/policygate/agent/ruleset"

// Sets names an ipset by the index that rules refer to it by.
type Sets interface {
	SetName(index uint16) (string, error)
}

// Match returns the conditions of one match. What it does not know, or finds
// malformed, is one ruleset.Unknown that names extension, revision and why.
// comment is set for the comment match only; then matches is empty.
func Match(family ruleset.Family, name string, revision uint8, data []byte, sets Sets) (matches []ruleset.Match, comment string) {
	return []ruleset.Match{ruleset.Unknown{Text: "-m " + name}}, ""
}

// Target returns what an extension's target does. One that it does not know,
// or finds malformed, is a ruleset.UnknownTarget with the Name set.
func Target(family ruleset.Family, name string, revision uint8, data []byte) ruleset.Target {
	return ruleset.Target{Kind: ruleset.UnknownTarget, Name: name}
}

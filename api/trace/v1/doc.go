// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tracev1 is what the two trace commands and the manager speak: the
// question which way a new connection takes, the answer of every node on its
// path with the rules that it meets there, as JSON and in words.
//
// It asks nobody and decides nothing about rules; it joins the nodes' verdicts
// into one. The JSON only ever gains fields within this version.
package tracev1

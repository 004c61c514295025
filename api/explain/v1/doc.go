// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package explainv1 is what kubectl policygate and the manager speak besides
// traces: why one Pod is held, as JSON and in words, and what a replica of the
// manager sees of the installation.
//
// It asks nobody and judges nothing: package explain of the manager fills it,
// the plugin shows it. The JSON only ever gains fields within this version.
//
// A token for these questions is for tracev1.Audience, as there is one that
// answers; errors are a tracev1.Failure. What a token's user may ask is told
// apart by resources, one for each path.
package explainv1

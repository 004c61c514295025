// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package doctor turns what was seen of an installation into findings: what is
// in order, what a person should look at and what to do about it. It reads no
// API and asks nobody; it is handed the facts.
package doctor

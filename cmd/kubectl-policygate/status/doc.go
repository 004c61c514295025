// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package status shows PolicyStatus objects to people: as a table with what
// kubectl's own columns have no room for, and one of them in words. It reads no
// API; it is handed the objects.
package status

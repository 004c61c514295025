// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package demo shows the race that Policy Gate ends, and that it ends it: Jobs
// that run mariadb-dump against MariaDB on another node as their first act, in
// three rounds: nothing done about it, `sleep 10`, and gated.
//
// Everything in it is real but the size of the cluster. It only drives and
// measures; package testbed starts the cluster.
package demo

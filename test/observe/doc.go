// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package observe runs the queries of the dashboard and of the alerts in
// config/prometheus against a real Prometheus, which it can start, and says
// which of them find nothing.
//
// It knows no cluster: what is scraped is given to it.
package observe

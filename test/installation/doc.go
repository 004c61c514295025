// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package installation puts Policy Gate into an API server that has no nodes,
// and runs its commands as processes of a test. They end when the test's
// process does.
//
// What is installed is config/ as it is shipped; its Deployments and DaemonSets
// come to nothing, since nothing runs Pods. The Service of the webhook leads to
// the loopback.
package installation

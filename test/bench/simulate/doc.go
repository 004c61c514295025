// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package simulate has the scenarios of the simulation: a cluster of up to a
// thousand agents and one or two replicas of the manager, what happens in it,
// and what is to be shown.
//
// A scenario returns figures and, apart from them, what it found to be wrong:
// Pods that were never opened, gates that were opened wrongly, writes beyond a
// budget. Only the latter fail a run; figures are for people, who look at the
// ratios within one run.
package simulate

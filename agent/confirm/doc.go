// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package confirm holds what the manager's replicas assigned to this node and
// answers, look by look, whether the node's dataplane does what is expected.
//
// # What counts
//
//   - A subject is confirmed when every required expectation holds in two
//     looks at least 50 ms apart. Each look is one consistent snapshot, and
//     all expectations of a subject are judged on the same one, so that an
//     Allowed and its controls belong together. Inconclusive never holds, and
//     a look that failed holds nothing.
//   - Advisory expectations are awaited until the required ones have held for
//     10 s without interruption or over two rewrites of the rules.
//   - A subject that must settle also waits for two rewrites since its first
//     look here, or for 10 s without any.
//   - Where the manager allows it, the expectations of an address family that
//     the node's engine does not enforce are left out, and the report says so.
//     That is believed if no stranger of the family was ever denied here, and
//     some subject's were let in for 15 s while those of its other family were
//     denied. They are still asked: the first that is denied ends it until the
//     agent restarts, and what was confirmed without them is judged with them
//     on the same look. A subject of which nothing else is asked is not
//     excused.
//   - Watching goes on after a subject was confirmed, until it is withdrawn;
//     a required expectation that fails retracts at once.
//
// Replicas that assign the same content share one evaluation; each is told the
// answer for its own generation.
//
// The package does not read the kernel (that is the Dataplane), speak to a hub
// (that is Reports) or write to the API.
package confirm

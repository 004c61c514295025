// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package chaos holds a stream of gated Pods against an independent observer,
// while parts of the cluster fail: does a gate ever open wrongly, is a Pod ever
// stuck, does one come without a gate?
//
// The workload makes up each namespace's intent (Intent), of which both the
// policies and the expected answers follow. The observer knows nothing of what
// is inside of Policy Gate: it reads the Pods' condition from a watch of its
// own, and sends packets (package packet). Package fault breaks things, from a
// seed. How clusters come up is package testbed's.
//
// # What is a wrong opening
//
// From the instant at which the observer sees a gate open, packets are sent
// until the next fault begins, until a policy of the namespace is touched or
// until one end of the flow is gone. It is a wrong opening if a flow that the
// intent allows is refused, or a flow that it does not allow is let in: from a
// Pod of another namespace on the same node and one on another node, from an
// address outside of the cluster, from a Pod of the same namespace that is no
// peer, from a peer to another port, and out of a Pod that may not get there. A
// stranger who was let in before the gate opened is among those who try again.
// What the client of a Job dials first counts like a packet of the observer's.
//
// A flow between two Pods is expected to pass if both have an address, and the
// one whose gate opened is the younger, or both gates are open: the younger
// waits for the older.
//
// Not answered counts as refused, for the kernel answers six refusals per
// destination and then one a second. So that a dead path is not taken for a
// refusal, a stranger's refusal counts only if the same stranger gets, on the
// same look, to a Pod on the same node that no policy concerns.
//
// # What proves nothing
//
//   - A flow across a cut (Fault.Severs) that is not answered, until 5 s after
//     the cut's end.
//   - What touches a node whose rules a fault changes (Fault.Rewrites), while it
//     begins and from when it is ended until 5 s later. In between nobody
//     changes them: a gate that opens then is held to what it says.
//   - An edit less than 2 s before the gate opened, unless the Pod was created
//     after it: nobody can know of an edit in the instant in which it is made.
//   - An allowed flow of a gate that opened as PartiallyConfirmed or
//     EngineDeviates, which say that there are such. Its strangers are refused
//     like everybody's: the Pod's own node has confirmed.
//   - A flow that was let through by the removal of a policy of its other end,
//     while a fault keeps that node's engine from carrying it out: a gate asks
//     for what rules name, and no rule names the flow any more.
//   - A dial to a server whose container did not run yet.
//   - A dial before the gate opened, of a Pod whose hold ran into its timeout: a
//     manager that was cut off counts that from when it hears of the Pod, and can
//     open the gate after the Pod has started.
//   - No answer from an address that was another Pod's before: the node may send
//     to that Pod's hardware address for some seconds. What an engine refuses is
//     answered, by the engine.
//
// With the real kube-router an allowed flow that is refused is asked again for
// 3 s: old rules with new sets refuse it for up to one sync (docs/limits.md:
// 0.5 to 1.8 s on an idle machine). If it passes then it is a blink, which is
// counted, and no wrong opening. A stranger who is let in is never excused.
//
// # What is stuck, and what is lost
//
// Stuck is a Pod that has an address and neither an open gate nor a decision to
// time out within its timeout and 30 s; one whose gate is open and whose hold
// still runs 30 s later; one that never got its condition. Only time in which no
// fault is in force counts. A timeout during a fault is a decision like others,
// and reported by its reason.
//
// Lost is a Pod of an injected namespace that came without a gate while no
// fault could keep the webhook from being asked (others are counted as
// ungated), a Job that never had a Pod, and what vanished though nobody deleted
// it. Such a fault lasts until the webhook has answered several times in a row,
// and 5 s longer; where a node ended without a word, 45 s, for which the API
// server may go on to use its connection to a manager there (docs/limits.md).
package chaos

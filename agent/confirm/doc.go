// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package confirm holds what the manager's replicas assigned to this node and
// answers, look by look, whether the node's dataplane does what is expected.
//
// Assignments of thousands of subjects share a Description, which is decoded
// and validated once; of a subject only its addresses are kept, for the flows
// that leave its own out, and what is excused for it.
//
// # What counts
//
//   - A subject is confirmed when every required expectation holds in two
//     looks at least 50 ms apart. All expectations of a subject are judged as
//     of one moment of a look, so that an Allowed and its controls belong
//     together; those of another subject may be of another moment.
//     Inconclusive never holds, and a look that failed, or in which there was
//     no moment that lasted, holds nothing.
//   - Advisory expectations are awaited until the required ones have held for
//     10 s without interruption or over two rewrites of the rules.
//   - An Allowed of a why that the assignment excuses, and a witness, which is
//     a flow between other Pods, are asked and not awaited: they neither
//     confirm nor retract. A Denied is always awaited.
//   - A subject that must settle also waits for two rewrites since its first
//     look here, or for 10 s without any.
//   - Where the manager allows it, the expectations of an address family that
//     the node's engine does not enforce are left out, and the report says so.
//     That is believed if no stranger of the family was ever denied here, and
//     some subject's were let in for 15 s while those of its other family were
//     denied. They are still asked: the first that is denied ends it until the
//     agent restarts, and what was confirmed without them is judged with them
//     on the same look. A subject of which nothing else is awaited is not
//     excused.
//   - Watching goes on after a subject was confirmed, until it is withdrawn;
//     a required expectation that fails retracts at once.
//   - Changes of the rules that looks find within 250 ms of each other count
//     as one rewrite.
//
// The same holds of a subject that is a NetworkPolicy, of which some Pods of the
// node are asked about: its flows name both ends, it has no addresses, and it is
// never released.
//
// # OVN
//
// What a look shows of a policy on a node with OVN is a sample. So such a node
// confirms one only once its dataplane, an Acknowledger, has acknowledged the
// number that the assignment names, and asks for nothing before. Pods do without:
// what is asked of them is all that they need.
//
// The agent of OVN's northbound database is a Confirmer as well. What it has
// confirmed of a policy it tells once its Coverer has counted the database up
// behind that, with the number.
//
// # What is told beside it
//
// A report names the whys that this node's engine does not realize: some
// Allowed was asked, the witnesses included, and all that were are Denied. An
// Inconclusive one may be Allowed. It names the excused whys of which an Allowed
// holds after all, while every Denied does: where nothing is programmed yet,
// everything is let in. And it says that this is no passing state, if on two
// looks nothing else was unmet and the rules were rewritten twice since the
// first. What to learn from that is the manager's business.
//
// # When it looks
//
// An evaluation is pending until it has been confirmed without interruption for
// two minutes and all replicas were told: it waits for something, or may have
// to be retracted before its subject is released. While any is pending,
//
//   - looks are taken by the clock, each 100 to 250 ms at first, or each 50 ms for
//     Pods where nothing tells of changes (Options.Blind), by what they
//     cost, and each second from 30 s after the subject was assigned, for
//     what nobody tells of;
//   - what Notices tells brings the next one forward, 10 ms after the first of
//     a burst;
//   - looks never take more than a fifth of the time, whatever is told, but
//     for those that come 50 ms after the last for what is new or needs but a
//     second look;
//   - a look answers all that are pending and some of the others. Of one that
//     lacks something, it asks for that first, and for the rest only if it has
//     come to hold or a second has passed;
//   - a look goes on for 50 ms, or for as long as reading the rules took. It
//     takes the namespaces in turn, and of each those first that are new or
//     need but a second look; what it does not come to is left to the next. So
//     hundreds of subjects of one tenant delay nobody else's.
//
// Policies delay none of that:
//
//   - What a look says of Pods is told before it goes on to policies. While Pods
//     are pending it spends 5 ms on them, of what is left of its 50 ms or, so that
//     some are asked for each second, beyond; else it goes on until a Pod comes.
//     Policies that are awaited take no more than a tenth of the time.
//   - A policy is pending until it is confirmed and all replicas were told, and
//     looked at as often as a Pod; after 30 s each second, without notices. After
//     ten minutes it is looked at each 5 s.
//   - One that rests is looked at each 10 s. This, and what has been pending for
//     ten minutes, takes a hundredth of the time, and all longer for it if that is
//     not enough.
//
// While no Pod and no policy is pending, no notices are taken, and each 15 s an audit asks what else
// could hide the dataplane and takes one look at a sample of the evaluations,
// those first that were looked at longest ago. What is found not to hold any
// more is drift: it is logged and counted, retracted, and pending again. Audits
// go on while something is pending. With nothing assigned there are no looks.
//
// # What is told of the node
//
// Each audit also finds out what is to be told of the node as a whole: what the
// Surveyor says, what hides the dataplane, a family that is not enforced, and
// that answers were Inconclusive because the source of packets between Pods may
// be rewritten. It is told when it changes; for it alone there is an audit each
// minute, too.
//
// Replicas that assign the same content share one evaluation; each is told the
// answer for its own generation.
//
// The package does not read the kernel (that is the Dataplane), speak to a hub
// (that is Reports) or write to the API.
package confirm

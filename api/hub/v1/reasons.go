// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hubv1

// How an Unmet.reason begins. One of a verdict begins with the verdict's answer
// as flow.Verdict.String writes it; of all others the manager repeats nothing
// to a Pod's owner.
const (
	// ReasonUnread: the node's rules could not be read; the rest says why.
	ReasonUnread = "the dataplane could not be read"
	// ReasonSettling: an address of the subject was another Pod's, and the
	// engine has not rested since.
	ReasonSettling = "an address was another Pod's a short while ago"
	// ReasonUnacknowledged: the node's ovn-controller has not acknowledged what
	// OVN's northbound database has of a policy.
	ReasonUnacknowledged = "OVN has not acknowledged here what is in its northbound database"
	// ReasonMalformed: the agent does not understand what it is asked.
	ReasonMalformed = "malformed "
	// ReasonAssignedAnew and ReasonNotConfirmed: a release was refused, as the
	// node has to look once more.
	ReasonAssignedAnew = "assigned anew during the look"
	ReasonNotConfirmed = "not confirmed"
	// ReasonUnenforced stands behind the name of a family that the engine does
	// not enforce, where nothing else was asked; before the reason proper.
	ReasonUnenforced = " is not enforced on this node, and nothing else was asked: "
)

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"net/netip"
	"strings"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/demand"
)

// kind says of what sort a node's reason is.
type kind int

// The kinds of reasons.
const (
	// untold: it cannot be told what the node would do.
	untold kind = iota
	// refuted: the node would do something else than what is demanded.
	refuted
	// unread: the node's agent could not read the rules.
	unread
	// settling: an address was another Pod's, and the engine has not rested.
	settling
	// unasked: the node's agent does not understand what it is asked.
	unasked
	// again: the node has to look once more.
	again
)

// kindOf reads a node's reason. All that it returns is the manager's own
// words: word is the name of what keeps an answer from being told, or "". What
// it does not understand is untold.
func kindOf(reason string) (k kind, word string) {
	// "v4 is not enforced on this node, and nothing else was asked: ...".
	if _, rest, found := strings.Cut(reason, hubv1.ReasonUnenforced); found {
		reason = rest
	}
	switch {
	case strings.HasPrefix(reason, flow.Denied.String()), strings.HasPrefix(reason, flow.Allowed.String()):
		return refuted, ""
	case strings.HasPrefix(reason, hubv1.ReasonUnread):
		return unread, ""
	case strings.HasPrefix(reason, hubv1.ReasonSettling):
		return settling, ""
	case strings.HasPrefix(reason, hubv1.ReasonMalformed):
		return unasked, ""
	case reason == hubv1.ReasonAssignedAnew, reason == hubv1.ReasonNotConfirmed:
		return again, ""
	}
	if rest, told := strings.CutPrefix(reason, flow.Inconclusive.String()+" ("); told {
		for _, word := range []string{flow.NoRoute, flow.SourceRewritten, flow.DestinationRewritten} {
			if strings.HasPrefix(rest, word) {
				return untold, word
			}
		}
	}
	return untold, ""
}

// awaits says what u lacks of d, in words fit for the owner of a Pod in
// namespace at ips: no text of the node's, no other namespace's names, and no
// address but the Pod's own.
func awaits(d demand.Demand, u *hubv1.Unmet, namespace string, ips []netip.Addr) string {
	switch k, word := kindOf(u.GetReason()); k {
	case unread:
		return "its rules could not be read"
	case settling:
		return "the Pod's address was another Pod's a short while ago, so the policy engine's next rewrites are awaited"
	case unasked:
		return "its agent does not understand what it is asked"
	case again:
		return "its agent looks once more"
	case untold:
		text := "it cannot be told there whether the rules are complete"
		if who := d.Policy(u.GetExpectation(), namespace); who != "" {
			text = "it cannot be told there whether " + who + " is in force"
		}
		if word != "" {
			text += ": " + word
		}
		return text
	case refuted:
	}
	return d.Awaits(u.GetExpectation(), namespace, ips)
}

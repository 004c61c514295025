// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package doctor

import hubv1 "github.com/policygate/policygate/api/hub/v1"

// northbound adds whether OVN's northbound database is seen, where it is asked.
func (e *examination) northbound() {
	const (
		subject = "northbound"
		do      = "See whether a Pod of Deployment policygate-northbound runs, and its log: gates wait for it, up to their timeouts."
	)
	asked, connected, unread := 0, 0, ""
	for _, r := range e.asked() {
		n := r.Diagnosis.Northbound
		if n == nil {
			continue
		}
		asked++
		if !n.Since.IsZero() {
			connected++
			unread = n.Unsupported
		}
	}
	switch {
	case asked == 0:
	case connected == 0:
		e.add(Fail, subject, do, "no agent is connected that sees "+hubv1.NorthboundTitle)
	case unread != "":
		e.add(Warn, subject, "Gates do not wait for it meanwhile, so that what kube-ovn-controller has yet to write is not seen. See the log of Deployment policygate-northbound.",
			hubv1.NorthboundTitle+" cannot be read: %s", unread)
	case connected < asked:
		e.add(Warn, subject, do, "the agent of "+hubv1.NorthboundTitle+" is connected to %d of the manager's %d Pods", connected, asked)
	default:
		e.add(OK, subject, "", hubv1.NorthboundTitle+" is seen")
	}
}

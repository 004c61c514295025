// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"errors"
	"fmt"
	"strings"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

const (
	// maxUnmet and maxText are hub.proto's.
	maxUnmet = 3
	maxText  = 200
	// maxUID bounds a uid; Kubernetes makes them 36 bytes long.
	maxUID = 128
)

// validateHello returns an error that names what is wrong with the first
// message of a session.
func validateHello(m *hubv1.AgentMessage) error {
	hello := m.GetHello()
	switch {
	case hello == nil:
		return fmt.Errorf("the first message is %T: want hello", m.GetMessage())
	case hello.GetBootId() == "":
		return errors.New("boot_id is empty")
	case len(hello.GetBootId()) > maxText || hello.GetBootId() != printable(hello.GetBootId()):
		return fmt.Errorf("boot_id %q: want at most %d bytes of printable ASCII", printable(hello.GetBootId()), maxText)
	}
	return nil
}

// validateReport returns an error that names what is wrong with r. answered is
// the assignment that r answers, or nil if the hub knows it no more.
func validateReport(r *hubv1.Report, answered *hubv1.Assign) error {
	expectations := len(answered.GetExpectations())
	switch {
	case r.GetUid() == "":
		return errors.New("uid is empty")
	case len(r.GetUid()) > maxUID:
		return fmt.Errorf("uid has %d bytes: want at most %d", len(r.GetUid()), maxUID)
	case len(r.GetUnmet()) > maxUnmet:
		return fmt.Errorf("unmet has %d entries: want at most %d", len(r.GetUnmet()), maxUnmet)
	case r.GetConfirmed() && r.GetUnmetRequired() > 0:
		return fmt.Errorf("confirmed with unmet_required %d: want 0", r.GetUnmetRequired())
	case r.GetIpv4Unenforced() && r.GetIpv6Unenforced():
		return errors.New("ipv4_unenforced and ipv6_unenforced are both set: want at most one, or nothing was confirmed")
	case answered != nil && !answered.GetExcuseFamilies() && (r.GetIpv4Unenforced() || r.GetIpv6Unenforced()):
		return errors.New("ipv4_unenforced or ipv6_unenforced is set: the assignment does not have excuse_families")
	}
	for i, u := range r.GetUnmet() {
		if len(u.GetReason()) > maxText || u.GetReason() != printable(u.GetReason()) {
			return fmt.Errorf("unmet[%d].reason %q: want at most %d bytes of printable ASCII", i, printable(u.GetReason()), maxText)
		}
		if answered != nil && int64(u.GetExpectation()) >= int64(expectations) {
			return fmt.Errorf("unmet[%d].expectation is %d: the assignment has %d", i, u.GetExpectation(), expectations)
		}
	}
	return nil
}

// printable reduces text of a node to printable ASCII and maxText bytes.
func printable(text string) string {
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text)
	return clean[:min(len(clean), maxText)]
}

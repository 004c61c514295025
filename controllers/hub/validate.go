// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"errors"
	"fmt"
	"slices"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

const (
	// maxUnmet, maxWhys and maxText are hub.proto's.
	maxUnmet = 3
	maxWhys  = 64
	maxText  = 200
	// maxDataplanes and maxRemarks are hub.proto's.
	maxDataplanes = 8
	maxRemarks    = 16
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
	if err := validateState(hello.GetState()); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// validateState returns an error that names what is wrong with s, which may be
// nil.
func validateState(s *hubv1.State) error {
	if err := validateText("unsupported", s.GetUnsupported()); err != nil {
		return err
	}
	if len(s.GetDataplanes()) > maxDataplanes {
		return fmt.Errorf("dataplanes has %d entries: want at most %d", len(s.GetDataplanes()), maxDataplanes)
	}
	for i, d := range s.GetDataplanes() {
		if d == "" {
			return fmt.Errorf("dataplanes[%d] is empty", i)
		}
		if err := validateText(fmt.Sprintf("dataplanes[%d]", i), d); err != nil {
			return err
		}
	}
	if len(s.GetRemarks()) > maxRemarks {
		return fmt.Errorf("remarks has %d entries: want at most %d", len(s.GetRemarks()), maxRemarks)
	}
	for i, r := range s.GetRemarks() {
		if r.GetKind() == "" {
			return fmt.Errorf("remarks[%d].kind is empty", i)
		}
		if err := validateText(fmt.Sprintf("remarks[%d].kind", i), r.GetKind()); err != nil {
			return err
		}
		if err := validateText(fmt.Sprintf("remarks[%d].text", i), r.GetText()); err != nil {
			return err
		}
	}
	return nil
}

// validateText returns an error unless a field is as texts have to be.
func validateText(field, text string) error {
	if len(text) > maxText || text != printable(text) {
		return fmt.Errorf("%s %q: want at most %d bytes of printable ASCII", field, printable(text), maxText)
	}
	return nil
}

// validateReport returns an error that names what is wrong with r. answered is
// the assignment that r answers, or nil if the hub knows it no more.
func validateReport(r *hubv1.Report, answered *assignment) error {
	unmet := r.GetUnmetRequired() > 0 || r.GetUnmetAdvisory() > 0
	unenforced := r.GetIpv4Unenforced() || r.GetIpv6Unenforced()
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
	case answered != nil && !answered.message.GetExcuseFamilies() && unenforced:
		return errors.New("ipv4_unenforced or ipv6_unenforced is set: the assignment does not have excuse_families")
	case r.GetSteady() && unmet && len(r.GetUnrealized()) == 0:
		return errors.New("steady with unmet expectations and nothing in unrealized: want the whys of what is unmet")
	}
	for i, u := range r.GetUnmet() {
		if len(u.GetReason()) > maxText || u.GetReason() != printable(u.GetReason()) {
			return fmt.Errorf("unmet[%d].reason %q: want at most %d bytes of printable ASCII", i, printable(u.GetReason()), maxText)
		}
		// What is wrong with an assignment as a whole is told of the first,
		// even if there is none.
		if has := answered.expectations(); answered != nil && u.GetExpectation() > 0 && int64(u.GetExpectation()) >= int64(has) {
			return fmt.Errorf("unmet[%d].expectation is %d: the assignment has %d", i, u.GetExpectation(), has)
		}
	}
	return validateWhys(r, answered)
}

// validateNorthbound returns an error if a report names what was counted up in
// the northbound database where it must not: others would wait for that.
func validateNorthbound(node string, r *hubv1.Report, answered *assignment) error {
	config := r.GetNorthboundConfig()
	switch {
	case config == 0:
	case node != hubv1.Northbound:
		return fmt.Errorf("northbound_config is %d: want 0 of a node", config)
	case !answered.message.GetPolicy():
		return fmt.Errorf("northbound_config is %d of a Pod: want it of a policy only", config)
	case !r.GetConfirmed():
		return fmt.Errorf("northbound_config is %d without confirmed: want 0", config)
	}
	return nil
}

// validateWhys returns an error that names what is wrong with the rules that r
// tells to be realized, or not to be.
func validateWhys(r *hubv1.Report, answered *assignment) error {
	if err := ascending("unrealized", r.GetUnrealized()); err != nil {
		return err
	}
	if err := ascending("realized", r.GetRealized()); err != nil {
		return err
	}
	for i, why := range r.GetRealized() {
		if _, both := slices.BinarySearch(r.GetUnrealized(), why); both {
			return fmt.Errorf("realized[%d] is %d, which is in unrealized, too: want it in one of them", i, why)
		}
		if answered == nil {
			continue
		}
		if _, excused := slices.BinarySearch(answered.message.GetExcused(), why); !excused {
			return fmt.Errorf("realized[%d] is %d: the assignment does not excuse it", i, why)
		}
	}
	// The last is the largest.
	if last := len(r.GetUnrealized()) - 1; answered != nil && last >= 0 {
		if has := answered.whys(); int64(r.GetUnrealized()[last]) >= int64(has) {
			return fmt.Errorf("unrealized[%d] is %d: the description has %d whys", last, r.GetUnrealized()[last], has)
		}
	}
	return nil
}

// ascending returns an error if a field's values are too many or do not grow.
func ascending(field string, values []uint32) error {
	if len(values) > maxWhys {
		return fmt.Errorf("%s has %d entries: want at most %d", field, len(values), maxWhys)
	}
	for i := 1; i < len(values); i++ {
		if values[i] <= values[i-1] {
			return fmt.Errorf("%s[%d] is %d, behind %d: want them ascending", field, i, values[i], values[i-1])
		}
	}
	return nil
}

// printable reduces text of a node to printable ASCII and maxText bytes.
func printable(text string) string {
	clean := tracev1.Printable(text)
	return clean[:min(len(clean), maxText)]
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package demand

import (
	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/controllers/gate/deviation"
)

// Asked returns the rule that demands the index-th expectation, and the answer
// that it wants: Allowed or Denied. The rule's text is for administrators. It
// returns false for an index that d does not have.
func (d Demand) Asked(index uint32) (rule deviation.Rule, want flow.Answer, ok bool) {
	if d.shared == nil || int64(index) >= int64(len(d.shared.asked)) {
		return deviation.Rule{}, flow.Inconclusive, false
	}
	a := d.shared.asked[index]
	want = flow.Allowed
	if a.denied {
		want = flow.Denied
	}
	return d.shared.whys[a.why].Rule, want, true
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package demand

import (
	"slices"

	"google.golang.org/protobuf/proto"

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

// AskedBefore reports whether before asked what the index-th expectation of d
// does: for the same rule the same flow, or, if it is to be denied, any that was
// to be, since it does not matter who the stranger is. It returns false for an
// index that d does not have.
func (d Demand) AskedBefore(index uint32, before Demand) bool {
	rule, want, ok := d.Asked(index)
	if !ok || before.shared == nil {
		return false
	}
	var same []int
	for i := range before.shared.asked {
		if r, w, _ := before.Asked(uint32(i)); r == rule && w == want {
			same = append(same, i)
		}
	}
	if len(same) == 0 || want == flow.Denied {
		return len(same) > 0
	}
	now, err := d.shared.description.Message()
	if err != nil {
		return false
	}
	then, err := before.shared.description.Message()
	if err != nil {
		return false
	}
	asked := now.GetExpectations()[index].GetFlow()
	return slices.ContainsFunc(same, func(i int) bool { return proto.Equal(asked, then.GetExpectations()[i].GetFlow()) })
}

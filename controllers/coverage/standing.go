// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import "k8s.io/apimachinery/pkg/types"

// Standing returns the basis that the last assignment of a subject has by now,
// and true if computing it again would give the same but for Basis and
// NotAsked: all that was applied since then has nothing to do with it, so it is
// covered. It returns false if the subject is not held, if none was computed,
// or if something that the last one was made of has changed.
func (x *Index) Standing(uid types.UID) (Basis, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.passTime()
	h := x.held[uid]
	if h == nil || !h.stands || h.epoch != x.epoch {
		return Basis{}, false
	}
	return x.basis(h.pod), true
}

// Suspect has the assignments of a held subject, from now on and until it is
// no longer held, ask of older Pods as well whether a rule is realized for
// anybody. A subject that is not held is no error.
func (x *Index) Suspect(uid types.UID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if h := x.held[uid]; h != nil && !h.suspect {
		h.suspect = true
		x.touch(h)
	}
}

// basis is the state that an assignment of p rests on if it is computed now.
func (x *Index) basis(p *pod) Basis {
	b := x.policyBasis()
	b.Pod = p.version
	return b
}

// policyBasis is the same for an assignment of a policy.
func (x *Index) policyBasis() Basis {
	return Basis{
		NetworkPolicies: x.versions[KindNetworkPolicy].highest,
		Namespaces:      x.versions[KindNamespace].highest,
	}
}

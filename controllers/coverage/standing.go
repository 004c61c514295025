// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import "k8s.io/apimachinery/pkg/types"

// Standing returns the basis that the last assignment of a subject has by now,
// and true if nothing that it was made of has changed since. It returns false
// if the subject is not held or none was computed.
func (x *Index) Standing(types.UID) (Basis, bool) { return Basis{}, false }

// Suspect has the assignments of a held subject, from now on, ask of older
// Pods as well whether a rule is realized for anybody.
func (x *Index) Suspect(types.UID) {}

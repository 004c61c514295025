// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"fmt"
	"unique"

	"google.golang.org/protobuf/proto"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// Description is what one node must confirm, without what differs from one
// subject to the next. It is a value: equal contents are equal, share their
// memory, and travel to an agent once. The zero Description holds nothing.
type Description struct {
	content unique.Handle[string]
}

// Describe returns the Description that holds d, whose flows have the
// subject's own address left out. It keeps nothing of d.
func Describe(d *hubv1.Description) (Description, error) {
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(d)
	if err != nil {
		return Description{}, fmt.Errorf("encode description: %w", err)
	}
	return Description{content: unique.Make(string(content))}, nil
}

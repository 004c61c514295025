// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// Description is what assignments of many subjects share, decoded once. It is
// never written to.
type Description struct {
	message *hubv1.Description
}

// ParseDescription decodes the content of a Describe. The error says what is
// malformed. What cannot be judged in what it says, such as a flow without
// addresses, is no error: it is reported for each subject.
func ParseDescription(content []byte) (*Description, error) {
	var d hubv1.Description
	if err := proto.Unmarshal(content, &d); err != nil {
		return nil, fmt.Errorf("description of %d bytes: %w", len(content), err)
	}
	return &Description{message: &d}, nil
}

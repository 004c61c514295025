// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"os"
	"testing"

	"github.com/policygate/policygate/test/kernel/rootless"
)

// TestMain runs the tests as root: as the machine's, or else as root of a user
// namespace. There is no third way, and no test is left out in either.
func TestMain(m *testing.M) { os.Exit(rootless.Root(m.Run)) }

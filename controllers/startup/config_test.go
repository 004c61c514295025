// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package startup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// component is where the configuration is.
var component = filepath.Join("..", "..", "config", "startup-taint")

// What is shipped gives one name to the flag, the toleration and the policy.
func TestTheComponentNamesTheDefaultKey(t *testing.T) {
	for file, want := range map[string]string{
		"kustomization.yaml": "--startup-taint=" + DefaultKey + "\n",
		"node_writers.yaml":  `t.key != "` + DefaultKey + `"`,
	} {
		text, err := os.ReadFile(filepath.Join(component, file))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), want) {
			t.Errorf("%s has no %q", file, want)
		}
	}
}

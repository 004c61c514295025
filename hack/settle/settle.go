// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package settle writes files that are made of others, or checks that they
// are up to date.
package settle

import (
	"bytes"
	"fmt"
	"os"
)

// File writes a file, or, if check is set, returns an error if what is there
// is another: one that names the target of make by which to write it.
func File(path string, content []byte, check bool, target string) error {
	if !check {
		return os.WriteFile(path, content, 0o644) //nolint:gosec // it is a source file, for everybody to read
	}
	present, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(present, content) {
		return fmt.Errorf("%s is not up to date: run `make %s` and commit it", path, target)
	}
	return nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// Forms of output.
const (
	outputText = "text"
	outputWide = "wide"
	outputJSON = "json"
	outputYAML = "yaml"
)

// output is the form in which a command prints.
type output struct {
	form  string
	forms []string
}

// bind adds the flag, with the first form as default.
func (o *output) bind(cmd *cobra.Command, what string, forms ...string) {
	o.forms = forms
	cmd.Flags().StringVarP(&o.form, "output", "o", forms[0], what)
	completeFlag(cmd, "output", func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return forms, cobra.ShellCompDirectiveNoFileComp
	})
}

// validate returns an error that names the form if it is none.
func (o *output) validate() error {
	if slices.Contains(o.forms, o.form) {
		return nil
	}
	last := len(o.forms) - 1
	return fmt.Errorf("--output %q: want %s or %s", o.form, strings.Join(o.forms[:last], ", "), o.forms[last])
}

// print writes the object as JSON or YAML, or by the function in any other form.
func (o *output) print(w io.Writer, object any, text func(io.Writer) error) error {
	switch o.form {
	case outputJSON:
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(object)
	case outputYAML:
		out, err := yaml.Marshal(object)
		if err != nil {
			return fmt.Errorf("write YAML: %w", err)
		}
		_, err = w.Write(out)
		return err
	}
	return text(w)
}

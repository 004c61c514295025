// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// build is what "version" prints.
type build struct {
	Version string `json:"version"`
	Go      string `json:"go,omitempty"`
}

func newVersion() *cobra.Command {
	o := &output{}
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this command",
		Long: `Prints the version of this command. Those of the manager and of the agents are
what "kubectl policygate doctor" finds out.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			b := thisBuild()
			return o.print(cmd.OutOrStdout(), b, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, b.Version)
				return err
			})
		},
	}
	o.bind(cmd, "How to print: text, json or yaml.", outputText, outputJSON, outputYAML)
	return cmd
}

// thisBuild says what this is a build of, as the manager does of itself.
func thisBuild() build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return build{Version: "unknown"}
	}
	return build{Version: info.Main.Version, Go: info.GoVersion}
}

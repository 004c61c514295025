// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadHelp(t *testing.T) {
	tests := map[string]struct {
		text    string
		want    command
		wantErr string
	}{
		"pflag's own": {
			text: "Usage of manager:\n" +
				"      --hold-image string   Image of the hold.\n" +
				"      --leader-elect        Elect one. (default true)\n" +
				"  -v, --v Level             number for the log\n" +
				"      --vmodule pattern=N,...   levels\n",
			want: command{Options: []option{
				{Flag: "--hold-image string", Usage: "Image of the hold."},
				{Flag: "--leader-elect", Usage: "Elect one.", Default: "true"},
				{Flag: "-v, --v Level", Usage: "number for the log"},
				{Flag: "--vmodule pattern=N,...", Usage: "levels"},
			}},
		},
		"prose, and a usage of two lines": {
			text: "Says what.\n\nUsage: x SRC\n\nFlags:\n  -o, --output string   How:\n                        text. (default \"text\")\n",
			want: command{Prose: "Says what.\n\nUsage: x SRC", Options: []option{
				{Flag: "-o, --output string", Usage: "How: text.", Default: "text"},
			}},
		},
		"cobra's": {
			text: "Says what.\n\nUsage:\n  x status [flags]\n\nFlags:\n  -A, --all    All.\n  -h, --help   help for x\n\nGlobal Flags:\n      --kubeconfig string   Path.\n\nUse \"x [command] --help\" for more information about a command.\n",
			want: command{Prose: "Says what.\n\nUsage:\n  x status [flags]", Options: []option{
				{Flag: "-A, --all", Usage: "All."},
				{Flag: "--kubeconfig string", Usage: "Path."},
			}},
		},
		"the standard library's": {
			text: "Usage of hold:\n  -timeout duration\n    \thow long (default 1m0s)\n  -version\n    \tprint it\n",
			want: command{Options: []option{
				{Flag: "-timeout duration", Usage: "how long", Default: "1m0s"},
				{Flag: "-version", Usage: "print it"},
			}},
		},
		"no flags":               {text: "Commands:\n  trace    what\n", want: command{Prose: "Commands:\n  trace    what\n"}},
		"a line that is no flag": {text: "Flags:\nanything\n", wantErr: `help of x: cannot tell what flag this is: "anything"`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := readHelp("x", tc.text)
			if tc.wantErr != "" {
				if err == nil || err.Error() != tc.wantErr {
					t.Errorf("error = %v, want %s", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			tc.want.Name = "x"
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("command (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSubcommandsAreThoseThatTheHelpLists(t *testing.T) {
	prose := "It asks.\n\nUsage: x COMMAND\n\nCommands:\n  status   what is in force\n  help     about any\n  trace    a connection\n\nMore."
	if diff := cmp.Diff([]string{"status", "trace"}, subcommands(prose)); diff != "" {
		t.Errorf("subcommands (-want +got):\n%s", diff)
	}
}

// Flags that all commands which ask a cluster have are written once.
func TestSharedOptions(t *testing.T) {
	kubeconfig, output := option{Flag: "--kubeconfig string"}, option{Flag: "-o, --output string"}
	commands := []command{
		{Name: "agent", Options: []option{kubeconfig, output}},
		{Name: "kubectl policygate trace", Options: []option{kubeconfig, output}},
		{Name: "kubectl policygate status", Options: []option{kubeconfig}},
		{Name: "kubectl policygate completion"},
	}
	if diff := cmp.Diff(map[option]bool{kubeconfig: true}, sharedOptions(commands)); diff != "" {
		t.Errorf("shared (-want +got):\n%s", diff)
	}
}

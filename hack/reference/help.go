// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// option is one flag of a command, as its help has it.
type option struct {
	// Flag is how it is written, such as "-o, --output string".
	Flag, Default, Usage string
}

// command is what a command says of itself.
type command struct {
	// Name is what one types, such as "kubectl policygate trace".
	Name string
	// Prose is what its help says ahead of the flags.
	Prose   string
	Options []option
}

// commandHelps builds the commands and asks each for its help, that of its
// subcommands included.
func commandHelps(ctx context.Context, root string) ([]command, error) {
	bin, err := os.MkdirTemp("", "policygate-reference-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(bin) //nolint:errcheck // a temporary directory
	build := exec.CommandContext(ctx, "go", "build", "-o", bin+string(filepath.Separator), "./cmd/...")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the commands: %w\n%s", err, output)
	}
	var all []command
	ask := func(name, binary string, args ...string) (command, error) {
		text, err := help(ctx, filepath.Join(bin, binary), args...)
		if err != nil {
			return command{}, err
		}
		c, err := readHelp(name, text)
		all = append(all, c)
		return c, err
	}
	for _, c := range []struct {
		name, binary string
		arguments    []string
	}{
		{"manager", "manager", nil},
		{"manager release-held", "manager", []string{"release-held"}},
		{"agent", "agent", nil},
		{"agent trace", "agent", []string{"trace"}},
		{"hold", "hold", nil},
		{"northbound", "northbound", nil},
	} {
		if _, err := ask(c.name, c.binary, append(c.arguments, "--help")...); err != nil {
			return nil, err
		}
	}
	plugin, err := ask("kubectl policygate", "kubectl-policygate", "--help")
	if err != nil {
		return nil, err
	}
	for _, sub := range subcommands(plugin.Prose) {
		if _, err := ask(plugin.Name+" "+sub, "kubectl-policygate", sub, "--help"); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// help runs a command, without the environment that its defaults may come from.
func help(ctx context.Context, path string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, path, args...)
	c.Env = []string{"HOME=/nonexistent"}
	output, err := c.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(c.Args, " "), err, output)
	}
	return string(output), nil
}

// subcommands returns the names that a help lists under "Commands:".
func subcommands(prose string) []string {
	_, list, _ := strings.Cut(prose, "Commands:\n")
	var names []string
	for line := range strings.Lines(list) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(line, "  ") {
			break
		}
		// What "help" says is what has been asked.
		if fields[0] != "help" {
			names = append(names, fields[0])
		}
	}
	return names
}

var (
	// flagsBegin is the line ahead of the flags: the commands' own and cobra's,
	// or that of pflag and of flag.
	flagsBegin = regexp.MustCompile(`(?m)^(Flags|Usage of [^:]+):$`)
	// Cobra's, ahead of the flags of the command above, and after all of them.
	aside = regexp.MustCompile(`^(Global Flags:|Use ".*" for more information.*)$`)
	// A flag of pflag: "  -o, --output string   How to print it (default "x")".
	pflagLine = regexp.MustCompile(`^ +((?:-\w, )?--[\w-]+(?:\[?=?[^ ]*\]?)?(?: [^ ]+)?) {2,}(.*)$`)
	// A flag of flag: "  -timeout duration", and its usage on the next line.
	flagLine  = regexp.MustCompile(`^  (-[\w-]+(?: [^ \t]+)?)(?:\t(.*))?$`)
	byDefault = regexp.MustCompile(`^(.*) \(default (.*)\)$`)
)

// readHelp takes a help apart. A line among the flags that is not understood is
// an error.
func readHelp(name, text string) (command, error) {
	c := command{Name: name, Prose: text}
	begin := flagsBegin.FindStringIndex(text)
	if begin == nil {
		return c, nil
	}
	c.Prose = strings.TrimSpace(text[:begin[0]])
	for line := range strings.Lines(text[begin[1]:]) {
		line = strings.TrimRight(line, "\n")
		last := len(c.Options) - 1
		if match := pflagLine.FindStringSubmatch(line); match != nil {
			c.Options = append(c.Options, option{Flag: match[1], Usage: match[2]})
		} else if match := flagLine.FindStringSubmatch(line); match != nil {
			c.Options = append(c.Options, option{Flag: match[1], Usage: match[2]})
		} else if more := strings.TrimSpace(line); more == "" || aside.MatchString(more) {
			continue
		} else if last >= 0 && strings.HasPrefix(line, "    ") {
			c.Options[last].Usage = strings.TrimSpace(c.Options[last].Usage + " " + more)
		} else {
			return c, fmt.Errorf("help of %s: cannot tell what flag this is: %q", name, line)
		}
	}
	c.Options = slices.DeleteFunc(c.Options, func(o option) bool { return o.Flag == "-h, --help" })
	for i, o := range c.Options {
		if match := byDefault.FindStringSubmatch(o.Usage); match != nil {
			c.Options[i].Usage, c.Options[i].Default = match[1], strings.Trim(match[2], `"`)
		}
	}
	return c, nil
}

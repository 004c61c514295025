// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command fuzz runs every Fuzz function of the repository's modules, one after
// the other, each for as long as -time says. Without it `go test -fuzz` takes
// one function of one package.
//
//	go run ./hack/fuzz -time 30s
//	go run ./hack/fuzz -time 10m -run FuzzVerdict
//
// It goes on after a failure, and fails in the end. What made a function fail
// is in testdata/fuzz of its package then; with the fix it is committed, as a
// seed of the unit tests.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// target is one Fuzz function.
type target struct {
	// module is the directory of its module.
	module, pkg, name string
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with an exit status, so that what is deferred happens.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("fuzz", flag.ContinueOnError)
	flags.SetOutput(stderr)
	lasts := flags.Duration("time", 30*time.Second, "how long each function is fuzzed")
	only := flags.String("run", "", "a regular expression: only functions whose name matches it")
	root := flags.String("root", ".", "the repository")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if err := fuzz(ctx, *root, *only, *lasts, stdout); err != nil {
		_, _ = fmt.Fprintln(stderr, "fuzz:", err)
		return 1
	}
	return 0
}

func fuzz(ctx context.Context, root, only string, lasts time.Duration, out io.Writer) error {
	if lasts <= 0 {
		return fmt.Errorf("-time %s: want a duration above 0, like 30s", lasts)
	}
	name, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-run %q: %w", only, err)
	}
	targets, err := list(ctx, root, name)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return fmt.Errorf("-run %q: no function has such a name", only)
	}
	var errs []error
	for i, t := range targets {
		if _, err := fmt.Fprintf(out, "%d of %d: %s in %s\n", i+1, len(targets), t.name, t.pkg); err != nil {
			return err
		}
		// One function at a time, by its whole name, and no other test.
		command := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-fuzz", "^"+t.name+"$", "-fuzztime", lasts.String(), t.pkg)
		command.Dir, command.Stdout, command.Stderr = t.module, out, out
		if err := command.Run(); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			errs = append(errs, fmt.Errorf("%s in %s: %w", t.name, t.pkg, err))
		}
	}
	return errors.Join(errs...)
}

// list returns the functions of all modules whose names match.
func list(ctx context.Context, root string, name *regexp.Regexp) ([]target, error) {
	modules, err := filepath.Glob(filepath.Join(root, "test", "*", "go.mod"))
	if err != nil {
		return nil, err
	}
	var targets []target
	for _, file := range append([]string{filepath.Join(root, "go.mod")}, modules...) {
		module := filepath.Dir(file)
		packages, err := packagesWith(ctx, module)
		if err != nil {
			return nil, err
		}
		for _, pkg := range packages {
			out, err := output(ctx, module, "test", "-list", "^Fuzz", pkg)
			if err != nil {
				return nil, err
			}
			for line := range strings.Lines(out) {
				if f := strings.TrimSpace(line); strings.HasPrefix(f, "Fuzz") && name.MatchString(f) {
					targets = append(targets, target{module, pkg, f})
				}
			}
		}
	}
	return targets, nil
}

// packagesWith returns the packages of a module whose tests mention a Fuzz
// function: to list those of all others would build the tests of each.
func packagesWith(ctx context.Context, module string) ([]string, error) {
	out, err := output(ctx, module, "list", "-f",
		`{{$dir := .Dir}}{{$pkg := .ImportPath}}{{range .TestGoFiles}}{{$pkg}} {{$dir}}/{{.}}{{"\n"}}{{end}}`+
			`{{range .XTestGoFiles}}{{$pkg}} {{$dir}}/{{.}}{{"\n"}}{{end}}`, "./...")
	if err != nil {
		return nil, err
	}
	var packages []string
	for line := range strings.Lines(out) {
		pkg, file, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || len(packages) > 0 && packages[len(packages)-1] == pkg {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if strings.Contains(string(text), "\nfunc Fuzz") {
			packages = append(packages, pkg)
		}
	}
	return packages, nil
}

// output runs the go command in a module.
func output(ctx context.Context, module string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir = module
	var problem strings.Builder
	command.Stderr = &problem
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("go %s in %s: %w: %s%s", strings.Join(args, " "), module, err, problem.String(), out)
	}
	return string(out), nil
}

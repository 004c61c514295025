// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command vulncheck runs govulncheck, at the version of hack/vuln.mod, on the
// modules that it is given, which are directories.
//
//	go run ./hack/vulncheck . test/e2e
//
// A vulnerability that the code can reach is a failure. Where the public
// database of vulnerabilities cannot be reached nothing was checked: it says
// so, and that is a failure if the environment has VULNCHECK=required, as where
// a release is made. GOVULNDB names another database, such as a copy of
// https://github.com/golang/vulndb's data/osv by file:///path/of/it; that has
// to be there.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	// found is govulncheck's exit status for vulnerabilities in reach.
	found = 3
	// unreachable is what govulncheck says when its database is; it has no exit
	// status of its own for it.
	unreachable = "fetching vulnerabilities:"
	// database is where govulncheck looks by itself.
	database = "https://vuln.go.dev"
	// required is the value of VULNCHECK that asks for a database.
	required = "required"
)

// errNotChecked says that there was no database.
var errNotChecked = errors.New("nothing was checked")

func main() {
	os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is main with an exit status, so that what is deferred happens.
func run(modules []string, getenv func(string) string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	need := getenv("VULNCHECK")
	if len(modules) == 0 || need != "" && need != required {
		_, _ = fmt.Fprintf(stderr, "vulncheck: %d modules, VULNCHECK=%q: want directories, and %s or nothing\n", len(modules), need, required)
		return 2
	}
	db := getenv("GOVULNDB")
	if db == "" {
		db = database
	}
	status := 0
	for _, module := range modules {
		switch err := check(ctx, module, db, stdout); {
		case errors.Is(err, errNotChecked):
			_, _ = fmt.Fprintf(stderr, "\n*** vulncheck: NOTHING WAS CHECKED for known vulnerabilities ***\n%v\n"+
				"Name a database that can be reached in GOVULNDB. VULNCHECK=required makes this a failure.\n\n", err)
			if need == required {
				return 1
			}
			return status // nor will it be for the others
		case err != nil:
			_, _ = fmt.Fprintln(stderr, "vulncheck:", err)
			status = 1
		}
	}
	return status
}

// check returns an error if the module has vulnerabilities, could not be looked
// at, or, which is errNotChecked, if there was no database.
func check(ctx context.Context, module, db string, stdout io.Writer) error {
	tools, err := filepath.Abs(filepath.Join("hack", "vuln.mod"))
	if err != nil {
		return err
	}
	command := exec.CommandContext(ctx, "go", "tool", "-modfile="+tools, "govulncheck", "-db="+db, "-C", module, "./...")
	var said bytes.Buffer
	command.Stdout, command.Stderr = stdout, &said
	err = command.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() == found:
		return fmt.Errorf("module %s: it can reach the vulnerabilities above", module)
	case strings.Contains(said.String(), unreachable):
		return fmt.Errorf("%w: the database %s: %s", errNotChecked, db, strings.TrimSpace(said.String()))
	default:
		return fmt.Errorf("module %s: govulncheck: %w: %s", module, err, strings.TrimSpace(said.String()))
	}
}

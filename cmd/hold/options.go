// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/policygate/policygate/api/programmed"
)

// bootIDFile holds the boot id of the node's kernel.
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// options are what the flags say.
type options struct {
	timeout       time.Duration
	failOnTimeout bool
	file          string
	version       bool
}

// parse returns what args say, or an error that names the flag, its value and
// what is valid. Usage goes to output.
func parse(args []string, output io.Writer) (options, error) {
	var o options
	var onTimeout string
	fs := flag.NewFlagSet("hold", flag.ContinueOnError)
	fs.SetOutput(output)
	fs.DurationVar(&o.timeout, "timeout", time.Minute, "how long to wait for the gate, counted from the start of the hold")
	fs.StringVar(&onTimeout, "on-timeout", "start", `what to do then: "start" lets the containers start, "fail" fails the Pod`)
	fs.StringVar(&o.file, "file", "/run/policygate/programmed", "file that shows the annotation policygate.io/programmed")
	fs.BoolVar(&o.version, "version", false, "print the version and exit")
	if err := fs.Parse(args); err != nil {
		return options{}, err
	}
	switch {
	case fs.NArg() > 0:
		return options{}, fmt.Errorf("unexpected argument %q: want flags only", fs.Arg(0))
	case o.timeout <= 0:
		return options{}, fmt.Errorf("-timeout %s: want a duration above 0, like 60s", o.timeout)
	case o.file == "":
		return options{}, errors.New(`-file "": want the path of a file`)
	case onTimeout != "start" && onTimeout != "fail":
		return options{}, fmt.Errorf("-on-timeout %q: want start or fail", onTimeout)
	}
	o.failOnTimeout = onTimeout == "fail"
	return o, nil
}

// identity returns what the annotation must name for the gate to be this
// Pod's, at these addresses, since this boot.
func identity() (programmed.Identity, error) {
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return programmed.Identity{}, fmt.Errorf("read the node's boot id: %w", err)
	}
	id, err := programmed.New(os.Getenv("POD_UID"), strings.Split(os.Getenv("POD_IPS"), ","), string(boot))
	if err != nil {
		return programmed.Identity{}, fmt.Errorf(
			"%w (want the environment POD_UID from metadata.uid and POD_IPS from status.podIPs)", err)
	}
	return id, nil
}

// version returns the module's version and, where known, the commit.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return info.Main.Version + " " + s.Value
		}
	}
	return info.Main.Version
}

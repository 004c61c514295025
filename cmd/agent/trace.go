// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/pflag"

	"github.com/policygate/policygate/agent/session"
	"github.com/policygate/policygate/api/flow"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// traceName is the subcommand's name.
const traceName = "trace"

const traceUsage = `Usage: agent trace SRC DST:PORT [flags]

Says what this node's kernel would do with a new connection from the address
SRC to the address DST, and which rules it meets. It reads iptables, ip6tables,
nftables and ipset and sends nothing; it needs root with CAP_NET_ADMIN, and no
cluster.

  agent trace 10.0.0.1 10.0.0.2:3306
  agent trace fd00::1 [fd00::2]:53 --protocol udp -o json

The exit status is 0 if the connection would be let in, 2 if it would be
refused, 3 if that cannot be told, and 1 if there is no answer.

Flags:
`

// traceOptions are what the command line of "agent trace" says.
type traceOptions struct {
	flow   flow.Flow
	output string
	// ovsRunDir is Open vSwitch's run directory; empty: OVN is not asked.
	ovsRunDir string
}

// parseTrace reads the arguments behind "trace". Help and errors of the flags
// are written to out.
func parseTrace(args []string, out io.Writer) (*traceOptions, error) {
	flags := pflag.NewFlagSet("agent "+traceName, pflag.ContinueOnError)
	flags.SetOutput(out)
	protocol := flags.String("protocol", "tcp", "Protocol of the connection: tcp, udp or sctp.")
	output := flags.StringP("output", "o", "text", "How to print the answer: text for people, json for scripts.")
	ovsRunDir := flags.String("ovs-run-dir", "", "Open vSwitch's run directory, to ask OVN about flows of its Pods, such as /run/openvswitch.")
	flags.Usage = func() { _, _ = fmt.Fprint(out, traceUsage+flags.FlagUsages()) }
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() != 2 {
		return nil, fmt.Errorf("%d arguments: want SRC and DST:PORT, such as 10.0.0.1 10.0.0.2:3306", flags.NArg())
	}
	if *output != "text" && *output != "json" {
		return nil, fmt.Errorf("--output %q: want text or json", *output)
	}
	o := &traceOptions{output: *output, ovsRunDir: *ovsRunDir}
	var err error
	if o.flow.Protocol, err = tracev1.ParseProtocol(*protocol); err != nil {
		return nil, fmt.Errorf("--protocol: %w", err)
	}
	if o.flow.Src, err = tracev1.ParseAddr(flags.Arg(0)); err != nil {
		return nil, fmt.Errorf("source %w", err)
	}
	host, port, err := tracev1.SplitDestination(flags.Arg(1))
	if err != nil {
		return nil, err
	}
	if o.flow.Dst, err = tracev1.ParseAddr(host); err != nil {
		return nil, fmt.Errorf("destination %w", err)
	}
	o.flow.Port = port
	return o, o.flow.Validate()
}

// runTrace answers one question and returns the exit status.
func runTrace(ctx context.Context, args []string, traces session.Traces, stdout, stderr io.Writer) int {
	o, err := parseTrace(args, stderr)
	if errors.Is(err, pflag.ErrHelp) {
		return 0
	}
	if err == nil {
		if o.ovsRunDir != "" {
			traces = ovnOnce{o.ovsRunDir, traces}
		}
		var answer *tracev1.Answer
		if answer, err = ask(ctx, o.flow, traces); err == nil {
			if err = o.print(answer, stdout); err == nil {
				return answer.Verdict.ExitStatus()
			}
		}
	}
	_, _ = fmt.Fprintln(stderr, "error:", err)
	return tracev1.ExitError
}

// ask returns this node's answer.
func ask(ctx context.Context, f flow.Flow, traces session.Traces) (*tracev1.Answer, error) {
	hops, err := traces.Trace(ctx, f)
	if err != nil {
		return nil, err
	}
	node := tracev1.NewNode("", hops)
	return tracev1.NewAnswer([]tracev1.Flow{tracev1.NewFlow(f, "", "", []tracev1.Node{node})}), nil
}

func (o *traceOptions) print(answer *tracev1.Answer, out io.Writer) error {
	if o.output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(answer)
	}
	return answer.WriteText(out)
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package unixctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/policygate/policygate/internal/ovs/jsonrpc"
)

// command is one of those of ovs-vswitchd(8) that are ever sent. None of them
// changes anything; ofproto/trace does not with these two arguments alone.
type command string

const (
	commandVersion command = "version"
	commandTrace   command = "ofproto/trace"
	commandWait    command = "revalidator/wait"
)

const (
	// maxBridge and maxFlow bound the arguments. A bridge is a network device,
	// whose name has 15 bytes at most, or a userspace one; a flow with all
	// fields of an IPv6 packet in a tunnel is about 600 bytes.
	maxBridge = 255
	maxFlow   = 4096
)

// ErrSeveralDatapaths is why there is no way to wait for the revalidators:
// ovs-vswitchd has bridges of the kernel's datapath and of its own.
var ErrSeveralDatapaths = errors.New("ovs-vswitchd has several datapaths and can wait for none")

// Version returns what the daemon says of its version, on one line.
func (s *Session) Version(ctx context.Context) (string, error) {
	text, err := call(ctx, s.conn, commandVersion)
	return strings.TrimSpace(text), err
}

// Trace returns what ovs-vswitchd says the bridge's flows do with the packet
// that flow describes in the syntax of ovs-ofctl(8), with conntrack's default
// states: a new connection. No packet is sent. Both arguments must be
// printable ASCII that does not begin with a dash, and the bridge without
// spaces.
func (s *Session) Trace(ctx context.Context, bridge, flow string) (string, error) {
	if err := checkArgument("bridge", bridge, maxBridge); err != nil {
		return "", err
	}
	if strings.Contains(bridge, " ") {
		return "", fmt.Errorf("bridge %q contains a space", bridge)
	}
	if err := checkArgument("flow", flow, maxFlow); err != nil {
		return "", err
	}
	return call(ctx, s.conn, commandTrace, bridge, flow)
}

// WaitRevalidators returns once the dump of the flow cache has ended that is
// in progress, or the next if none is: it may have begun before the call. The
// error is ErrSeveralDatapaths where that cannot be told. It keeps no Trace
// waiting.
func (s *Session) WaitRevalidators(ctx context.Context) error {
	_, err := call(ctx, s.waits, commandWait)
	var refused *jsonrpc.CallError
	if errors.As(err, &refused) && strings.Contains(refused.Text, "wait on multiple udpifs") {
		return fmt.Errorf("%w: %w", ErrSeveralDatapaths, err)
	}
	return err
}

func checkArgument(what, text string, limit int) error {
	switch {
	case text == "":
		return fmt.Errorf("%s: empty", what)
	case len(text) > limit:
		return fmt.Errorf("%s of %d bytes: more than %d", what, len(text), limit)
	case text[0] == '-':
		return fmt.Errorf("%s %.40q begins with a dash", what, text)
	}
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return fmt.Errorf("%s %.40q is not printable ASCII", what, text)
		}
	}
	return nil
}

// call is how anything is sent to the daemon.
func call(ctx context.Context, conn *jsonrpc.Conn, c command, arguments ...any) (string, error) {
	raw, err := conn.Call(ctx, string(c), arguments...)
	if err != nil {
		return "", err
	}
	return parseReply(raw)
}

// parseReply reads the result of a command.
func parseReply(raw json.RawMessage) (string, error) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", fmt.Errorf("the daemon's answer is no text: %.40q", raw)
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return "", fmt.Errorf("the daemon's answer: %w", err)
	}
	return text, nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package tracev1

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/policygate/policygate/api/flow"
)

// Audience is what a token must be issued for to ask the manager. A token for
// the API server is of no use there, and one for this is of no use anywhere
// else.
const Audience = "policygate-trace"

// Path is where the manager answers a Question, sent as JSON by POST, with an
// Answer or a Failure.
const Path = "/trace"

// PortName is the name of the manager's container port that serves Path.
const PortName = "trace"

// MaxQuestion bounds the JSON of a question in bytes: two names of a namespace
// and a Pod take less than 700.
const MaxQuestion = 4 << 10

// Family is an IP family, or both.
type Family string

// Families. The empty one is every family that both ends have.
const (
	AnyFamily Family = ""
	IPv4      Family = "ipv4"
	IPv6      Family = "ipv6"
)

// Question is which new connection to trace.
type Question struct {
	// Source and Destination are each an IP address or "namespace/pod".
	Source      string `json:"source"`
	Destination string `json:"destination"`
	// Port is the destination port, 1 to 65535.
	Port uint16 `json:"port"`
	// Protocol is "tcp", "udp" or "sctp".
	Protocol string `json:"protocol"`
	Family   Family `json:"family,omitempty"`
}

// Failure is the JSON of an answer that is none.
type Failure struct {
	// Error says what was wrong with the question, or why nobody answers it.
	Error string `json:"error"`
}

// Validate returns an error that names each field that is not usable, or nil.
// It does not look into Source and Destination beyond their form.
func (q Question) Validate() error {
	var errs []error
	if _, err := ParseEnd(q.Source); err != nil {
		errs = append(errs, fmt.Errorf("source %w", err))
	}
	if _, err := ParseEnd(q.Destination); err != nil {
		errs = append(errs, fmt.Errorf("destination %w", err))
	}
	if q.Port == 0 {
		errs = append(errs, errors.New("port 0: want 1 to 65535"))
	}
	if _, err := ParseProtocol(q.Protocol); err != nil {
		errs = append(errs, err)
	}
	switch q.Family {
	case AnyFamily, IPv4, IPv6:
	default:
		errs = append(errs, fmt.Errorf("family %q: want ipv4 or ipv6, or none for both", q.Family))
	}
	return errors.Join(errs...)
}

// End is one end of a connection: an address, or a Pod if Addr is not valid.
type End struct {
	Addr            netip.Addr
	Namespace, Name string
}

// ParseEnd reads an IP address or "namespace/pod".
func ParseEnd(text string) (End, error) {
	if namespace, name, ok := strings.Cut(text, "/"); ok {
		if namespace == "" || name == "" || strings.Contains(name, "/") {
			return End{}, fmt.Errorf("%q: want an IP address or namespace/pod", text)
		}
		return End{Namespace: namespace, Name: name}, nil
	}
	addr, err := ParseAddr(text)
	if err != nil {
		return End{}, fmt.Errorf("%q: want an IP address or namespace/pod", text)
	}
	return End{Addr: addr}, nil
}

// ParseAddr reads an IP address as a flow has it: no zone, and a 4-in-6 mapped
// one as IPv4.
func ParseAddr(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q: want an IPv4 or IPv6 address without zone", text)
	}
	return addr.Unmap(), nil
}

// ParseProtocol reads the name of a protocol that a NetworkPolicy can name, in
// either case.
func ParseProtocol(text string) (flow.Protocol, error) {
	for _, p := range []flow.Protocol{flow.TCP, flow.UDP, flow.SCTP} {
		if strings.EqualFold(text, p.String()) {
			return p, nil
		}
	}
	return 0, fmt.Errorf("protocol %q: want tcp, udp or sctp", text)
}

// SplitDestination splits "DST:PORT", where an IPv6 address has to stand in
// brackets. It says nothing about DST but that it is not empty.
func SplitDestination(text string) (host string, port uint16, err error) {
	const want = "want DST:PORT, such as 10.0.0.2:3306, [fd00::2]:3306 or mysql:3306"
	at := strings.LastIndexByte(text, ':')
	if at < 0 {
		return "", 0, fmt.Errorf("destination %q has no port: %s", text, want)
	}
	host = text[:at]
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if addr, err := netip.ParseAddr(inner); !ok || err != nil || !addr.Is6() {
			return "", 0, fmt.Errorf("destination %q: want an IPv6 address within the brackets and a port behind them", text)
		}
		host = inner
	} else if strings.Contains(host, ":") {
		return "", 0, fmt.Errorf("destination %q: an IPv6 address has to stand in brackets, as in [fd00::2]:3306", text)
	}
	if host == "" {
		return "", 0, fmt.Errorf("destination %q: %s", text, want)
	}
	n, err := strconv.ParseUint(text[at+1:], 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("destination port %q: want a number from 1 to 65535", text[at+1:])
	}
	return host, uint16(n), nil
}

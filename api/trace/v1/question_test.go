// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package tracev1

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/policygate/policygate/api/flow"
)

func TestSplitDestination(t *testing.T) {
	for name, tc := range map[string]struct {
		text    string
		host    string
		port    uint16
		problem string
	}{
		"an IPv4 address":                  {text: "10.0.0.2:3306", host: "10.0.0.2", port: 3306},
		"an IPv6 address in brackets":      {text: "[fd00::2]:3306", host: "fd00::2", port: 3306},
		"a Pod":                            {text: "mysql:3306", host: "mysql", port: 3306},
		"a Pod of a namespace":             {text: "shop/mysql:3306", host: "shop/mysql", port: 3306},
		"no port":                          {text: "10.0.0.2", problem: `destination "10.0.0.2" has no port: want DST:PORT`},
		"an IPv6 address without brackets": {text: "fd00::2:3306", problem: "has to stand in brackets"},
		"an IPv6 address without a port":   {text: "[fd00::2]", problem: "within the brackets and a port behind them"},
		"an open bracket":                  {text: "[fd00::2:80", problem: "within the brackets"},
		"no IPv6 address in brackets":      {text: "[10.0.0.2]:80", problem: "want an IPv6 address within the brackets"},
		"nothing before the port":          {text: ":80", problem: "want DST:PORT"},
		"port 0":                           {text: "a:0", problem: `destination port "0": want a number from 1 to 65535`},
		"a port beyond 65535":              {text: "a:65536", problem: `"65536": want a number`},
		"a port with a sign":               {text: "a:+80", problem: `"+80": want a number`},
		"a port's name":                    {text: "a:mysql", problem: `"mysql": want a number`},
		"nothing":                          {text: "", problem: "has no port"},
	} {
		t.Run(name, func(t *testing.T) {
			host, port, err := SplitDestination(tc.text)
			if tc.problem != "" {
				if err == nil || !strings.Contains(err.Error(), tc.problem) {
					t.Errorf("SplitDestination(%q) = %q, %d, %v; want an error with %q", tc.text, host, port, err, tc.problem)
				}
				return
			}
			if err != nil || host != tc.host || port != tc.port {
				t.Errorf("SplitDestination(%q) = %q, %d, %v; want %q, %d", tc.text, host, port, err, tc.host, tc.port)
			}
		})
	}
}

func FuzzSplitDestination(f *testing.F) {
	for _, seed := range []string{"10.0.0.2:3306", "[fd00::2]:3306", "a/b:1", "[:1", "[]:1", ":", "::"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		host, port, err := SplitDestination(text)
		if err != nil {
			return
		}
		if host == "" || port == 0 {
			t.Errorf("SplitDestination(%q) = %q, %d", text, host, port)
		}
		again, samePort, err := SplitDestination(net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err != nil || again != host || samePort != port {
			t.Errorf("%q is %q and %d, which is then %q, %d, %v", text, host, port, again, samePort, err)
		}
	})
}

func TestParseEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		text    string
		want    End
		problem bool
	}{
		"IPv4":            {text: "10.0.0.1", want: End{Addr: netip.MustParseAddr("10.0.0.1")}},
		"IPv6":            {text: "fd00::1", want: End{Addr: netip.MustParseAddr("fd00::1")}},
		"4-in-6 is IPv4":  {text: "::ffff:10.0.0.1", want: End{Addr: netip.MustParseAddr("10.0.0.1")}},
		"a Pod":           {text: "shop/mysql", want: End{Namespace: "shop", Name: "mysql"}},
		"a zone":          {text: "fe80::1%eth0", problem: true},
		"a name alone":    {text: "mysql", problem: true},
		"no namespace":    {text: "/mysql", problem: true},
		"no name":         {text: "shop/", problem: true},
		"too many parts":  {text: "a/b/c", problem: true},
		"nothing at all":  {text: "", problem: true},
		"a CIDR is no IP": {text: "10.0.0.0/", problem: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseEnd(tc.text)
			if (err != nil) != tc.problem {
				t.Errorf("error %v, want one: %t", err, tc.problem)
			}
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseProtocol(t *testing.T) {
	for text, want := range map[string]flow.Protocol{"tcp": flow.TCP, "UDP": flow.UDP, "sctp": flow.SCTP} {
		if got, err := ParseProtocol(text); err != nil || got != want {
			t.Errorf("ParseProtocol(%q) = %v, %v", text, got, err)
		}
	}
	if _, err := ParseProtocol("icmp"); err == nil || err.Error() != `protocol "icmp": want tcp, udp or sctp` {
		t.Errorf("error %v", err)
	}
}

func TestQuestionValidateNamesEachWrongField(t *testing.T) {
	good := Question{Source: "shop/client", Destination: "10.0.0.2", Port: 80, Protocol: "tcp", Family: IPv4}
	if err := good.Validate(); err != nil {
		t.Errorf("a good question: %v", err)
	}
	err := Question{Source: "client", Destination: "x", Protocol: "icmp", Family: "ipv5"}.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`source "client"`, `destination "x"`, "port 0", `protocol "icmp"`, `family "ipv5"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q, want one with %q", err, want)
		}
	}
}

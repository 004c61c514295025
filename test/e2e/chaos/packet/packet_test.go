// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// run runs one command in a network namespace that the test made.
func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// The kernel's own answers, over a pair of interfaces between two namespaces.
func TestAskTellsWhatCameBack(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("want root: network namespaces are made")
	}
	for _, name := range []string{"pgate-packet-a", "pgate-packet-b"} {
		run(t, "ip", "netns", "add", name)
		t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
	}
	run(t, "ip", "-n", "pgate-packet-a", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", "pgate-packet-b")
	for name, addr := range map[string]string{"pgate-packet-a": "10.1.1.1/24", "pgate-packet-b": "10.1.1.2/24"} {
		run(t, "ip", "-n", name, "addr", "add", addr, "dev", "eth0")
		run(t, "ip", "-n", name, "link", "set", "eth0", "up")
	}
	for port, target := range map[string]string{"82": "REJECT", "83": "DROP"} {
		run(t, "nsenter", "--net=/run/netns/pgate-packet-b", "iptables", "-A", "INPUT", "-p", "tcp", "--dport", port, "-j", target)
	}
	server := netip.MustParseAddr("10.1.1.2")
	var listener net.Listener
	err := Inside("/run/netns/pgate-packet-b", func() (err error) {
		listener, err = net.Listen("tcp", "10.1.1.2:80")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	vantage, err := Open("/run/netns/pgate-packet-a", netip.MustParseAddr("10.1.1.1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vantage.Close)
	for name, tc := range map[string]struct {
		port uint16
		want Answer
	}{
		"a port that is served":   {80, Answer{Admitted, "SYN-ACK"}},
		"a port that nobody has":  {81, Answer{Admitted, "RST"}},
		"a port that is rejected": {82, Answer{Refused, "ICMP 3/3 from 10.1.1.2"}},
		"a port that is dropped":  {83, Answer{Silent, ""}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := vantage.Ask(t.Context(), netip.AddrPortFrom(server, tc.port), 500*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			if got != tc.want {
				t.Errorf("port %d: %+v, want %+v", tc.port, got, tc.want)
			}
		})
	}
	addrs, err := Addresses("/run/netns/pgate-packet-b")
	if err != nil || len(addrs) == 0 || addrs[0] != server {
		t.Errorf("Addresses() = %v, %v, want %s first", addrs, err, server)
	}
}

// A Pod of a node that reboots loses its address.
func TestNoAddressIsAnError(t *testing.T) {
	for _, addr := range []netip.Addr{{}, netip.IPv6Loopback()} {
		if _, err := (&Vantage{}).Ask(t.Context(), netip.AddrPortFrom(addr, 80), time.Second); err == nil {
			t.Errorf("a SYN was sent to %s", addr)
		}
		if _, err := Open("", addr); err == nil {
			t.Errorf("%s is a vantage", addr)
		}
	}
}

func TestUnrelatedPacketsAreNoAnswers(t *testing.T) {
	addr := netip.MustParseAddr("10.1.1.2")
	segment := syn(netip.AddrPortFrom(addr, 80), netip.AddrPortFrom(addr, 10000), 7)
	for name, packet := range map[string][]byte{
		"nothing": nil, "half a header": segment[:10], "a SYN": segment,
	} {
		if _, answer, ok := answerOf(addr, packet); ok {
			t.Errorf("%s is %+v, want no answer", name, answer)
		}
	}
	for name, message := range map[string][]byte{
		"nothing":                  nil,
		"an echo":                  make([]byte, 64),
		"an error about nothing":   {unreachable, 3, 0, 0, 0, 0, 0, 0},
		"an error about no packet": append([]byte{unreachable, 3, 0, 0, 0, 0, 0, 0}, make([]byte, 40)...),
	} {
		if _, answer, ok := refusalOf(addr, message); ok {
			t.Errorf("%s is %+v, want no refusal", name, answer)
		}
	}
}

func FuzzAnswers(f *testing.F) {
	addr := netip.MustParseAddr("10.1.1.2")
	f.Add(syn(netip.AddrPortFrom(addr, 80), netip.AddrPortFrom(addr, 10000), 7))
	f.Add([]byte{unreachable, 3, 0, 0, 0, 0, 0, 0, 0x45})
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, a, ok := refusalOf(addr, data); ok && a.Verdict != Refused {
			t.Errorf("an ICMP message is %+v", a)
		}
		if _, a, ok := answerOf(addr, data); ok && a.Verdict != Admitted {
			t.Errorf("a segment is %+v", a)
		}
	})
}

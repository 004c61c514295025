// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// namespace is a network namespace that lives as long as its test: one thread
// is in it and runs what it is given. Processes that are started there and
// sockets that are opened there belong to it.
type namespace struct {
	*testing.T
	path string
	work chan func()
}

// newNamespace needs root, and fails without.
func newNamespace(t *testing.T) *namespace {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("kernel tests make network namespaces: run them as root")
	}
	n := &namespace{T: t, work: make(chan func())}
	ready := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and with it the
		// namespace.
		runtime.LockOSThread()
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		n.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), syscall.Gettid())
		ready <- err
		for f := range n.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("unshare: %v", err)
	}
	t.Cleanup(func() { close(n.work) })
	n.run("ip", "link", "set", "lo", "up")
	return n
}

// do runs f in the namespace and waits for it.
func (n *namespace) do(f func()) {
	done := make(chan struct{})
	n.work <- func() {
		defer close(done)
		f()
	}
	<-done
}

// run runs a command in the namespace and returns what it prints.
func (n *namespace) run(name string, args ...string) string {
	n.Helper()
	var out []byte
	var err error
	var stderr strings.Builder
	n.do(func() {
		command := exec.CommandContext(n.Context(), name, args...)
		command.Stderr = &stderr
		out, err = command.Output()
	})
	if err != nil {
		n.Fatalf("%s %q: %v\n%s", name, args, err, stderr.String())
	}
	return string(out)
}

func (n *namespace) sysctl(key, value string) {
	n.Helper()
	var err error
	n.do(func() {
		err = os.WriteFile("/proc/sys/"+strings.ReplaceAll(key, ".", "/"), []byte(value), 0o600)
	})
	if err != nil {
		n.Fatal(err)
	}
}

// asNode makes a router of the namespace that has the given addresses.
func (n *namespace) asNode(addresses ...string) {
	n.Helper()
	n.sysctl("net.ipv4.ip_forward", "1")
	n.sysctl("net.ipv6.conf.all.forwarding", "1")
	// Without these the seventh refusal in a second is silence.
	n.sysctl("net.ipv4.icmp_ratelimit", "0")
	n.sysctl("net.ipv6.icmp.ratelimit", "0")
	for _, a := range addresses {
		n.run("ip", "address", "add", a, "dev", "lo")
	}
}

// addPod makes a namespace with the given addresses, routed through n by its
// own veth pair.
func (n *namespace) addPod(device string, addresses ...string) *namespace {
	n.Helper()
	p := newNamespace(n.T)
	n.run("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", p.path)
	n.run("ip", "address", "add", "169.254.1.1/32", "dev", device)
	n.run("ip", "address", "add", "fe80::1/64", "dev", device, "nodad")
	n.run("ip", "link", "set", device, "up")
	p.run("ip", "link", "set", "eth0", "up")
	p.run("ip", "route", "add", "169.254.1.1", "dev", "eth0")
	p.run("ip", "route", "add", "default", "via", "169.254.1.1")
	p.run("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
	for _, text := range addresses {
		a := netip.MustParseAddr(text)
		p.run("ip", "address", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "eth0", "nodad")
		n.run("ip", "route", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", device)
	}
	return p
}

// listen accepts TCP connections of both families.
func (n *namespace) listen(port int) {
	n.Helper()
	var listener net.Listener
	var err error
	n.do(func() {
		listener, err = (&net.ListenConfig{}).Listen(n.Context(), "tcp", fmt.Sprintf("[::]:%d", port))
	})
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
}

// dial returns "connected", "refused" or what else happened.
func (n *namespace) dial(address string, port int) string {
	result := "connected"
	n.do(func() {
		dialer := net.Dialer{Timeout: 2 * time.Second}
		c, err := dialer.DialContext(n.Context(), "tcp", net.JoinHostPort(address, fmt.Sprint(port)))
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			result = "refused"
		case err != nil:
			result = err.Error()
		default:
			_ = c.Close()
		}
	})
	return result
}

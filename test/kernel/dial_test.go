// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/policygate/policygate/internal/apiclient"
)

// TestConnectionBegunBeforeTheServiceProxy dials a Service's address while the
// node has no rule that rewrites it, and writes the rule then.
func TestConnectionBegunBeforeTheServiceProxy(t *testing.T) {
	const service, server = "198.51.100.1:443", "192.168.100.11:443"
	r := newRig(t, nil, nil)
	outside := r.all[1]
	proxy := func(address string) {
		r.node.run(t, "", "iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", address, "-j", "DNAT", "--to-destination", server)
	}
	// conntrack remembers connections from the first rule on that asks for it.
	proxy("198.51.100.2")
	outside.do(t, func() error {
		listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", server)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = listener.Close() })
		return nil
	})
	begin := func(dial func(context.Context, string, string) (net.Conn, error)) <-chan error {
		ended := make(chan error, 1)
		r.node.begin(t, func() {
			conn, err := dial(t.Context(), "tcp", service)
			if err == nil {
				err = conn.Close()
			}
			ended <- err
		})
		return ended
	}
	// Four SYNs, of which the rule is there for three.
	plain := begin((&net.Dialer{Timeout: 8 * time.Second}).DialContext)
	anew := begin(apiclient.NewDialer().DialContext)
	time.Sleep(500 * time.Millisecond)
	for name, ended := range map[string]<-chan error{"plain": plain, "anew": anew} {
		select {
		case err := <-ended:
			t.Fatalf("%s: %v before there is a rule", name, err)
		default:
		}
	}
	proxy("198.51.100.1")
	if err := <-anew; err != nil {
		t.Errorf("begun anew: %v", err)
	}
	if err := <-plain; err == nil {
		t.Error("one connection would do: this shows nothing")
	}
}

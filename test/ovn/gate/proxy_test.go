// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package gate

import (
	"io"
	"net"
	"testing"

	"github.com/policygate/policygate/test/ovn/fixture"
)

// proxy listens within the namespace of a node, until the test's end, and
// passes connections on to an address of the test's own loopback.
func proxy(t *testing.T, node *fixture.Node, listen, to string) {
	t.Helper()
	var listener net.Listener
	var err error
	node.Enter(func() { listener, err = net.Listen("tcp", listen) })
	if err != nil {
		t.Fatalf("listen on node %s: %v", node.Name(), err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go pass(conn, to)
		}
	}()
}

// pass serves one connection until either end closes it.
func pass(client net.Conn, to string) {
	defer client.Close()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	go func() {
		// Either way the connection is over.
		_, _ = io.Copy(server, client)
		server.Close()
	}()
	_, _ = io.Copy(client, server)
	server.Close()
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package jsonrpc

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
)

// Endpoint is where a server is. The zero value is none.
type Endpoint struct {
	text    string
	network string
	address string
	secure  bool
}

// ParseEndpoint reads "unix:/path", "tcp:host:port" or "ssl:host:port". An
// address may be in brackets, an IPv6 address must be.
func ParseEndpoint(text string) (Endpoint, error) {
	bad := func(why string) (Endpoint, error) {
		return Endpoint{}, fmt.Errorf("endpoint %.200q: %s; want unix:/path, tcp:host:port or ssl:host:port", text, why)
	}
	kind, address, _ := strings.Cut(text, ":")
	e := Endpoint{text: text, network: "tcp", address: address, secure: kind == "ssl"}
	switch kind {
	case "unix":
		if address == "" {
			return bad("no path")
		}
		e.network = "unix"
	case "tcp", "ssl":
		host, port, err := net.SplitHostPort(address)
		if err != nil || host == "" || port == "" {
			return bad("no host or no port")
		}
		e.address = net.JoinHostPort(host, port)
	default:
		return bad("unknown kind")
	}
	return e, nil
}

// String returns what ParseEndpoint read.
func (e Endpoint) String() string { return e.text }

// Secure returns whether the server is spoken to by TLS.
func (e Endpoint) Secure() bool { return e.secure }

// Dial connects to the endpoint. config is for secure ones and is not used for
// others; ctx bounds dialling and the handshake, not the connection.
func Dial(ctx context.Context, e Endpoint, config *tls.Config, o Options) (*Conn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, e.network, e.address)
	if err != nil {
		return nil, err
	}
	if e.secure {
		secure := tls.Client(raw, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, fmt.Errorf("tls handshake with %s: %w", e, err)
		}
		raw = secure
	}
	return New(raw, o), nil
}

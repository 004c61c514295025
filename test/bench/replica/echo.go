// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// echo answers each report with a release and nothing in between: the bare
// round trip that the hub's is held against. It has the hub's protocol, TLS
// and process.
type echo struct {
	hubv1.UnimplementedHubServer
	listener net.Listener
	server   *grpc.Server
	written  *atomic.Uint64
}

func newEcho(config *tls.Config) (*echo, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for echoes: %w", err)
	}
	e := &echo{written: &atomic.Uint64{}}
	e.listener = countingListener{listener, e.written}
	e.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	hubv1.RegisterHubServer(e.server, e)
	return e, nil
}

func (e *echo) address() string { return e.listener.Addr().String() }

func (e *echo) serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, e.server.Stop)
	defer stop()
	if err := e.server.Serve(e.listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve echoes: %w", err)
	}
	return nil
}

// Session implements the service.
func (e *echo) Session(stream grpc.BidiStreamingServer[hubv1.AgentMessage, hubv1.HubMessage]) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		answer := &hubv1.HubMessage{Message: &hubv1.HubMessage_Release{Release: &hubv1.Release{
			Subject: &hubv1.Subject{Uid: m.GetReport().GetUid()},
		}}}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

// countingListener counts what its connections write.
type countingListener struct {
	net.Listener
	written *atomic.Uint64
}

// Accept implements net.Listener.
func (l countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{conn, l.written}, nil
}

type countingConn struct {
	net.Conn
	written *atomic.Uint64
}

// Write implements net.Conn.
func (c countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written.Add(uint64(max(n, 0)))
	return n, err
}

// RoundTrips measures the bare round trip to the echo at an address, one each
// interval, until ctx ends.
func RoundTrips(ctx context.Context, address, serverName string, roots *x509.CertPool, every time.Duration) (_ []time.Duration, err error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		ServerName: serverName, RootCAs: roots, MinVersion: tls.VersionTLS13,
	})))
	if err != nil {
		return nil, fmt.Errorf("dial the echo: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	stream, err := hubv1.NewHubClient(conn).Session(context.WithoutCancel(ctx))
	if err != nil {
		return nil, fmt.Errorf("open an echo's session: %w", err)
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	// A report of the size of a real one.
	report := &hubv1.AgentMessage{Message: &hubv1.AgentMessage_Report{Report: &hubv1.Report{
		Uid: "00000000-0000-4000-8000-000000000000", Generation: 1 << 50, Confirmed: true,
	}}}
	var all []time.Duration
	for {
		select {
		case <-ctx.Done():
			return all, nil
		case <-ticker.C:
		}
		began := time.Now()
		if err := stream.Send(report); err != nil {
			return all, fmt.Errorf("send to the echo: %w", err)
		}
		if _, err := stream.Recv(); err != nil {
			return all, fmt.Errorf("receive from the echo: %w", err)
		}
		all = append(all, time.Since(began))
	}
}

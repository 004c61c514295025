// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiclient

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"
)

// The connections themselves: TestConnectionBegunBeforeTheServiceProxy in
// test/kernel.
func TestDialer(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	// silence is a server that does not answer, answer one that does at once.
	silence := func(ctx context.Context) error {
		<-ctx.Done()
		return &net.OpError{Op: "dial", Err: ctx.Err()}
	}
	answer := func(context.Context) error { return nil }
	refuse := func(context.Context) error { return refused }
	for _, tc := range []struct {
		name string
		// servers are those that one connection after the other meets; the last
		// is met again and again.
		servers []func(context.Context) error
		caller  time.Duration // how long the caller waits; 0: for ever
		tries   int
		took    time.Duration
		is      error
	}{
		{name: "an answer", servers: []func(context.Context) error{answer}, tries: 1},
		{name: "an answer to the second", servers: []func(context.Context) error{silence, answer}, tries: 2, took: 2 * time.Second},
		{name: "an answer to the fourth", servers: []func(context.Context) error{silence, silence, silence, answer}, tries: 4, took: 14 * time.Second},
		{name: "never", servers: []func(context.Context) error{silence}, tries: 4, took: 30 * time.Second, is: context.DeadlineExceeded},
		{name: "a refusal is an answer", servers: []func(context.Context) error{refuse}, tries: 1, is: refused},
		{name: "a refusal of the second", servers: []func(context.Context) error{silence, refuse}, tries: 2, took: 2 * time.Second, is: refused},
		{name: "the caller goes", servers: []func(context.Context) error{silence}, caller: 3 * time.Second, tries: 2, took: 3 * time.Second, is: context.DeadlineExceeded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if tc.caller > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tc.caller)
					defer cancel()
				}
				tries := 0
				d := Dialer{dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					if network != "tcp" || address != "10.96.0.1:443" {
						t.Errorf("dials %s %s", network, address)
					}
					server := tc.servers[min(tries, len(tc.servers)-1)]
					tries++
					if err := server(ctx); err != nil {
						return nil, err
					}
					return &net.TCPConn{}, nil
				}}
				began := time.Now()
				conn, err := d.DialContext(ctx, "tcp", "10.96.0.1:443")
				if !errors.Is(err, tc.is) || (conn == nil) != (tc.is != nil) {
					t.Errorf("got %v, %v: want error %v", conn, err, tc.is)
				}
				if took := time.Since(began); tries != tc.tries || took != tc.took {
					t.Errorf("%d connections in %v: want %d in %v", tries, took, tc.tries, tc.took)
				}
			})
		})
	}
}

func TestConfigNeedsAKubeconfigOrAPod(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := Config(""); !errors.Is(err, rest.ErrNotInCluster) {
		t.Errorf("outside of a cluster: %v", err)
	}
	if _, err := Config("/does/not/exist"); err == nil {
		t.Error("no error with a kubeconfig that is not there")
	}
}

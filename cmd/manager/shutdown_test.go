// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/utils/clock"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
)

// slowServer ends some time after it is asked to.
type slowServer struct {
	ctrlwebhook.Server
	takes time.Duration
}

func (s slowServer) Start(ctx context.Context) error {
	<-ctx.Done()
	time.Sleep(s.takes)
	return nil
}

func TestAReplicaEndsInOrder(t *testing.T) {
	const delay = 5 * time.Second
	cases := map[string]struct {
		// takes is how long the webhook takes to end, never if it does not run.
		takes time.Duration
		runs  bool
		// webhook and all are when these have ended, from when they were asked to.
		webhook, all time.Duration
	}{
		"the webhook first, after the delay":        {runs: true, takes: time.Second, webhook: delay + time.Second, all: delay + time.Second},
		"all else, if the webhook does not end":     {runs: true, takes: time.Hour, webhook: delay + time.Hour, all: delay + drainTimeout},
		"all else, if the webhook has never begun":  {all: delay + drainTimeout},
		"at once, if the webhook ends without wait": {runs: true, webhook: delay, all: delay},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked, ask := context.WithCancel(t.Context())
				s := newShutdown(asked, delay, clock.RealClock{})
				ctx, stop := s.context()
				defer stop()
				var webhook, all time.Duration
				var began time.Time
				var running sync.WaitGroup
				if tc.runs {
					running.Go(func() {
						if err := s.drains(slowServer{takes: tc.takes}).Start(t.Context()); err != nil {
							t.Error(err)
						}
						webhook = time.Since(began)
					})
				}
				running.Go(func() {
					<-ctx.Done()
					all = time.Since(began)
				})
				time.Sleep(time.Minute)
				if err := s.ready(); err != nil {
					t.Errorf("not ready before it is asked to end: %v", err)
				}
				began = time.Now()
				ask()
				if s.ready() == nil {
					t.Error("ready though it is asked to end")
				}
				running.Wait()
				if webhook != tc.webhook || all != tc.all {
					t.Errorf("the webhook ended after %s and all after %s, want %s and %s", webhook, all, tc.webhook, tc.all)
				}
			})
		})
	}
}

// site is a webhook's replica that says its name, at an address of its own.
type site struct {
	shutdown *shutdown
	ask      context.CancelFunc
	address  string
	ended    chan error
}

func startSite(t *testing.T, name string, certificate tls.Certificate) *site {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().(*net.TCPAddr)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	asked, ask := context.WithCancel(context.Background())
	s := &site{ask: ask, address: address.String(), ended: make(chan error, 1)}
	s.shutdown = newShutdown(asked, 300*time.Millisecond, clock.RealClock{})
	_, stop := s.shutdown.context()
	t.Cleanup(stop)
	server := s.shutdown.drains(ctrlwebhook.NewServer(ctrlwebhook.Options{
		Host: "127.0.0.1", Port: address.Port,
		TLSOpts: []func(*tls.Config){func(c *tls.Config) {
			c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &certificate, nil }
		}},
	}))
	server.Register("/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("%s: read a request: %v", name, err)
		}
		_, _ = fmt.Fprintf(w, "%s %d", name, len(body)) // an error is the client's to see
	}))
	go func() { s.ended <- server.Start(context.Background()) }()
	for err := server.StartedChecker()(nil); err != nil; err = server.StartedChecker()(nil) {
		select {
		case err := <-s.ended:
			t.Fatalf("the webhook of replica %s has ended: %v", name, err)
		case <-time.After(time.Millisecond):
		}
	}
	return s
}

// An API server keeps its connections for as long as it uses them. Whatever it
// asks while replica after replica ends, it gets an answer.
func TestNoRequestIsLostWhileReplicasEnd(t *testing.T) {
	issuer := httptest.NewTLSServer(nil)
	defer issuer.Close()
	roots := x509.NewCertPool()
	roots.AddCert(issuer.Certificate())
	var current atomic.Pointer[site]
	transport := &http.Transport{
		ForceAttemptHTTP2: true,
		TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, current.Load().address)
		},
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	body := bytes.Repeat([]byte("x"), 100_000) // many frames

	site := startSite(t, "0", issuer.TLS.Certificates[0])
	current.Store(site)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asking sync.WaitGroup
	var answers sync.Map // name of a replica -> true
	ask := func() error {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://example.com/", bytes.NewReader(body))
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		answer, err := io.ReadAll(response.Body)
		name, length, _ := bytes.Cut(answer, []byte(" "))
		if err != nil || response.ProtoMajor != 2 || string(length) != strconv.Itoa(len(body)) {
			return fmt.Errorf("%s answered %q, error %w, want all of the body by HTTP/2", response.Proto, answer, err)
		}
		answers.Store(string(name), true)
		return nil
	}
	for range 4 {
		asking.Go(func() {
			for ctx.Err() == nil {
				if err := ask(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for n := range 3 {
		await(t, &answers, strconv.Itoa(n))
		next := startSite(t, strconv.Itoa(n+1), issuer.TLS.Certificates[0])
		site.ask() // before anybody hears of the next one
		current.Store(next)
		if err := <-site.ended; err != nil {
			t.Error(err)
		}
		site = next
	}
	await(t, &answers, "3")
	cancel()
	asking.Wait()
	site.ask()
	if err := <-site.ended; err != nil {
		t.Error(err)
	}
}

// await returns when the named replica has answered.
func await(t *testing.T, answers *sync.Map, name string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, ok := answers.Load(name); ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("replica %s was never asked", name)
		}
	}
}

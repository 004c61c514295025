// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package serve serves what agents say of themselves beside their work: metrics,
// whether they live, and whether they are of use. It knows neither.
package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"
)

const (
	// headerTimeout bounds a client that does not finish its request.
	headerTimeout = 5 * time.Second
	// shutdownTimeout bounds the end of requests in flight.
	shutdownTimeout = time.Second
)

// Handler serves metrics at /metrics, /healthz, and /readyz: ready returns why the
// process is not of use, or nil.
func Handler(metrics http.Handler, ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusOK)
	})
	return mux
}

// Off is the address at which nothing is served.
const Off = "0"

// IsAddress reports whether Serve can be asked for the address: a host, which
// may be empty, and a port, or Off.
func IsAddress(a string) bool {
	if a == Off {
		return true
	}
	_, port, err := net.SplitHostPort(a)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

// Serve serves the handler at the address until ctx ends, and returns nil then. It
// returns an error if it cannot listen.
func Serve(ctx context.Context, address string, handler http.Handler) error {
	if address == Off {
		<-ctx.Done()
		return nil
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("serve metrics: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: headerTimeout}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve metrics: %w", err)
	case <-ctx.Done():
	}
	shutdownCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(shutdownCtx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("end serving metrics: %w", err)
	}
	return nil
}

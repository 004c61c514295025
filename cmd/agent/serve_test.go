// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestHandler(t *testing.T) {
	registry := prometheus.NewRegistry()
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "x_looks", Help: "Looks taken."})
	registry.MustRegister(gauge)
	for name, tc := range map[string]struct {
		path  string
		ready bool
		code  int
		body  string
	}{
		"it lives without a session":        {path: "/healthz", code: http.StatusOK},
		"it is not ready without one":       {path: "/readyz", code: http.StatusServiceUnavailable, body: "no session"},
		"it is ready with one":              {path: "/readyz", ready: true, code: http.StatusOK},
		"metrics are those of the agent":    {path: "/metrics", code: http.StatusOK, body: "x_looks 0"},
		"nothing else is served (no pprof)": {path: "/debug/pprof/", code: http.StatusNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			newHandler(registry, func() bool { return tc.ready }).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, tc.path, nil))
			if w.Code != tc.code || !strings.Contains(w.Body.String(), tc.body) {
				t.Errorf("%d %q, want %d with %q", w.Code, w.Body, tc.code, tc.body)
			}
		})
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	for name, address := range map[string]string{"serving": "127.0.0.1:0", "off": addressOff} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- serve(ctx, address, http.NotFoundHandler()) }()
			select {
			case err := <-done:
				t.Fatalf("ended at once: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestServeSaysWhereItCannotListen(t *testing.T) {
	err := serve(t.Context(), "192.0.2.1:1", http.NotFoundHandler())
	if err == nil || !strings.Contains(err.Error(), "192.0.2.1:1") {
		t.Errorf("error %v, want one that names the address", err)
	}
}

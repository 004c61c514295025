// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func TestHandler(t *testing.T) {
	registry := prometheus.NewRegistry()
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "x_looks", Help: "Looks taken."})
	registry.MustRegister(gauge)
	for name, tc := range map[string]struct {
		path  string
		ready error
		code  int
		body  string
	}{
		"it lives without a session":        {path: "/healthz", ready: errors.New("no session"), code: http.StatusOK},
		"it is not ready without one":       {path: "/readyz", ready: errors.New("no session"), code: http.StatusServiceUnavailable, body: "no session"},
		"it is ready with one":              {path: "/readyz", code: http.StatusOK},
		"metrics are those of the agent":    {path: "/metrics", code: http.StatusOK, body: "x_looks 0"},
		"nothing else is served (no pprof)": {path: "/debug/pprof/", code: http.StatusNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			handler := Handler(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), func() error { return tc.ready })
			handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, tc.path, nil))
			if w.Code != tc.code || !strings.Contains(w.Body.String(), tc.body) {
				t.Errorf("%d %q, want %d with %q", w.Code, w.Body, tc.code, tc.body)
			}
		})
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	for name, address := range map[string]string{"serving": "127.0.0.1:0", "off": Off} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- Serve(ctx, address, http.NotFoundHandler()) }()
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
	if err := Serve(t.Context(), "256.0.0.1:1", http.NotFoundHandler()); err == nil {
		t.Error("served at an address that is none")
	}
	err := Serve(t.Context(), "192.0.2.1:1", http.NotFoundHandler())
	if err == nil || !strings.Contains(err.Error(), "192.0.2.1:1") {
		t.Errorf("error %v, want one that names the address", err)
	}
}

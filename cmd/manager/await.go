// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
)

const (
	// askInterval and askTimeout pace the question whether the API server is
	// ready.
	askInterval = time.Second
	askTimeout  = 5 * time.Second
	// mostRefusals is how often the API server may refuse to answer that:
	// while it starts, it refuses everything for a moment, and where nobody may
	// ask, it does for ever.
	mostRefusals = 30
)

// awaitAPIServer returns once the API server says that it is ready, or once ctx
// ends, with its error. A manager cannot be made without it, and one that ends
// for that and is started again and again waits, when the API server is back,
// for what its kubelet has added to the pauses between. Meanwhile it says at
// healthAddress (addressOff: nowhere) that it lives, and is not ready.
func awaitAPIServer(ctx context.Context, config *rest.Config, healthAddress string, log logr.Logger) error {
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make the client: %w", err)
	}
	ask := func(ctx context.Context) error {
		return clients.Discovery().RESTClient().Get().AbsPath("/readyz").Timeout(askTimeout).Do(ctx).Error()
	}
	return awaitReady(ctx, ask, healthAddress, log)
}

// awaitReady is awaitAPIServer for a way to ask.
func awaitReady(ctx context.Context, ask func(context.Context) error, healthAddress string, log logr.Logger) (err error) {
	var health *http.Server
	defer func() {
		if health != nil {
			err = errors.Join(err, health.Close())
		}
	}()
	for refusals := 0; ; {
		why := ask(ctx)
		if apierrors.IsForbidden(why) || apierrors.IsUnauthorized(why) {
			refusals++
		}
		if why == nil || refusals >= mostRefusals {
			return nil
		}
		if health == nil {
			log.Info("the API server is awaited", "reason", why.Error())
			if health, err = waitingHealth(ctx, healthAddress); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-clock.RealClock{}.After(askInterval):
		}
	}
}

// waitingHealth serves the probes of a manager that waits.
func waitingHealth(ctx context.Context, address string) (*http.Server, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the API server is awaited", http.StatusServiceUnavailable)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: askTimeout}
	if address == addressOff {
		return server, nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve health at %s: %w", address, err)
	}
	go server.Serve(listener) //nolint:errcheck // ends with Close
	return server, nil
}

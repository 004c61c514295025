// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"
	"testing/synctest"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestTheAPIServerIsAwaited(t *testing.T) {
	forbidden := apierrors.NewForbidden(schema.GroupResource{}, "", errors.New("no"))
	gone := errors.New("connection refused")
	tests := map[string]struct {
		// answers are its first ones; the last is given for ever.
		answers []error
		asked   int
	}{
		"until it is ready":                          {answers: []error{gone, gone, apierrors.NewServiceUnavailable("starts"), nil}, asked: 4},
		"not at all if it is":                        {answers: []error{nil}, asked: 1},
		"while it refuses everything at its start":   {answers: []error{gone, forbidden, forbidden, nil}, asked: 4},
		"not for ever where nobody may ask it":       {answers: []error{forbidden}, asked: mostRefusals},
		"and refusals count that are not in one row": {answers: []error{forbidden, gone, forbidden}, asked: mostRefusals + 1},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				ask := func(context.Context) error {
					asked++
					return tc.answers[min(asked, len(tc.answers))-1]
				}
				if err := awaitReady(t.Context(), ask, "0", logr.Discard()); err != nil {
					t.Fatal(err)
				}
				if asked != tc.asked {
					t.Errorf("asked %d times, want %d", asked, tc.asked)
				}
			})
		})
	}
}

func TestAManagerThatIsToldToEndAwaitsNobody(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ask := func(context.Context) error { cancel(); return errors.New("connection refused") }
	if err := awaitReady(ctx, ask, "0", logr.Discard()); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

// The kubelet must not end what waits, and the webhook's Service must not send
// Pods there.
func TestAManagerThatWaitsLivesAndIsNotReady(t *testing.T) {
	free, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	asked, status := 0, map[string]int{}
	ask := func(context.Context) error {
		if asked++; asked == 1 {
			return errors.New("connection refused")
		}
		for _, path := range []string{"healthz", "readyz"} {
			response, err := http.Get(fmt.Sprintf("http://%s/%s", address, path))
			if err != nil {
				t.Fatal(err)
			}
			status[path] = response.StatusCode
			if err := response.Body.Close(); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
	if err := awaitReady(t.Context(), ask, address, logr.Discard()); err != nil {
		t.Fatal(err)
	}
	if status["healthz"] != http.StatusOK || status["readyz"] != http.StatusServiceUnavailable {
		t.Errorf("status %v, want healthz 200 and readyz 503", status)
	}
	again, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatalf("the manager itself cannot serve its health: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

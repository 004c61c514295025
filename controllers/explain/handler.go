// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/time/rate"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

const (
	// tracesPerSecond and traceBurst bound the traces, each of which costs the
	// API server two reviews and up to two agents two looks at their rules:
	// many people, or a script over all Pods of a namespace, but no flood.
	tracesPerSecond = 10
	traceBurst      = 20
	// othersPerSecond and othersBurst bound explanations and diagnoses, each by
	// itself: an explanation asks for up to twelve traces, a diagnosis goes
	// over all nodes.
	othersPerSecond = 2
	othersBurst     = 5
	// maxEmpty bounds the body of a question that has no fields.
	maxEmpty = 64
	// reviewTimeout bounds both reviews of a request.
	reviewTimeout = 10 * time.Second
	// askTimeout bounds the agents' answers; an agent gives up after 10 s.
	askTimeout = 12 * time.Second
)

// handler answers questions.
type handler struct {
	Options
	access access
}

func newHandler(o Options) http.Handler {
	h := &handler{Options: o, access: access{tokens: o.TokenReviews, reviews: o.AccessReviews}}
	others := func() *rate.Limiter { return rate.NewLimiter(othersPerSecond, othersBurst) }
	mux := http.NewServeMux()
	mux.Handle("POST "+tracev1.Path, h.guarded(traces, rate.NewLimiter(tracesPerSecond, traceBurst), h.trace))
	mux.Handle("POST "+explainv1.ExplainPath, h.guarded(explanations, others(), h.explain))
	mux.Handle("POST "+explainv1.DoctorPath, h.guarded(diagnoses, others(), h.diagnose))
	return mux
}

// answerer answers the question of a request, which the user may ask. An error
// is a *malformedError or an *unresolvableError, whose texts are for who asked,
// or another, which is not.
type answerer func(w http.ResponseWriter, r *http.Request, user string) (any, error)

// guarded answers those who may create the resource, within the limit.
func (h *handler) guarded(resource string, limit *rate.Limiter, answer answerer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !limit.Allow() {
			w.Header().Set("Retry-After", "1")
			h.fail(w, http.StatusTooManyRequests, "too many questions at once: ask again")
			return
		}
		user, ok := h.admit(w, r, resource)
		if !ok {
			return
		}
		body, err := answer(w, r, user)
		malformed, impossible := (*malformedError)(nil), (*unresolvableError)(nil)
		switch {
		case err == nil:
			h.write(w, http.StatusOK, body)
		case errors.As(err, &malformed):
			h.fail(w, malformed.status, malformed.Error())
		case errors.As(err, &impossible):
			h.fail(w, http.StatusUnprocessableEntity, impossible.Error())
		default:
			h.Log.Error(err, "question could not be answered", "resource", resource)
			h.fail(w, http.StatusServiceUnavailable, "the manager's caches cannot be read: ask again")
		}
	})
}

// admit returns who asks, or answers why nobody may and returns false.
func (h *handler) admit(w http.ResponseWriter, r *http.Request, resource string) (user string, ok bool) {
	ctx, cancel := context.WithTimeout(r.Context(), reviewTimeout)
	defer cancel()
	user, err := h.access.admit(ctx, r.Header, resource)
	if refused := (*refusedError)(nil); errors.As(err, &refused) {
		h.Log.Info("question refused", "resource", resource, "status", refused.status, "reason", refused.reason)
		h.fail(w, refused.status, refused.reason)
		return "", false
	} else if err != nil {
		h.Log.Error(err, "token could not be reviewed")
		h.fail(w, http.StatusServiceUnavailable, "the API server could not say who may ask: ask again")
		return "", false
	}
	return user, true
}

// malformedError says what is wrong with a request's body.
type malformedError struct {
	status int
	err    error
}

func (e *malformedError) Error() string { return e.err.Error() }

// decode reads the body of a request into question. A field that is not known
// is an error: it would be answered as if it were not there.
func decode(w http.ResponseWriter, r *http.Request, most int64, question any) error {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, most))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(question)
	if err == nil {
		return nil
	}
	status := http.StatusBadRequest
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		status = http.StatusRequestEntityTooLarge
	}
	return &malformedError{status, fmt.Errorf("read the question: %w", err)}
}

// valid returns err, what is wrong with a question, as the asker's fault.
func valid(err error) error {
	if err == nil {
		return nil
	}
	return &malformedError{http.StatusBadRequest, err}
}

func (h *handler) fail(w http.ResponseWriter, status int, reason string) {
	h.write(w, status, tracev1.Failure{Error: reason})
}

func (h *handler) write(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		h.Log.V(1).Info("answer was not read to its end", "reason", err.Error())
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/time/rate"

	"github.com/policygate/policygate/api/flow"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

const (
	// perSecond and burst bound the questions, each of which costs the API
	// server two reviews and up to two agents two looks at their rules: many
	// people, or a script over all Pods of a namespace, but no flood.
	perSecond = 10
	burst     = 20
	// reviewTimeout bounds both reviews of a request.
	reviewTimeout = 10 * time.Second
	// askTimeout bounds the agents' answers; an agent gives up after 10 s.
	askTimeout = 12 * time.Second
)

// Agents asks the agent of a node.
type Agents interface {
	// Ask returns what the node would do with the flow, or an error that says
	// why it does not answer. It gives up when ctx ends.
	Ask(ctx context.Context, node string, f flow.Flow) (tracev1.Node, error)
}

// handler answers questions.
type handler struct {
	access  access
	cluster Cluster
	agents  Agents
	limit   *rate.Limiter
	log     logr.Logger
}

func newHandler(o Options) http.Handler {
	h := &handler{
		access:  access{tokens: o.TokenReviews, reviews: o.AccessReviews},
		cluster: o.Cluster, agents: o.Agents, log: o.Log,
		limit: rate.NewLimiter(perSecond, burst),
	}
	mux := http.NewServeMux()
	mux.Handle("POST "+tracev1.Path, h)
	return mux
}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.limit.Allow() {
		w.Header().Set("Retry-After", "1")
		h.fail(w, http.StatusTooManyRequests, "too many questions at once: ask again")
		return
	}
	user, ok := h.admit(w, r)
	if !ok {
		return
	}
	q, err := question(w, r)
	if err != nil {
		status := http.StatusBadRequest
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			status = http.StatusRequestEntityTooLarge
		}
		h.fail(w, status, err.Error())
		return
	}
	routes, err := resolve(r.Context(), h.cluster, q)
	if impossible := (*unresolvableError)(nil); errors.As(err, &impossible) {
		h.fail(w, http.StatusUnprocessableEntity, impossible.Error())
		return
	} else if err != nil {
		h.log.Error(err, "question could not be resolved")
		h.fail(w, http.StatusServiceUnavailable, "Pods and nodes cannot be looked up: ask again")
		return
	}
	answer := h.ask(r.Context(), routes)
	h.log.Info("traced", "user", user, "source", q.Source, "destination", q.Destination, "port", q.Port,
		"protocol", q.Protocol, "verdict", answer.Verdict)
	h.write(w, http.StatusOK, answer)
}

// admit returns who asks, or answers why nobody may and returns false.
func (h *handler) admit(w http.ResponseWriter, r *http.Request) (user string, ok bool) {
	ctx, cancel := context.WithTimeout(r.Context(), reviewTimeout)
	defer cancel()
	user, err := h.access.admit(ctx, r.Header)
	if refused := (*refusedError)(nil); errors.As(err, &refused) {
		h.log.Info("trace refused", "status", refused.status, "reason", refused.reason)
		h.fail(w, refused.status, refused.reason)
		return "", false
	} else if err != nil {
		h.log.Error(err, "token could not be reviewed")
		h.fail(w, http.StatusServiceUnavailable, "the API server could not say who may ask: ask again")
		return "", false
	}
	return user, true
}

// question reads the request's question. A field that is not known is an
// error: it would be answered as if it were not there.
func question(w http.ResponseWriter, r *http.Request) (tracev1.Question, error) {
	var q tracev1.Question
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, tracev1.MaxQuestion))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&q); err != nil {
		return q, fmt.Errorf("read the question: %w", err)
	}
	return q, q.Validate()
}

// ask asks the nodes of all routes at once.
func (h *handler) ask(ctx context.Context, routes []route) *tracev1.Answer {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var asking sync.WaitGroup
	nodes := make([][]tracev1.Node, len(routes))
	for i, r := range routes {
		nodes[i] = make([]tracev1.Node, len(r.nodes))
		for j, name := range r.nodes {
			asking.Go(func() {
				node, err := h.agents.Ask(ctx, name, r.flow)
				if err != nil {
					node = tracev1.Unanswered(name, err.Error())
				}
				nodes[i][j] = node
			})
		}
	}
	asking.Wait()
	flows := make([]tracev1.Flow, 0, len(routes))
	for i, r := range routes {
		flows = append(flows, tracev1.NewFlow(r.flow, r.sourceName, r.destinationName, nodes[i]))
	}
	return tracev1.NewAnswer(flows)
}

func (h *handler) fail(w http.ResponseWriter, status int, reason string) {
	h.write(w, status, tracev1.Failure{Error: reason})
}

func (h *handler) write(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		h.log.V(1).Info("answer was not read to its end", "reason", err.Error())
	}
}

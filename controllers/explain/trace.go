// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"context"
	"net/http"
	"sync"

	"github.com/policygate/policygate/api/flow"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// Agents asks the agent of a node.
type Agents interface {
	// Ask returns what the node would do with the flow, or an error that says
	// why it does not answer. It gives up when ctx ends.
	Ask(ctx context.Context, node string, f flow.Flow) (tracev1.Node, error)
}

// trace answers what would become of a connection.
func (h *handler) trace(w http.ResponseWriter, r *http.Request, user string) (any, error) {
	q, err := traceQuestion(w, r)
	if err != nil {
		return nil, err
	}
	routes, err := resolve(r.Context(), h.Cluster, q)
	if err != nil {
		return nil, err
	}
	answer := h.follow(r.Context(), routes)
	h.Log.Info("traced", "user", user, "source", q.Source, "destination", q.Destination, "port", q.Port,
		"protocol", q.Protocol, "verdict", answer.Verdict)
	return answer, nil
}

// traceQuestion reads the request's question.
func traceQuestion(w http.ResponseWriter, r *http.Request) (tracev1.Question, error) {
	var q tracev1.Question
	if err := decode(w, r, tracev1.MaxQuestion, &q); err != nil {
		return q, err
	}
	return q, valid(q.Validate())
}

// follow asks the nodes of all routes at once.
func (h *handler) follow(ctx context.Context, routes []route) *tracev1.Answer {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var asking sync.WaitGroup
	nodes := make([][]tracev1.Node, len(routes))
	for i, r := range routes {
		nodes[i] = make([]tracev1.Node, len(r.nodes))
		for j, name := range r.nodes {
			asking.Go(func() { nodes[i][j] = h.ask(ctx, name, r.flow) })
		}
	}
	asking.Wait()
	flows := make([]tracev1.Flow, 0, len(routes))
	for i, r := range routes {
		flows = append(flows, tracev1.NewFlow(r.flow, r.sourceName, r.destinationName, nodes[i]))
	}
	return tracev1.NewAnswer(flows)
}

// ask asks one node; that it does not answer is an answer, too.
func (h *handler) ask(ctx context.Context, name string, f flow.Flow) tracev1.Node {
	node, err := h.Agents.Ask(ctx, name, f)
	if err != nil {
		return tracev1.Unanswered(name, err.Error())
	}
	return node
}

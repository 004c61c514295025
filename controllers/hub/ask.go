// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"errors"
	"fmt"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// maxQuestions is hub.proto's: how many traces one agent is asked at a time.
const maxQuestions = 8

// questions are the traces of one session that are not answered yet.
type questions struct {
	last    uint64
	waiting map[uint64]chan *hubv1.TraceResult
}

func newQuestions() questions {
	return questions{waiting: map[uint64]chan *hubv1.TraceResult{}}
}

// Ask asks the node's agent what its kernel would do with f, which must be
// valid, and waits for the answer until ctx ends. An error that the agent
// itself met is in the answer. Nothing that is queued for the node waits for
// it.
func (h *Hub) Ask(ctx context.Context, nodeName string, f flow.Flow) (tracev1.Node, error) {
	id, s, answer, err := h.ask(nodeName, f)
	if err != nil {
		return tracev1.Node{}, err
	}
	select {
	case r, ok := <-answer:
		if !ok {
			return tracev1.Node{}, errors.New("the agent's session ended before it answered: ask again")
		}
		return r.Node(nodeName), nil
	case <-ctx.Done():
		n := h.node(nodeName)
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(s.questions.waiting, id)
		return tracev1.Node{}, fmt.Errorf("the agent has not answered: %w", ctx.Err())
	}
}

// ask queues the question. The answer is closed if the session ends.
func (h *Hub) ask(nodeName string, f flow.Flow) (uint64, *session, <-chan *hubv1.TraceResult, error) {
	n := h.node(nodeName)
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.session
	if s == nil {
		return 0, nil, nil, errors.New("no agent of this node is connected: see whether its Pod runs")
	}
	if len(s.questions.waiting) >= maxQuestions {
		return 0, nil, nil, fmt.Errorf("the agent is asked %d other questions: ask again", maxQuestions)
	}
	s.questions.last++
	answer := make(chan *hubv1.TraceResult, 1)
	s.questions.waiting[s.questions.last] = answer
	s.queue.trace(&hubv1.Trace{Id: s.questions.last, Flow: hubv1.FlowOf(f)})
	return s.questions.last, s, answer, nil
}

// end tells who waits that nothing will come. Questions after it would wait
// until their context ends.
func (q *questions) end() {
	for id, answer := range q.waiting {
		close(answer)
		delete(q.waiting, id)
	}
}

// answered passes r on to who asked. It returns an error if r is malformed.
func (h *Hub) answered(s *session, r *hubv1.TraceResult) error {
	if err := r.Validate(); err != nil {
		return err
	}
	s.node.mu.Lock()
	defer s.node.mu.Unlock()
	answer, ok := s.questions.waiting[r.GetId()]
	if !ok {
		return nil // whoever asked has gone
	}
	delete(s.questions.waiting, r.GetId())
	answer <- r
	return nil
}

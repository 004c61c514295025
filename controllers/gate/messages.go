// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/queue"
)

const (
	// messageInterval is how often one Pod's message is written at most.
	messageInterval = 10 * time.Second
	// messagesPerSecond is how many are written in all.
	messagesPerSecond = 20
	// patchTimeout bounds one write; retryAfter is when one that failed is
	// tried again, unless the Pod has changed by then.
	patchTimeout = 5 * time.Second
	retryAfter   = time.Second
)

// Message is what a Pod's condition is to say while its gate is shut.
type Message struct {
	UID             types.UID
	Namespace, Name string
	// ResourceVersion is the Pod's: a message about an older state than the
	// API server's is not written, as the gate may have opened meanwhile.
	ResourceVersion string
	// Generation is the Pod's metadata.generation.
	Generation int64
	// Current is the condition that the Pod has, or zero.
	Current corev1.PodCondition
	Reason  string
	Text    string
	// Urgent: a new reason is written without waiting for the Pod's turn.
	Urgent bool
}

// Writes what is awaited into the condition, as False. The admission policy
// policygate-status-writers forbids it everything else, True included.
// +kubebuilder:rbac:groups="",resources=pods/status,verbs=patch,roleName=policygate-manager

// StatusPatcher writes a strategic merge patch of a Pod's status.
type StatusPatcher interface {
	PatchStatus(ctx context.Context, namespace, name string, patch []byte) error
}

// Messages writes False and what is awaited into conditions. It keeps what is
// to be said on every replica, and writes it while Start runs, which is on the
// elected one. Namespaces take turns, with what is urgent as with what is not:
// however many Pods of one run into their timeouts, another's message waits
// for one of each.
type Messages struct {
	patcher       StatusPatcher
	warnings      *Warnings
	clock         clock.Clock
	log           logr.Logger
	conditionType corev1.PodConditionType
	limiter       *rate.Limiter
	told          chan struct{}

	// mu guards the following.
	mu sync.Mutex
	// slips has a slip for each Pod of which something is to be written or was
	// written, ready those whose turn may come, and later those whose Pod was
	// written too short a while ago.
	slips map[types.UID]*slip
	ready queue.Queue[*slip]
	later queue.Timers[*slip]
}

// slip is what is to be written of one Pod, and when it was written last.
type slip struct {
	queue.Timer
	// message is nil if nothing is to be written.
	message *Message
	// reason is what was attempted last, and again when the Pod may be written
	// next; zero if it was never.
	reason string
	again  time.Time
	// in says in which lanes of ready the slip is.
	in [queue.Lanes]bool
}

// due reports whether the slip's message may be written.
func (s *slip) due(now time.Time) bool {
	return !now.Before(s.again) || s.message.Urgent && s.reason != s.message.Reason
}

var _ Teller = (*Messages)(nil)

// NewMessages returns Messages that write through p.
func NewMessages(p StatusPatcher, w *Warnings, conditionType corev1.PodConditionType, clk clock.Clock, log logr.Logger) *Messages {
	return &Messages{
		patcher:       p,
		warnings:      w,
		clock:         clk,
		log:           log,
		conditionType: conditionType,
		limiter:       rate.NewLimiter(messagesPerSecond, messagesPerSecond),
		told:          make(chan struct{}, 1),
		slips:         map[types.UID]*slip{},
	}
}

// Tell implements Teller. A message that the Pod shows already is not written.
func (m *Messages) Tell(msg Message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := msg.Current
	if c.Status == corev1.ConditionFalse && c.Reason == msg.Reason && c.Message == msg.Text {
		m.hush(msg.UID)
		return
	}
	s := m.slips[msg.UID]
	if s == nil {
		s = &slip{}
		m.slips[msg.UID] = s
	}
	m.schedule(s, &msg)
	select {
	case m.told <- struct{}{}:
	default:
	}
}

// schedule makes msg what is to be written next of its Pod. The caller holds mu.
func (m *Messages) schedule(s *slip, msg *Message) {
	s.message = msg
	if !s.due(m.clock.Now()) {
		m.later.Set(s, s.again)
		return
	}
	m.later.Set(s, time.Time{})
	in := queue.Usual
	if msg.Urgent {
		in = queue.Urgent
	}
	if !s.in[in] {
		s.in[in] = true
		m.ready.Push(in, msg.Namespace, s)
	}
}

// Hush implements Teller.
func (m *Messages) Hush(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hush(uid)
}

// hush takes back what is to be written of uid. The caller holds mu.
func (m *Messages) hush(uid types.UID) {
	s := m.slips[uid]
	if s == nil {
		return
	}
	s.message = nil
	m.later.Set(s, time.Time{})
	if s.again.IsZero() {
		delete(m.slips, uid)
	}
}

// Forget implements Teller.
func (m *Messages) Forget(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hush(uid)
	delete(m.slips, uid)
}

// NeedLeaderElection reports true: one replica writes.
func (m *Messages) NeedLeaderElection() bool { return true }

// Start writes until ctx ends; it returns nil then.
func (m *Messages) Start(ctx context.Context) error {
	for ctx.Err() == nil {
		msg, wait := m.next(m.clock.Now())
		if msg != nil {
			m.write(ctx, *msg)
			continue
		}
		timer := m.clock.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-m.told:
		case <-timer.C():
		}
		timer.Stop()
	}
	return nil
}

// next takes the message that is to be written now. If there is none it
// returns when there may be, unless another is told before.
func (m *Messages) next(now time.Time) (*Message, time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s, ok := m.later.Pop(now); ok; s, ok = m.later.Pop(now) {
		m.schedule(s, s.message)
	}
	for !m.ready.Empty() {
		if m.limiter.TokensAt(now) < 1 {
			return nil, time.Second / messagesPerSecond
		}
		s, in, _ := m.ready.Pop()
		s.in[in] = false
		msg := s.message
		switch {
		case msg == nil: // taken back, or written from the other lane
			continue
		case !s.due(now): // replaced by one that is not as urgent
			m.later.Set(s, s.again)
			continue
		}
		m.limiter.AllowN(now, 1)
		s.message, s.reason, s.again = nil, msg.Reason, now.Add(messageInterval)
		return msg, 0
	}
	if due := m.later.Next(); !due.IsZero() {
		return nil, due.Sub(now)
	}
	return nil, messageInterval
}

// write patches one Pod. A Pod that is gone, or that has changed since msg was
// made, is left alone: its next event makes a new message.
func (m *Messages) write(ctx context.Context, msg Message) {
	ctx, cancel := context.WithTimeout(ctx, patchTimeout)
	defer cancel()
	now := m.clock.Now()
	patch, err := msg.patch(m.conditionType, now)
	if err == nil {
		err = m.patcher.PatchStatus(ctx, msg.Namespace, msg.Name, patch)
	}
	if err == nil {
		if msg.Reason == v1alpha1.ReasonTimeout && msg.Current.Reason != msg.Reason {
			m.warnings.Warn(Warning{
				Object: podReference(msg.UID, msg.Namespace, msg.Name), Reason: msg.Reason, Note: msg.Text,
			})
		}
		return
	}
	log := m.log.WithValues("pod", msg.Namespace+"/"+msg.Name, "reason", msg.Reason)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case apierrors.IsNotFound(err), apierrors.IsInvalid(err):
		// Deleted, or replaced by a Pod of the same name: its UID is wrong,
		// which answers 422.
		log.V(1).Info("pod to be written is gone", "error", err.Error())
		return
	case apierrors.IsConflict(err):
		log.V(1).Info("pod to be written has changed", "error", err.Error())
	default:
		log.Error(err, "condition could not be written")
	}
	s := m.slips[msg.UID]
	switch {
	case s == nil: // nobody waits for it any more
	case s.message != nil:
		// The event of what changed has already made it; nothing was written,
		// so it need not wait.
		s.again = time.Time{}
		m.schedule(s, s.message)
	default:
		s.again = now.Add(retryAfter)
		m.schedule(s, &msg)
	}
}

// patch returns the strategic merge patch of m, with the Pod's UID and
// resourceVersion as preconditions.
func (m Message) patch(conditionType corev1.PodConditionType, now time.Time) ([]byte, error) {
	condition := corev1.PodCondition{
		Type:               conditionType,
		Status:             corev1.ConditionFalse,
		ObservedGeneration: m.Generation,
		Reason:             m.Reason,
		Message:            m.Text,
		LastTransitionTime: m.Current.LastTransitionTime,
	}
	if m.Current.Status != corev1.ConditionFalse {
		condition.LastTransitionTime = metav1.NewTime(now)
	}
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": m.UID, "resourceVersion": m.ResourceVersion},
		"status":   map[string]any{"conditions": []corev1.PodCondition{condition}},
	})
	if err != nil {
		return nil, fmt.Errorf("encode patch of pod %s/%s: %w", m.Namespace, m.Name, err)
	}
	return body, nil
}

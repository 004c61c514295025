// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Audience is what a token must be issued for. A token for the API server
// does not open a session, and an agent's hub token is of no use there.
const Audience = "policygate-hub"

// nodeNameExtra is where a TokenReview tells the node of the Pod that a token
// is bound to, since Kubernetes 1.30.
const nodeNameExtra = "authentication.kubernetes.io/node-name"

const (
	// maxReviews bounds the reviews in flight, so that a cluster's worth of
	// agents that connect at once does not flood the API server.
	maxReviews = 16
	// reviewTimeout bounds one review.
	reviewTimeout = 10 * time.Second
)

// Identity is what a token proves.
type Identity struct {
	// Node is the node that the agent runs on.
	Node string
	// Expires is when the token does, or zero if that cannot be known.
	Expires time.Time
}

// Reviewer proves identities.
type Reviewer interface {
	// Review returns whose token it is. The error is a *RefusedError if the
	// token does not prove an agent's identity, and another if that could not
	// be found out.
	Review(ctx context.Context, token string) (Identity, error)
}

// RefusedError says why a token opens no session.
type RefusedError struct {
	// Reason is fit for the agent to read.
	Reason string
}

// Error returns the reason.
func (e *RefusedError) Error() string { return e.Reason }

// Learns an agent's node from its token.
// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create,roleName=policygate-manager

// TokenReviews is the part of a Kubernetes client that reviews need.
type TokenReviews interface {
	Create(ctx context.Context, review *authenticationv1.TokenReview, opts metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

// NewTokenReviewer returns a Reviewer that asks the API server each time and
// accepts username alone, such as
// "system:serviceaccount:policygate-system:policygate-agent".
func NewTokenReviewer(client TokenReviews, username string) Reviewer {
	return &tokenReviewer{client: client, username: username, slots: make(chan struct{}, maxReviews)}
}

type tokenReviewer struct {
	client   TokenReviews
	username string
	slots    chan struct{}
}

func (r *tokenReviewer) Review(ctx context.Context, token string) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return Identity{}, fmt.Errorf("wait for a token review: %w", ctx.Err())
	}
	review, err := r.client.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return Identity{}, fmt.Errorf("create token review: %w", err)
	}
	node, err := nodeOf(review.Status, r.username)
	if err != nil {
		return Identity{}, err
	}
	return Identity{Node: node, Expires: expiry(token)}, nil
}

// nodeOf returns the node that a reviewed token speaks for, or a
// *RefusedError.
func nodeOf(s authenticationv1.TokenReviewStatus, username string) (string, error) {
	switch {
	case !s.Authenticated:
		return "", &RefusedError{Reason: "the token is not valid for the audience " + Audience}
	case !slices.Contains(s.Audiences, Audience):
		// An authenticator that ignores audiences returns none.
		return "", &RefusedError{Reason: "the token was not reviewed for the audience " + Audience}
	case s.User.Username != username:
		return "", &RefusedError{Reason: fmt.Sprintf("the token is of %q: want %q", s.User.Username, username)}
	}
	nodes := s.User.Extra[nodeNameExtra]
	if len(nodes) != 1 || nodes[0] == "" {
		return "", &RefusedError{Reason: "the token names no node: want one bound to a Pod, of Kubernetes 1.30 or newer"}
	}
	return nodes[0], nil
}

// expiry returns the exp claim of a JSON web token without verifying it: the
// review did. It returns zero for any other token.
func expiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	var claims struct {
		Expires float64 `json:"exp"`
	}
	if json.Unmarshal(payload, &claims) != nil || claims.Expires <= 0 || claims.Expires > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(claims.Expires), 0)
}

// bearerToken returns the token of an authorization header.
func bearerToken(headers []string) (string, error) {
	if len(headers) != 1 {
		return "", fmt.Errorf("%d authorization headers: want one", len(headers))
	}
	scheme, token, ok := strings.Cut(headers[0], " ")
	token = strings.TrimSpace(token)
	if !ok || !strings.EqualFold(scheme, "bearer") || token == "" {
		return "", errors.New("authorization header: want \"Bearer \" and a token")
	}
	return token, nil
}

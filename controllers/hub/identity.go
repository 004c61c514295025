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
	"strconv"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// Audience is what a token must be issued for. A token for the API server
// does not open a session, and an agent's hub token is of no use there.
const Audience = "policygate-hub"

// podNameExtra and nodeNameExtra are where a TokenReview tells the Pod that a
// token is bound to, and that Pod's node; the latter since Kubernetes 1.30.
const (
	podNameExtra  = "authentication.kubernetes.io/pod-name"
	nodeNameExtra = "authentication.kubernetes.io/node-name"
)

const (
	// maxReviews bounds the reviews in flight, so that a cluster's worth of
	// agents that connect at once does not flood the API server.
	maxReviews = 16
	// reviewTimeout bounds one review with the wait for its turn.
	reviewTimeout = 10 * time.Second
	// maxSkew is how far this replica's clock may be ahead of the API server's:
	// a token that has expired for longer is not reviewed. A clock that is an
	// hour ahead, as by a wrong zone, must not lock all agents out.
	maxSkew = 90 * time.Minute
)

// Identity is what a token proves.
type Identity struct {
	// Node is the node that the agent runs on, or hubv1.Northbound.
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
	// unreviewed: nobody was asked.
	unreviewed bool
}

// Error returns the reason.
func (e *RefusedError) Error() string { return e.Reason }

// Learns an agent's node from its token.
// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create,roleName=policygate-manager

// TokenReviews is the part of a Kubernetes client that reviews need.
type TokenReviews interface {
	Create(ctx context.Context, review *authenticationv1.TokenReview, opts metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

// Accounts are the users whose tokens open sessions, such as
// "system:serviceaccount:policygate-system:policygate-agent". They differ.
type Accounts struct {
	// Agent is that of the nodes' agents: each is its own node and no other.
	Agent string
	// Northbound is that of OVN's northbound database: it is hubv1.Northbound,
	// on whichever node it runs, and never a node. Empty: there is none.
	Northbound string
}

// NewTokenReviewer returns a Reviewer that accepts these accounts alone. It asks
// the API server each time, but for a token that says of itself that it is of
// another account, not for the hub, or long expired. It does not bound how many
// it asks for at a time.
func NewTokenReviewer(client TokenReviews, accounts Accounts) Reviewer {
	return &tokenReviewer{client: client, accounts: accounts, clock: clock.RealClock{}}
}

type tokenReviewer struct {
	client   TokenReviews
	accounts Accounts
	clock    clock.PassiveClock
}

func (r *tokenReviewer) Review(ctx context.Context, token string) (Identity, error) {
	told, err := claimsOf(token)
	if err == nil {
		err = told.plausible(r.accounts, r.clock.Now())
	}
	if err != nil {
		return Identity{}, &RefusedError{Reason: err.Error(), unreviewed: true}
	}
	review, err := r.client.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return Identity{}, fmt.Errorf("create token review: %w", err)
	}
	node, err := r.accounts.nodeOf(review.Status)
	if err != nil {
		return Identity{}, err
	}
	return Identity{Node: node, Expires: told.expires()}, nil
}

// nodeOf returns the node that a reviewed token speaks for, or
// hubv1.Northbound; else a *RefusedError. The account alone tells which.
func (a Accounts) nodeOf(s authenticationv1.TokenReviewStatus) (string, error) {
	switch {
	case !s.Authenticated:
		return "", &RefusedError{Reason: "the token is not valid for the audience " + Audience}
	case !slices.Contains(s.Audiences, Audience):
		// An authenticator that ignores audiences returns none.
		return "", &RefusedError{Reason: "the token was not reviewed for the audience " + Audience}
	case a.Northbound != "" && s.User.Username == a.Northbound:
		if pods := s.User.Extra[podNameExtra]; len(pods) != 1 || pods[0] == "" {
			return "", &RefusedError{Reason: "the token names no Pod: want one that is bound to one, and ends with it"}
		}
		return hubv1.Northbound, nil
	case s.User.Username != a.Agent:
		return "", &RefusedError{Reason: fmt.Sprintf("the token is of %q: want %s", s.User.Username, a)}
	}
	nodes := s.User.Extra[nodeNameExtra]
	if len(nodes) != 1 || nodes[0] == "" {
		return "", &RefusedError{Reason: "the token names no node: want one bound to a Pod, of Kubernetes 1.30 or newer"}
	}
	if nodes[0] == hubv1.Northbound {
		return "", &RefusedError{Reason: fmt.Sprintf("the token names node %q, which is no node's name", nodes[0])}
	}
	return nodes[0], nil
}

// String names those who are accepted.
func (a Accounts) String() string {
	if a.Northbound == "" {
		return strconv.Quote(a.Agent)
	}
	return strconv.Quote(a.Agent) + " or " + strconv.Quote(a.Northbound)
}

// claims are what a token says of itself, which proves nothing before it was
// reviewed.
type claims struct {
	Subject  string    `json:"sub"`
	Audience audiences `json:"aud"`
	Expires  float64   `json:"exp"`
}

// audiences are one or several.
type audiences []string

// UnmarshalJSON implements json.Unmarshaler: the claim is a string or a list.
func (a *audiences) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// claimsOf returns the claims of a token. The error says what keeps it from
// being a ServiceAccount's, and nothing of what it holds.
func claimsOf(token string) (claims, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return claims{}, fmt.Errorf("the token has %d parts: want a JSON web token of three", len(parts))
	}
	for i, part := range parts {
		if part == "" {
			return claims{}, fmt.Errorf("part %d of the token is empty", i+1)
		}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return claims{}, errors.New("the token's claims are no base64url")
	}
	var c claims
	if err := json.Unmarshal(payload, &c); err != nil {
		return claims{}, errors.New("the token's claims are no JSON, or of other types than a ServiceAccount's")
	}
	return c, nil
}

// plausible returns an error if a review could not but refuse the token.
func (c claims) plausible(accounts Accounts, now time.Time) error {
	expires := c.expires()
	switch {
	case !slices.Contains(c.Audience, Audience):
		return errors.New("the token is not for the audience " + Audience)
	case c.Subject == "" || c.Subject != accounts.Agent && c.Subject != accounts.Northbound:
		return fmt.Errorf("the token is not of %s", accounts)
	case !expires.IsZero() && now.Sub(expires) > maxSkew:
		return errors.New("the token expired at " + expires.UTC().Format(time.RFC3339))
	}
	return nil
}

// expires returns when the token does, or zero if it does not say so.
func (c claims) expires() time.Time {
	if c.Expires <= 0 || c.Expires > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(c.Expires), 0)
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

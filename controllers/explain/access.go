// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// Asks the manager for a trace. There is no such object: the manager asks by a
// SubjectAccessReview whether the user of a token has this right.
// +kubebuilder:rbac:groups=policygate.io,resources=traces,verbs=create,roleName=policygate-tracer

// Asks the manager why a Pod is held. The answer has rules, too, but only of the
// connections that hold this Pod.
// +kubebuilder:rbac:groups=policygate.io,resources=explanations,verbs=create,roleName=policygate-explainer

// Asks the manager what it sees of the installation: nodes, their agents and
// dataplanes, and names of Pods without a gate. It has no rules.
// +kubebuilder:rbac:groups=policygate.io,resources=diagnoses,verbs=create,roleName=policygate-doctor

// What a user must be allowed to do: create one of the resources, each of which
// stands for a question. There are no such resources: they exist for roles to
// name.
const (
	accessVerb  = "create"
	accessGroup = "policygate.io"

	traces       = "traces"
	explanations = "explanations"
	diagnoses    = "diagnoses"
)

// Learns who asks by kubectl policygate.
// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create,roleName=policygate-manager

// Learns whether who asks may.
// +kubebuilder:rbac:groups=authorization.k8s.io,resources=subjectaccessreviews,verbs=create,roleName=policygate-manager

// TokenReviews is the part of a Kubernetes client that says whose a token is.
type TokenReviews interface {
	Create(ctx context.Context, review *authenticationv1.TokenReview, opts metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

// AccessReviews is the part of a Kubernetes client that says what a user may.
type AccessReviews interface {
	Create(ctx context.Context, review *authorizationv1.SubjectAccessReview, opts metav1.CreateOptions) (*authorizationv1.SubjectAccessReview, error)
}

// refusedError says why somebody may not ask.
type refusedError struct {
	// status is 401 if it is not known who asks, 403 if it is.
	status int
	// reason is fit for who asked. It holds no token.
	reason string
}

func (e *refusedError) Error() string { return e.reason }

// access decides who may ask.
type access struct {
	tokens  TokenReviews
	reviews AccessReviews
}

// admit returns the name of the user whose token the request carries and who
// may create the resource. The error is a *refusedError if that user may not,
// and another if it could not be found out.
func (a access) admit(ctx context.Context, header http.Header, resource string) (string, error) {
	token, err := bearerToken(header.Values("Authorization"))
	if err != nil {
		return "", err
	}
	review, err := a.tokens.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{tracev1.Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("create token review: %w", err)
	}
	// An authenticator that ignores audiences returns none.
	if !review.Status.Authenticated || !slices.Contains(review.Status.Audiences, tracev1.Audience) {
		return "", &refusedError{http.StatusUnauthorized, "the token is not valid for the audience " + tracev1.Audience}
	}
	user := review.Status.User
	allowed, err := a.reviews.Create(ctx, accessReview(user, resource), metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("create subject access review: %w", err)
	}
	if !allowed.Status.Allowed || allowed.Status.Denied {
		reason := fmt.Sprintf("%q may not %s %s.%s", user.Username, accessVerb, resource, accessGroup)
		if allowed.Status.Reason != "" {
			reason += ": " + allowed.Status.Reason
		}
		return "", &refusedError{http.StatusForbidden, reason}
	}
	return user.Username, nil
}

// accessReview asks whether the user may create the resource.
func accessReview(user authenticationv1.UserInfo, resource string) *authorizationv1.SubjectAccessReview {
	extra := make(map[string]authorizationv1.ExtraValue, len(user.Extra))
	for key, values := range user.Extra {
		extra[key] = authorizationv1.ExtraValue(values)
	}
	return &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: accessVerb, Group: accessGroup, Resource: resource,
		},
	}}
}

// bearerToken returns the token of the authorization header.
func bearerToken(headers []string) (string, error) {
	if len(headers) == 1 {
		scheme, token, ok := strings.Cut(headers[0], " ")
		if token = strings.TrimSpace(token); ok && strings.EqualFold(scheme, "bearer") && token != "" {
			return token, nil
		}
	}
	return "", &refusedError{http.StatusUnauthorized, `want one authorization header with "Bearer " and a token`}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
)

func TestNodeOf(t *testing.T) {
	valid := func(change func(*authenticationv1.TokenReviewStatus)) authenticationv1.TokenReviewStatus {
		s := authenticationv1.TokenReviewStatus{
			Authenticated: true,
			Audiences:     []string{Audience},
			User: authenticationv1.UserInfo{
				Username: agentUser,
				Extra:    map[string]authenticationv1.ExtraValue{nodeNameExtra: {"n1"}},
			},
		}
		change(&s)
		return s
	}
	cases := map[string]struct {
		status  authenticationv1.TokenReviewStatus
		want    string
		wantErr string
	}{
		"an agent's token speaks for its node": {
			status: valid(func(*authenticationv1.TokenReviewStatus) {}),
			want:   "n1",
		},
		"a token that is not authenticated is refused": {
			status:  valid(func(s *authenticationv1.TokenReviewStatus) { s.Authenticated = false }),
			wantErr: "not valid",
		},
		"a review that ignored the audience is refused": {
			status:  valid(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil }),
			wantErr: "not reviewed for the audience",
		},
		"another ServiceAccount is refused": {
			status:  valid(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:db:default" }),
			wantErr: `"system:serviceaccount:db:default"`,
		},
		"a token that is not bound to a Pod is refused": {
			status:  valid(func(s *authenticationv1.TokenReviewStatus) { s.User.Extra = nil }),
			wantErr: "names no node",
		},
		"a token of two nodes is refused": {
			status: valid(func(s *authenticationv1.TokenReviewStatus) {
				s.User.Extra[nodeNameExtra] = authenticationv1.ExtraValue{"n1", "n2"}
			}),
			wantErr: "names no node",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := nodeOf(tc.status, agentUser)
			if got != tc.want {
				t.Errorf("node = %q, want %q", got, tc.want)
			}
			if tc.wantErr == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("error = %v, want one with %q", err, tc.wantErr)
			}
		})
	}
}

func TestExpiry(t *testing.T) {
	jwt := func(claims string) string {
		return "h." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".s"
	}
	cases := map[string]struct {
		token string
		want  time.Time
	}{
		"a claim is read":                   {jwt(`{"exp":1600}`), time.Unix(1600, 0)},
		"no claim is no expiry":             {jwt(`{}`), time.Time{}},
		"a claim of another type is none":   {jwt(`{"exp":"soon"}`), time.Time{}},
		"a negative claim is none":          {jwt(`{"exp":-1}`), time.Time{}},
		"a claim out of all range is none":  {jwt(`{"exp":1e300}`), time.Time{}},
		"a token that is no JWT has none":   {"opaque", time.Time{}},
		"a payload that is no JSON is none": {"h.!.s", time.Time{}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if got := expiry(tc.token); !got.Equal(tc.want) {
				t.Errorf("expiry = %v, want %v", got, tc.want)
			}
		})
	}
}

func FuzzExpiry(f *testing.F) {
	f.Add("h.e30.s")
	f.Add("...")
	f.Fuzz(func(t *testing.T, token string) {
		if e := expiry(token); !e.IsZero() && e.Unix() < 0 {
			t.Errorf("expiry of %q is %v", token, e)
		}
	})
}

func TestBearerToken(t *testing.T) {
	cases := map[string]struct {
		headers []string
		want    string
		wantErr bool
	}{
		"a bearer token is read":       {[]string{"Bearer abc"}, "abc", false},
		"the scheme's case is ignored": {[]string{"bearer abc"}, "abc", false},
		"no header is an error":        {nil, "", true},
		"two headers are an error":     {[]string{"Bearer a", "Bearer b"}, "", true},
		"another scheme is an error":   {[]string{"Basic abc"}, "", true},
		"an empty token is an error":   {[]string{"Bearer "}, "", true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := bearerToken(tc.headers)
			if got != tc.want || (err != nil) != tc.wantErr {
				t.Errorf("got %q, %v; want %q, error %v", got, err, tc.want, tc.wantErr)
			}
		})
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

func TestNodeOf(t *testing.T) {
	both := Accounts{Agent: agentUser, Northbound: northboundUser}
	alone := Accounts{Agent: agentUser}
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
	northbound := func(change func(*authenticationv1.TokenReviewStatus)) authenticationv1.TokenReviewStatus {
		return valid(func(s *authenticationv1.TokenReviewStatus) {
			s.User.Username = northboundUser
			s.User.Extra[podNameExtra] = authenticationv1.ExtraValue{"policygate-northbound-x"}
			change(s)
		})
	}
	cases := map[string]struct {
		status authenticationv1.TokenReviewStatus
		// alone: there is no northbound account.
		alone   bool
		want    string
		wantErr string
	}{
		"the northbound account's token speaks for the database, not for its node": {
			status: northbound(func(*authenticationv1.TokenReviewStatus) {}),
			want:   hubv1.Northbound,
		},
		"and from a Pod on no node, too": {
			status: northbound(func(s *authenticationv1.TokenReviewStatus) { delete(s.User.Extra, nodeNameExtra) }),
			want:   hubv1.Northbound,
		},
		"without Kube-OVN it is refused": {
			status: northbound(func(*authenticationv1.TokenReviewStatus) {}), alone: true,
			wantErr: `want "` + agentUser + `"`,
		},
		"the northbound account's token that is not bound to a Pod is refused": {
			status:  northbound(func(s *authenticationv1.TokenReviewStatus) { delete(s.User.Extra, podNameExtra) }),
			wantErr: "names no Pod",
		},
		"one that is not authenticated is refused": {
			status:  northbound(func(s *authenticationv1.TokenReviewStatus) { s.Authenticated = false }),
			wantErr: "not valid",
		},
		"one that was not reviewed for the audience is refused": {
			status:  northbound(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil }),
			wantErr: "not reviewed for the audience",
		},
		"an agent's token of a node of the database's name is refused": {
			status: valid(func(s *authenticationv1.TokenReviewStatus) {
				s.User.Extra[nodeNameExtra] = authenticationv1.ExtraValue{hubv1.Northbound}
			}),
			wantErr: "is no node's name",
		},
		"and without Kube-OVN as well": {
			status: valid(func(s *authenticationv1.TokenReviewStatus) {
				s.User.Extra[nodeNameExtra] = authenticationv1.ExtraValue{hubv1.Northbound}
			}),
			alone:   true,
			wantErr: "is no node's name",
		},
		"a token of nobody is refused without a northbound account": {
			status:  valid(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "" }),
			alone:   true,
			wantErr: `the token is of ""`,
		},
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
			accounts := both
			if tc.alone {
				accounts = alone
			}
			got, err := accounts.nodeOf(tc.status)
			if got != tc.want {
				t.Errorf("node = %q, want %q", got, tc.want)
			}
			if tc.wantErr == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("error = %v, want one with %q", err, tc.wantErr)
			}
		})
	}
}

func TestWhatIsNotReviewed(t *testing.T) {
	const now = 10_000
	jwt := func(claims string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".s"
	}
	of := func(subject, more string) string { return jwt(`{"sub":"` + subject + `"` + more + `}`) }
	const hub = `,"aud":["policygate-hub"]`
	cases := map[string]struct {
		token string
		// northbound is the account of that, if there is one.
		northbound string
		// want is part of the error, empty if there is none.
		want    string
		expires time.Time
	}{
		"the northbound account's is":               {token: of(northboundUser, hub), northbound: northboundUser},
		"the northbound account's without Kube-OVN": {token: of(northboundUser, hub), want: `not of "` + agentUser + `"`},
		"another's with Kube-OVN":                   {token: of("system:serviceaccount:db:default", hub), northbound: northboundUser, want: `not of "` + agentUser + `" or "` + northboundUser},
		"an agent's token is":                       {token: of(agentUser, hub+`,"exp":1e4`), expires: time.Unix(now, 0)},
		"one for the hub alone, not in a list":      {token: of(agentUser, `,"aud":"policygate-hub"`)},
		"one for the hub and others":                {token: of(agentUser, `,"aud":["x","policygate-hub"]`)},
		"one that does not expire is":               {token: of(agentUser, hub)},
		"one that has expired a minute ago is":      {token: of(agentUser, hub+`,"exp":9940`), expires: time.Unix(9940, 0)},
		"one that expires out of all range is":      {token: of(agentUser, hub+`,"exp":1e300`)},
		"one that has expired an hour ago is":       {token: of(agentUser, hub+`,"exp":6400`), expires: time.Unix(6400, 0)},
		"one that has expired for longer":           {token: of(agentUser, hub+`,"exp":4599`), want: "the token expired at 1970-01-01T01:16:39Z"},
		"one for the API server":                    {token: of(agentUser, `,"aud":["https://kubernetes.default.svc"]`), want: "not for the audience policygate-hub"},
		"one for nobody":                            {token: of(agentUser, ``), want: "not for the audience"},
		"one of another ServiceAccount":             {token: of("system:serviceaccount:db:default", hub), want: `not of "` + agentUser},
		"one of nobody":                             {token: jwt(`{"aud":"policygate-hub"}`), want: "not of"},
		"one whose expiry is no number":             {token: of(agentUser, hub+`,"exp":"soon"`), want: "are no JSON, or of other types"},
		"one whose audience is no text":             {token: of(agentUser, `,"aud":7`), want: "are no JSON, or of other types"},
		"a word":                                    {token: "opaque", want: "the token has 1 parts"},
		"one without a signature":                   {token: "e30.e30.", want: "part 3 of the token is empty"},
		"one of dots":                               {token: "..", want: "part 1 of the token is empty"},
		"one of four parts":                         {token: "a.b.c.d", want: "the token has 4 parts"},
		"one whose claims are not encoded":          {token: "h.!.s", want: "no base64url"},
		"one whose claims are no JSON":              {token: jwt("x"), want: "are no JSON"},
		"one whose claims go on behind their end":   {token: jwt(`{"sub":"` + agentUser + `"` + hub + `}{}`), want: "are no JSON"},
		"one whose claims are a list of the right":  {token: jwt(`[{"sub":"` + agentUser + `"` + hub + `}]`), want: "are no JSON"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			told, err := claimsOf(tc.token)
			if err == nil {
				err = told.plausible(Accounts{Agent: agentUser, Northbound: tc.northbound}, time.Unix(now, 0))
			}
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("error %v, want none", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error %v, want one with %q", err, tc.want)
			case tc.want == "" && !told.expires().Equal(tc.expires):
				t.Errorf("expires %v, want %v", told.expires(), tc.expires)
			}
		})
	}
}

func FuzzClaims(f *testing.F) {
	f.Add("h.e30.s", int64(0))
	f.Add("...", int64(0))
	f.Add(claiming("", "s"), int64(1))
	f.Add(claiming(`,"exp":1600`, "s"), int64(2000))
	f.Fuzz(func(t *testing.T, token string, now int64) {
		told, err := claimsOf(token)
		if err != nil {
			return
		}
		expires := told.expires()
		if !expires.IsZero() && expires.Unix() < 0 {
			t.Errorf("%q expires at %v", token, expires)
		}
		at := time.Unix(now, 0)
		if told.plausible(Accounts{Agent: agentUser}, at) != nil {
			return
		}
		if strings.Count(token, ".") != 2 || told.Subject != agentUser || !slices.Contains(told.Audience, Audience) {
			t.Errorf("%q is plausible: %v", token, told)
		}
		if !expires.IsZero() && at.Sub(expires) > maxSkew {
			t.Errorf("%q is plausible at %v and expired at %v", token, at, expires)
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

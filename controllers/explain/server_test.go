// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	clocktesting "k8s.io/utils/clock/testing"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
	"github.com/policygate/policygate/api/flow"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
	"github.com/policygate/policygate/api/v1alpha1"
)

// apiServer is a clientset that knows the tokens of three users, each of whom
// may ask one thing: "good" is of a tracer, "explainer" and "doctor" of those.
// "other" is of somebody without a right; "deaf" is reviewed by something that
// ignores audiences, and "down" by nobody.
func apiServer() *fake.Clientset {
	client := fake.NewClientset()
	client.PrependReactor("create", "tokenreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
		review := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview).DeepCopy()
		user := authenticationv1.UserInfo{UID: "u", Groups: []string{"g"}, Extra: map[string]authenticationv1.ExtraValue{"e": {"v"}}}
		switch review.Spec.Token {
		case "down":
			return true, nil, errors.New("down")
		case "good":
			user.Username = "tracer"
		case "other", "deaf", "explainer", "doctor":
			user.Username = review.Spec.Token
		default:
			return true, review, nil
		}
		review.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: user, Audiences: review.Spec.Audiences}
		if review.Spec.Token == "deaf" {
			review.Status.Audiences = nil
		}
		return true, review, nil
	})
	client.PrependReactor("create", "subjectaccessreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
		review := action.(clienttesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview).DeepCopy()
		want := authorizationv1.SubjectAccessReviewSpec{
			User: review.Spec.User, UID: "u", Groups: []string{"g"}, Extra: map[string]authorizationv1.ExtraValue{"e": {"v"}},
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Verb: "create", Group: "policygate.io",
				Resource: map[string]string{"tracer": "traces", "explainer": "explanations", "doctor": "diagnoses"}[review.Spec.User],
			},
		}
		review.Status.Allowed = cmp.Equal(want, review.Spec)
		if !review.Status.Allowed {
			review.Status.Reason = "no role allows it"
		}
		return true, review, nil
	})
	return client
}

// agents answers for n1; no other node has one.
type agents struct{}

func (agents) Ask(_ context.Context, name string, f flow.Flow) (tracev1.Node, error) {
	if name != "n1" {
		return tracev1.Node{}, errors.New("no agent of this node is connected")
	}
	return tracev1.NewNode(name, []tracev1.Hop{{Way: "forwarded", Routed: true, Verdict: tracev1.Allowed, Reason: f.String()}}), nil
}

// served is a Server that runs, and what it has logged.
type served struct {
	url  string
	http *http.Client

	mu  sync.Mutex
	log strings.Builder
}

func serve(t *testing.T) *served {
	t.Helper()
	certificate, roots := selfSigned(t)
	s := &served{http: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "manager", MinVersion: tls.VersionTLS13},
	}}}
	client := apiServer()
	server := New(Options{
		Address:        "127.0.0.1:0",
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil },
		TokenReviews:   client.AuthenticationV1().TokenReviews(),
		AccessReviews:  client.AuthorizationV1().SubjectAccessReviews(),
		Cluster:        shop(), Agents: agents{}, Accounts: ledger{}, Inventory: inventory{}, Sessions: sessions{}, Ungated: ungated{},
		ConditionType: v1alpha1.ConditionProgrammed, Version: "v1.2.3", Clock: clocktesting.NewFakePassiveClock(noon()),
		Log: funcr.New(func(prefix, args string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.log.WriteString(prefix + args + "\n")
		}, funcr.Options{Verbosity: 5}),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Start(ctx) }()
	t.Cleanup(func() {
		s.http.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Start: %v", err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); server.Addr() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server does not listen")
		}
	}
	s.url = "https://" + server.Addr().String()
	return s
}

// post returns the status and the body that are answered.
func (s *served) post(t *testing.T, path, authorization, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	response, err := s.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

const goodQuestion = `{"source":"shop/client","destination":"shop/mysql","port":3306,"protocol":"tcp","family":"ipv4"}`

func TestAQuestionIsAnswered(t *testing.T) {
	s := serve(t)
	status, body := s.post(t, tracev1.Path, "Bearer good", goodQuestion)
	var got tracev1.Answer
	if err := json.Unmarshal([]byte(body), &got); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	want := tracev1.Answer{Verdict: tracev1.Inconclusive, Flows: []tracev1.Flow{{
		Protocol: "tcp", Source: "10.0.1.5", Destination: "10.0.2.7", Port: 3306,
		SourceName: "Pod shop/client", DestinationName: "Pod shop/mysql", Verdict: tracev1.Inconclusive,
		Nodes: []tracev1.Node{
			{
				Name: "n1", Verdict: tracev1.Allowed, Reason: "tcp 10.0.1.5 -> 10.0.2.7:3306",
				Hops: []tracev1.Hop{{Way: "forwarded", Routed: true, Verdict: tracev1.Allowed, Reason: "tcp 10.0.1.5 -> 10.0.2.7:3306"}},
			},
			{Name: "n2", Verdict: tracev1.Inconclusive, Error: "no agent of this node is connected"},
		},
	}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if log := s.log.String(); !strings.Contains(log, `"user"="tracer"`) || strings.Contains(log, "good") {
		t.Errorf("the log is to name the user and never the token:\n%s", log)
	}
}

func TestQuestionsThatAreNotAnswered(t *testing.T) {
	s := serve(t)
	for name, tc := range map[string]struct {
		authorization, body string
		status              int
		reason              string
	}{
		"no token":                  {"", goodQuestion, 401, "want one authorization header"},
		"another scheme":            {"Basic good", goodQuestion, 401, "want one authorization header"},
		"a token that is not valid": {"Bearer forged", goodQuestion, 401, "not valid for the audience policygate-trace"},
		"a token reviewed without regard to audiences": {"Bearer deaf", goodQuestion, 401, "not valid for the audience"},
		"a user without the right":                     {"Bearer other", goodQuestion, 403, `"other" may not create traces.policygate.io: no role allows it`},
		"an API server that does not answer":           {"Bearer down", goodQuestion, 503, "could not say who may ask"},
		"no JSON":                                      {"Bearer good", "x", 400, "read the question"},
		"a field that is not known":                    {"Bearer good", `{"sourcePort":1}`, 400, "sourcePort"},
		"fields that are not usable":                   {"Bearer good", `{"source":"x"}`, 400, `source "x"`},
		"more than a question":                         {"Bearer good", `{"source":"` + strings.Repeat("x", 5000) + `"}`, 413, "too large"},
		"a Pod that does not exist":                    {"Bearer good", strings.Replace(goodQuestion, "mysql", "no", 1), 422, "there is no Pod no"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := s.post(t, tracev1.Path, tc.authorization, tc.body)
			var got tracev1.Failure
			if err := json.Unmarshal([]byte(body), &got); err != nil || status != tc.status || !strings.Contains(got.Error, tc.reason) {
				t.Errorf("%d %s (%v), want %d and %q", status, body, err, tc.status, tc.reason)
			}
			time.Sleep(time.Second / tracesPerSecond) // refill what this took of the rate
		})
	}
}

func TestQuestionsAreBoundedInRate(t *testing.T) {
	for path, burst := range map[string]int{
		tracev1.Path: traceBurst, explainv1.ExplainPath: othersBurst, explainv1.DoctorPath: othersBurst,
	} {
		t.Run(path, func(t *testing.T) {
			s := serve(t)
			for n := range 10 * traceBurst {
				if status, body := s.post(t, path, "", ""); status == http.StatusTooManyRequests {
					if n < burst || !strings.Contains(body, "ask again") {
						t.Errorf("request %d: %s, want the first %d to be let in", n, body, burst)
					}
					return
				}
			}
			t.Errorf("%d requests at once and none was refused", 10*traceBurst)
		})
	}
}

func TestOnlyQuestionsAreServed(t *testing.T) {
	s := serve(t)
	for path, want := range map[string]int{
		tracev1.Path: http.StatusMethodNotAllowed, explainv1.ExplainPath: http.StatusMethodNotAllowed,
		explainv1.DoctorPath: http.StatusMethodNotAllowed, "/debug/pprof/": http.StatusNotFound,
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := s.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("GET %s: %d, want %d", path, response.StatusCode, want)
		}
	}
}

// Who may ask one thing may not ask the others.
func TestEachQuestionHasItsRight(t *testing.T) {
	s := serve(t)
	questions := map[string]string{
		tracev1.Path: goodQuestion, explainv1.ExplainPath: `{"namespace":"shop","pod":"client"}`, explainv1.DoctorPath: "{}",
	}
	resources := map[string]string{tracev1.Path: "traces", explainv1.ExplainPath: "explanations", explainv1.DoctorPath: "diagnoses"}
	for token, own := range map[string]string{"good": tracev1.Path, "explainer": explainv1.ExplainPath, "doctor": explainv1.DoctorPath} {
		for path, question := range questions {
			status, body := s.post(t, path, "Bearer "+token, question)
			if path == own {
				if status != http.StatusOK {
					t.Errorf("%s asks %s: %d %s", token, path, status, body)
				}
				continue
			}
			if want := "may not create " + resources[path] + ".policygate.io"; status != http.StatusForbidden || !strings.Contains(body, want) {
				t.Errorf("%s asks %s: %d %s, want 403 and %q", token, path, status, body, want)
			}
		}
	}
}

func TestStartSaysWhereItCannotListen(t *testing.T) {
	err := New(Options{Address: "192.0.2.1:1"}).Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), `"192.0.2.1:1"`) {
		t.Errorf("error %v, want one that names the address", err)
	}
}

// FuzzQuestion: whatever is sent becomes a question that is usable, or an error.
func FuzzQuestion(f *testing.F) {
	f.Add([]byte(goodQuestion))
	f.Add([]byte(`{"source":"::ffff:1.2.3.4","destination":"a/b","port":1,"protocol":"UDP"}`))
	f.Add([]byte(`{"port":65536}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/trace", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		q, err := traceQuestion(nil, r)
		if err != nil {
			return
		}
		routes, err := resolve(t.Context(), nobody{}, q)
		for _, route := range routes {
			if problem := route.flow.Validate(); problem != nil {
				t.Errorf("%s: %v", body, problem)
			}
		}
		if why := (*unresolvableError)(nil); err != nil && !errors.As(err, &why) {
			t.Errorf("%s: %v", body, err)
		}
	})
}

// selfSigned returns a certificate for "manager".
func selfSigned(t *testing.T) (*tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"manager"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, roots
}

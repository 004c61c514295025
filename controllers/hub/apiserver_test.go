// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package hub

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/yaml"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/test/controlplane"
)

const (
	installed         = "policygate-system"
	agentAccount      = "policygate-agent"
	northboundAccount = "policygate-northbound"
)

// cluster is a real API server, of which agents have real tokens.
type cluster struct {
	t     *testing.T
	admin kubernetes.Interface
	// reviews are the manager's, with the rights that it is shipped with.
	reviews TokenReviews
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	config := controlplane.Start(t).Config
	admin, err := kubernetes.NewForConfig(config)
	must(t, err)
	asManager := rest.CopyConfig(config)
	asManager.Impersonate.UserName = "system:serviceaccount:" + installed + ":policygate-manager"
	manager, err := kubernetes.NewForConfig(asManager)
	must(t, err)
	c := &cluster{t: t, admin: admin, reviews: manager.AuthenticationV1().TokenReviews()}
	_, err = admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: installed}}, metav1.CreateOptions{})
	must(t, err)
	for _, name := range []string{agentAccount, northboundAccount, "another"} {
		_, err := admin.CoreV1().ServiceAccounts(installed).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		must(t, err)
	}
	for _, name := range []string{"a", "b"} {
		_, err := admin.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		must(t, err)
	}
	c.grant()
	// The API server learns of the role a moment later.
	within(t, "the manager may review tokens", func() bool {
		_, err := c.reviews.Create(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: "x"}}, metav1.CreateOptions{})
		return err == nil
	})
	return c
}

// grant gives the manager its cluster role.
func (c *cluster) grant() {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "config", "rbac", "manager_role.yaml"))
	must(c.t, err)
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var kind metav1.TypeMeta
		must(c.t, yaml.Unmarshal([]byte(document), &kind))
		switch kind.Kind {
		case "ClusterRole":
			var role rbacv1.ClusterRole
			must(c.t, yaml.UnmarshalStrict([]byte(document), &role))
			_, err = c.admin.RbacV1().ClusterRoles().Create(c.t.Context(), &role, metav1.CreateOptions{})
		case "ClusterRoleBinding":
			var binding rbacv1.ClusterRoleBinding
			must(c.t, yaml.UnmarshalStrict([]byte(document), &binding))
			_, err = c.admin.RbacV1().ClusterRoleBindings().Create(c.t.Context(), &binding, metav1.CreateOptions{})
		}
		must(c.t, err)
	}
}

// pod makes a Pod of the account on a node, or on none.
func (c *cluster) pod(name, account, node string) *authenticationv1.BoundObjectReference {
	c.t.Helper()
	pod, err := c.admin.CoreV1().Pods(installed).Create(c.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: account,
			Containers: []corev1.Container{{Name: "x", Image: "x"}},
		},
	}, metav1.CreateOptions{})
	must(c.t, err)
	return &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: name, UID: pod.UID}
}

// token returns a token of the account for audiences, none for the API
// server's own.
func (c *cluster) token(account string, bound *authenticationv1.BoundObjectReference, audiences ...string) string {
	c.t.Helper()
	r, err := c.admin.CoreV1().ServiceAccounts(installed).CreateToken(c.t.Context(), account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: audiences, BoundObjectRef: bound},
	}, metav1.CreateOptions{})
	must(c.t, err)
	return r.Status.Token
}

// altered returns the token with its claims changed and its signature kept.
func altered(t *testing.T, token string, change func(claims map[string]any)) string {
	t.Helper()
	parts := strings.Split(token, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	must(t, err)
	var claims map[string]any
	must(t, json.Unmarshal(payload, &claims))
	change(claims)
	payload, err = json.Marshal(claims)
	must(t, err)
	parts[1] = base64.RawURLEncoding.EncodeToString(payload)
	return strings.Join(parts, ".")
}

// attempt opens a session with exactly this token and says hello.
func (f *fixture) attempt(t *testing.T, token string) agent {
	t.Helper()
	a, conn, err := f.beside(t, "127.0.0.1", token)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	a.send(&hubv1.AgentMessage{Message: &hubv1.AgentMessage_Hello{Hello: &hubv1.Hello{Version: "b", BootId: "of-b"}}})
	return a
}

// askedServer counts the reviews that reach the API server.
type askedServer struct {
	TokenReviews
	times atomic.Int64
}

func (a *askedServer) Create(ctx context.Context, r *authenticationv1.TokenReview, o metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	a.times.Add(1)
	return a.TokenReviews.Create(ctx, r, o)
}

// TestAStolenToken tries all that whoever has stolen the token of node a's
// agent, or has less, can try at the hub.
func TestAStolenToken(t *testing.T) {
	c := newCluster(t)
	onA := c.pod("agent-a", agentAccount, "a")
	tokenOfA := c.token(agentAccount, onA, Audience)
	tokenOfB := c.token(agentAccount, c.pod("agent-b", agentAccount, "b"), Audience)
	counted := &askedServer{TokenReviews: c.reviews}
	clk := clocktesting.NewFakeClock(time.Now())
	f := serve(t, clk, counted)
	f.Assign("a", assign("of-a", 1), Description{})
	f.Assign("b", assign("of-b", 2), Description{})
	b := f.attempt(t, tokenOfB)
	generationOfB := b.expect("describe", "assign of-b", "synced")[0]
	const connectedB = `b connected boot=of-b unsupported=""`
	f.sink.await(t, connectedB)

	t.Run("tokens", func(t *testing.T) { c.refusesTokens(t, f, counted, tokenOfA, onA) })
	t.Run("transports", func(t *testing.T) { f.refusesTransports(t, counted, tokenOfA) })
	f.sink.await(t, connectedB)

	t.Run("with a's token nobody is b", func(t *testing.T) {
		const connectedA = `a connected boot=of-b unsupported=""`
		a := f.attempt(t, tokenOfA)
		before := a.expect("describe", "assign of-a", "synced")[0]
		t.Log("saying b in hello: is a's session all the same, and is assigned what is a's")
		for _, generation := range []uint64{generationOfB, before, generationOfB + 1, 2} {
			a.report(&hubv1.Report{Uid: "of-b", Generation: generation, Confirmed: true})
		}
		a.send(&hubv1.AgentMessage{Message: &hubv1.AgentMessage_TraceResult{TraceResult: &hubv1.TraceResult{Id: 1, Error: "b's"}}})
		a.report(&hubv1.Report{Uid: "of-a", Generation: before, Confirmed: true})
		f.sink.await(t, connectedB, connectedA, "a reported of-a generation=1 confirmed=true")
		t.Log("reports on b's Pod, under any generation, and answers to b's traces: dropped")

		newer := f.attempt(t, tokenOfA)
		newer.expect("describe", "assign of-a", "synced")
		if got := a.end(); got.Code() != codes.Aborted {
			t.Errorf("the first session of a ended with %v, want Aborted", got)
		}
		t.Log("a second session with a's token: ends a's first, and not b's")
		f.Assign("b", assign("of-b", 3), Description{})
		b.expect("assign of-b")
		f.sink.await(t, connectedB, connectedA, "a reported of-a generation=1 confirmed=true", "a disconnected", connectedA)

		must(t, c.admin.CoreV1().Pods(installed).Delete(t.Context(), "agent-a", *metav1.NewDeleteOptions(0)))
		reviewer := &tokenReviewer{client: c.reviews, accounts: Accounts{Agent: agentUser}, clock: clk}
		within(t, "the API server refuses the token of a Pod that is gone", func() bool {
			_, err := reviewer.Review(t.Context(), tokenOfA)
			refused := (*RefusedError)(nil)
			return errors.As(err, &refused)
		})
		clk.Step(reviewInterval)
		if got := newer.end(); got.Code() != codes.Unauthenticated || !strings.Contains(got.Message(), "proves nothing any more") {
			t.Errorf("the session goes on after a's Pod was deleted, or ended with %v", got)
		}
		t.Log("a session whose Pod was deleted: ends by the next review")
		if got := f.attempt(t, tokenOfA).end(); got.Code() != codes.Unauthenticated {
			t.Errorf("the token of a Pod that was deleted: %v, want Unauthenticated", got)
		}
	})
	f.Assign("b", assign("of-b", 4), Description{})
	b.expect("assign of-b")
	t.Run("the northbound database", func(t *testing.T) { c.isNorthbound(t, counted, tokenOfB) })
}

// isNorthbound has the token of the northbound account's Pod on node b be the
// database and nothing else, and that of b's agent be b and nothing else.
func (c *cluster) isNorthbound(t *testing.T, counted *askedServer, tokenOfB string) {
	onB := c.pod("northbound-b", northboundAccount, "b")
	token := c.token(northboundAccount, onB, Audience)
	clk := clocktesting.NewFakeClock(time.Now())
	f := serve(t, clk, counted)
	f.Assign("b", assign("of-b", 1), Description{})
	f.Assign(hubv1.Northbound, assign("of-northbound", 2), Description{})

	n := f.attempt(t, token)
	generation := n.expect("describe", "assign of-northbound", "synced")[0]
	const connected = hubv1.Northbound + ` connected boot=of-b unsupported=""`
	t.Log("a token of the northbound account from node b: the database's session, and not b's")
	n.report(&hubv1.Report{Uid: "of-b", Generation: generation - 1, Confirmed: true})
	n.report(&hubv1.Report{Uid: "of-b", Generation: generation, Confirmed: true})
	n.report(&hubv1.Report{Uid: "of-northbound", Generation: generation, Confirmed: true})
	const reported = hubv1.Northbound + " reported of-northbound generation=2 confirmed=true"
	f.sink.await(t, connected, reported)
	t.Log("its report on b's Pod: dropped")

	b := f.attempt(t, tokenOfB)
	b.expect("describe", "assign of-b", "synced")
	b.report(&hubv1.Report{Uid: "of-northbound", Generation: generation, Confirmed: true})
	b.report(&hubv1.Report{Uid: "of-b", Generation: generation, Confirmed: true})
	f.Assign("b", assign("of-b", 3), Description{})
	b.expect("assign of-b")
	f.sink.await(t, connected, reported, `b connected boot=of-b unsupported=""`)
	t.Log("b's agent reports on what the database is asked: dropped")

	tokenOnA := c.token(northboundAccount, c.pod("northbound-a", northboundAccount, "a"), Audience)
	newer := f.attempt(t, tokenOnA)
	newer.expect("describe", "assign of-northbound", "synced")
	if got := n.end(); got.Code() != codes.Aborted {
		t.Errorf("the older session of the database ended with %v, want Aborted", got)
	}
	t.Log("a second replica of it: replaces the first")

	without := serveAccounts(t, clk, counted, &sink{}, Accounts{Agent: agentUser})
	for name, tc := range map[string]struct {
		token string
		at    *fixture
		want  string
	}{
		"its token without --kube-ovn":  {token, without, `not of "` + agentUser + `"`},
		"its token, not bound to a Pod": {c.token(northboundAccount, nil, Audience), f, "names no Pod"},
		"its token for the API server":  {c.token(northboundAccount, onB), f, "not for the audience policygate-hub"},
		"its token, altered to be b's":  {altered(t, token, func(claims map[string]any) { claims["sub"] = agentUser }), f, "not valid for the audience"},
		"b's token, altered to be its":  {altered(t, tokenOfB, func(claims map[string]any) { claims["sub"] = northboundUser }), f, "not valid for the audience"},
		"another's token from its node": {c.token("another", c.pod("another-yet", "another", "b"), Audience), f, "not of"},
	} {
		t.Run(name, func(t *testing.T) {
			got := tc.at.attempt(t, tc.token).end()
			if got.Code() != codes.Unauthenticated || !strings.Contains(got.Message(), tc.want) {
				t.Errorf("ended with %v, want Unauthenticated and %q", got, tc.want)
			}
			t.Logf("refused: %s", got.Message())
		})
	}

	must(t, c.admin.CoreV1().Pods(installed).Delete(t.Context(), "northbound-a", *metav1.NewDeleteOptions(0)))
	reviewer := &tokenReviewer{client: c.reviews, accounts: Accounts{Agent: agentUser, Northbound: northboundUser}, clock: clk}
	within(t, "the API server refuses the token of a Pod that is gone", func() bool {
		_, err := reviewer.Review(t.Context(), tokenOnA)
		refused := (*RefusedError)(nil)
		return errors.As(err, &refused)
	})
	clk.Step(reviewInterval)
	if got := newer.end(); got.Code() != codes.Unauthenticated || !strings.Contains(got.Message(), "proves nothing any more") {
		t.Errorf("the session goes on after its Pod was deleted, or ended with %v", got)
	}
	t.Log("a session whose Pod was deleted: ends by the next review")
}

// refusesTokens tries tokens that are not, or no more, those of an agent.
func (c *cluster) refusesTokens(t *testing.T, f *fixture, counted *askedServer, tokenOfA string, onA *authenticationv1.BoundObjectReference) {
	ahead := serve(t, clocktesting.NewFakeClock(time.Now().Add(3*time.Hour)), counted)
	for name, tc := range map[string]struct {
		token string
		at    *fixture
		// want is part of the refusal. unasked: the API server is not asked.
		want    string
		unasked bool
	}{
		"no token": {want: "want \"Bearer \" and a token", unasked: true},
		"garbage":  {token: "garbage", want: "the token has 1 parts", unasked: true},
		"garbage in the shape of a token": {
			token: "a.b.c", want: "the token's claims are no", unasked: true,
		},
		"a's token for the API server": {
			token: c.token(agentAccount, onA), want: "not for the audience policygate-hub", unasked: true,
		},
		"a token of another ServiceAccount on a": {
			token: c.token("another", c.pod("another", "another", "a"), Audience), want: `not of "` + agentUser, unasked: true,
		},
		"the agent's token, not bound to a Pod": {
			token: c.token(agentAccount, nil, Audience), want: "the token names no node",
		},
		"the agent's token, bound to a Pod on no node": {
			token: c.token(agentAccount, c.pod("pending", agentAccount, ""), Audience), want: "the token names no node",
		},
		"a's token, altered to name b": {
			token: altered(t, tokenOfA, func(claims map[string]any) {
				claims["kubernetes.io"].(map[string]any)["node"] = map[string]any{"name": "b"}
			}),
			want: "not valid for the audience",
		},
		"another ServiceAccount's token, altered to be the agent's": {
			token: altered(t, c.token("another", c.pod("another-on-b", "another", "b"), Audience),
				func(claims map[string]any) { claims["sub"] = agentUser }),
			want: "not valid for the audience",
		},
		"a's token for the API server, altered to be for the hub": {
			token: altered(t, c.token(agentAccount, onA), func(claims map[string]any) { claims["aud"] = []string{Audience} }),
			want:  "not valid for the audience",
		},
		"a's token without a signature": {
			token: tokenOfA[:strings.LastIndex(tokenOfA, ".")+1], want: "part 3 of the token is empty", unasked: true,
		},
		"a's token, two hours after it expired": {token: tokenOfA, at: ahead, want: "the token expired at", unasked: true},
	} {
		t.Run(name, func(t *testing.T) {
			at := f
			if tc.at != nil {
				at = tc.at
			}
			before := counted.times.Load()
			got := at.attempt(t, tc.token).end()
			if got.Code() != codes.Unauthenticated || !strings.Contains(got.Message(), tc.want) {
				t.Errorf("ended with %v, want Unauthenticated and %q", got, tc.want)
			}
			if unasked := counted.times.Load() == before; unasked != tc.unasked {
				t.Errorf("the API server was asked: %v, want %v", !unasked, !tc.unasked)
			}
			t.Logf("refused: %s", got.Message())
		})
	}
}

// refusesTransports tries to reach the hub by other means than TLS 1.3, and to
// be taken for the hub by an agent.
func (f *fixture) refusesTransports(t *testing.T, counted *askedServer, tokenOfA string) {
	before := counted.times.Load()
	t.Run("plain TCP", func(t *testing.T) {
		conn := f.reach(t)
		_, err := io.WriteString(conn, http2.ClientPreface)
		must(t, err)
		ended(t, conn)
		t.Log("refused: the connection is closed")
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		err := tls.Client(f.reach(t), &tls.Config{
			RootCAs: f.roots, ServerName: "hub", MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
		}).HandshakeContext(t.Context())
		if err == nil || !strings.Contains(err.Error(), "protocol version not supported") {
			t.Errorf("error %v, want that the version is not supported", err)
		}
		t.Logf("refused: %v", err)
	})
	_, others := certificate(t)
	for name, config := range map[string]*tls.Config{
		"a hub with a certificate of another authority": {RootCAs: others, ServerName: "hub", MinVersion: tls.VersionTLS13},
		"a hub with a certificate for another name":     {RootCAs: f.roots, ServerName: "policygate-hub.policygate-system.svc", MinVersion: tls.VersionTLS13},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := grpc.NewClient(f.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(config)))
			must(t, err)
			defer conn.Close() //nolint:errcheck // the test ends
			_, err = hubv1.NewHubClient(conn).Session(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+tokenOfA))
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "certificate") {
				t.Errorf("error %v, want that the agent refuses the certificate", err)
			}
			t.Logf("refused by the agent, before its token is sent: %v", err)
		})
	}
	if counted.times.Load() != before {
		t.Error("a token was reviewed that came over none of these")
	}
}

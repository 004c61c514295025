// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/pflag"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

const (
	// tokenLife is the shortest that the API server issues a token for.
	tokenLife = 10 * time.Minute
	// timeout bounds the whole: two reviews, a look on each node of up to
	// 10 s, and the way there.
	timeout = time.Minute
	// maxAnswer bounds the manager's answer: two flows of two nodes with at
	// most 2 MiB each.
	maxAnswer = 10 << 20
	// bundleConfigMap and bundleKey are where the manager publishes the
	// certificates to trust it by.
	bundleConfigMap = "policygate-ca"
	bundleKey       = "ca.crt"
	// userRole is what people need, for errors.
	userRole = "policygate-trace-user"
)

// runTrace answers one question and returns the exit status.
func runTrace(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, pflag.ErrHelp) {
		return 0
	}
	if err == nil {
		var answer *tracev1.Answer
		if answer, err = trace(ctx, o); err == nil {
			if err = o.print(answer, stdout); err == nil {
				return answer.Verdict.ExitStatus()
			}
		}
	}
	_, _ = fmt.Fprintln(stderr, "error:", err)
	return tracev1.ExitError
}

// trace asks a replica of the manager.
func trace(ctx context.Context, o *options) (*tracev1.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	config, err := o.config.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	namespace, _, err := o.config.Namespace()
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	q, err := o.question(namespace)
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make the client: %w", err)
	}
	roots, err := roots(ctx, client, o.installNamespace)
	if err != nil {
		return nil, err
	}
	manager, err := findManager(ctx, client, o.installNamespace)
	if err != nil {
		return nil, err
	}
	token, err := newToken(ctx, client, o.installNamespace, o.serviceAccount)
	if err != nil {
		return nil, err
	}
	tunnel, err := openTunnel(ctx, config, client, manager)
	if err != nil {
		return nil, err
	}
	defer tunnel.close()
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: roots, MinVersion: tls.VersionTLS13,
		// The name that the manager's certificate is for.
		ServerName: "policygate-hub." + o.installNamespace + ".svc",
	}}
	defer transport.CloseIdleConnections()
	return post(ctx, &http.Client{Transport: transport}, "https://"+tunnel.address+tracev1.Path, token, q)
}

// roots returns the certificates to trust the manager by.
func roots(ctx context.Context, client kubernetes.Interface, namespace string) (*x509.CertPool, error) {
	bundle, err := client.CoreV1().ConfigMaps(namespace).Get(ctx, bundleConfigMap, metav1.GetOptions{})
	if err != nil {
		return nil, explained(fmt.Errorf("read the certificates to trust: %w", err), namespace)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(bundle.Data[bundleKey])) {
		return nil, fmt.Errorf("ConfigMap %s/%s: key %s holds no certificate: has the manager started?", namespace, bundleConfigMap, bundleKey)
	}
	return pool, nil
}

// newToken returns a token of the ServiceAccount that is good for traces alone.
func newToken(ctx context.Context, client kubernetes.Interface, namespace, account string) (string, error) {
	request, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences:         []string{tracev1.Audience},
			ExpirationSeconds: new(int64(tokenLife / time.Second)),
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", explained(fmt.Errorf("get a token of ServiceAccount %s/%s: %w", namespace, account, err), namespace)
	}
	return request.Status.Token, nil
}

// explained adds what to do about an error that every new user meets.
func explained(err error, namespace string) error {
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w (the Role %s in namespace %s allows it: ask for it to be bound to you)", err, userRole, namespace)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w (is Policy Gate installed in namespace %s? See --install-namespace)", err, namespace)
	}
	return err
}

// post asks and returns the answer.
func post(ctx context.Context, client *http.Client, url, token string, q tracev1.Question) (*tracev1.Answer, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("write the question: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask the manager: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request) //nolint:gosec // the address is our own end of the port-forward
	if err != nil {
		return nil, fmt.Errorf("ask the manager: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the manager's answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		var failure tracev1.Failure
		if json.Unmarshal(text, &failure) != nil || failure.Error == "" {
			failure.Error = "no reason given"
		}
		return nil, fmt.Errorf("the manager answers %s: %s", response.Status, tracev1.Clean(failure.Error))
	}
	var answer tracev1.Answer
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, fmt.Errorf("read the manager's answer: %w", err)
	}
	return &answer, nil
}

// print writes the answer as the command line wants it.
func (o *options) print(answer *tracev1.Answer, out io.Writer) error {
	if o.output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(answer)
	}
	return answer.WriteText(out)
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

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
	// defaultInstallNamespace is what config/ installs into.
	defaultInstallNamespace = "policygate-system"
)

// asking is how a command asks the manager.
type asking struct {
	// path is what to ask, role what people need for it, and clusterRole what
	// the ServiceAccount does that they ask as.
	path, role, clusterRole string

	installNamespace string
	serviceAccount   string
}

// bind adds the flags. The ServiceAccount has the right to create the resource,
// and may do nothing else.
func (a *asking) bind(cmd *cobra.Command, account, resource string) {
	a.clusterRole = account // config/rbac calls both alike
	flags := cmd.Flags()
	flags.StringVar(&a.installNamespace, "install-namespace", defaultInstallNamespace, "Namespace that Policy Gate is installed in.")
	flags.StringVar(&a.serviceAccount, "service-account", account,
		"ServiceAccount of that namespace to ask as: you must be allowed to create tokens of it, and it to create "+resource+".policygate.io.")
}

// validate returns an error that names each flag that is not usable, or nil.
func (a *asking) validate() error {
	var errs []error
	if len(validation.IsDNS1123Label(a.installNamespace)) > 0 {
		errs = append(errs, fmt.Errorf("--install-namespace %q: want the name of a namespace", a.installNamespace))
	}
	if len(validation.IsDNS1123Subdomain(a.serviceAccount)) > 0 {
		errs = append(errs, fmt.Errorf("--service-account %q: want the name of a ServiceAccount", a.serviceAccount))
	}
	return errors.Join(errs...)
}

// counter is what is needed to ask any replica of the manager.
type counter struct {
	*asking
	config *rest.Config
	client kubernetes.Interface
	roots  *x509.CertPool
	token  string
}

// open gets the certificates to trust, and a token.
func (a *asking) open(ctx context.Context, config *rest.Config, client kubernetes.Interface) (*counter, error) {
	roots, err := a.roots(ctx, client)
	if err != nil {
		return nil, err
	}
	token, err := a.newToken(ctx, client)
	if err != nil {
		return nil, err
	}
	return &counter{asking: a, config: config, client: client, roots: roots, token: token}, nil
}

// askAny asks the first replica that is ready. Agents are connected to each, so
// any does.
func (a *asking) askAny(ctx context.Context, config *rest.Config, question, answer any) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make the client: %w", err)
	}
	managers, err := a.findManagers(ctx, client)
	if err != nil {
		return err
	}
	c, err := a.open(ctx, config, client)
	if err != nil {
		return err
	}
	return c.ask(ctx, managers[0], question, answer)
}

// ask asks one replica.
func (c *counter) ask(ctx context.Context, m manager, question, answer any) error {
	tunnel, err := c.openTunnel(ctx, m)
	if err != nil {
		return err
	}
	defer tunnel.close()
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: c.roots, MinVersion: tls.VersionTLS13,
		// The name that the manager's certificate is for.
		ServerName: "policygate-hub." + c.installNamespace + ".svc",
	}}
	defer transport.CloseIdleConnections()
	return c.post(ctx, &http.Client{Transport: transport}, "https://"+tunnel.address+c.path, question, answer)
}

// roots returns the certificates to trust the manager by.
func (a *asking) roots(ctx context.Context, client kubernetes.Interface) (*x509.CertPool, error) {
	bundle, err := client.CoreV1().ConfigMaps(a.installNamespace).Get(ctx, bundleConfigMap, metav1.GetOptions{})
	if err != nil {
		return nil, a.explained(fmt.Errorf("read the certificates to trust: %w", err))
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(bundle.Data[bundleKey])) {
		return nil, fmt.Errorf("ConfigMap %s/%s: key %s holds no certificate: has the manager started?", a.installNamespace, bundleConfigMap, bundleKey)
	}
	return pool, nil
}

// newToken returns a token of the ServiceAccount that is good for the manager's
// questions alone.
func (a *asking) newToken(ctx context.Context, client kubernetes.Interface) (string, error) {
	request, err := client.CoreV1().ServiceAccounts(a.installNamespace).CreateToken(ctx, a.serviceAccount, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences:         []string{tracev1.Audience},
			ExpirationSeconds: new(int64(tokenLife / time.Second)),
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", a.explained(fmt.Errorf("get a token of ServiceAccount %s/%s: %w", a.installNamespace, a.serviceAccount, err))
	}
	return request.Status.Token, nil
}

// grant says which role allows what the command does.
func (a *asking) grant() string {
	return fmt.Sprintf("the Role %s in namespace %s allows it: ask for it to be bound to you", a.role, a.installNamespace)
}

// explained adds what to do about an error that every new user meets.
func (a *asking) explained(err error) error {
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w (%s)", err, a.grant())
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w (is Policy Gate installed in namespace %s? See --install-namespace)", err, a.installNamespace)
	}
	return err
}

// post asks and reads the answer.
func (c *counter) post(ctx context.Context, client *http.Client, url string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return fmt.Errorf("write the question: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask the manager: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+c.token)
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("ask the manager: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the manager's answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return c.refusal(response, text)
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("read the manager's answer: %w", err)
	}
	return nil
}

// refusal returns why the manager does not answer.
func (c *counter) refusal(response *http.Response, text []byte) error {
	if response.StatusCode == http.StatusNotFound {
		return fmt.Errorf("the manager does not know %s: is it older than this command?", c.path)
	}
	var failure tracev1.Failure
	if err := json.Unmarshal(text, &failure); err != nil {
		failure.Error = ""
	}
	err := fmt.Errorf("the manager answers %s: %s", response.Status, tracev1.Clean(cmp.Or(failure.Error, "no reason given")))
	if response.StatusCode == http.StatusForbidden {
		return fmt.Errorf("%w (the ClusterRole %s allows it: ask as the ServiceAccount that it is bound to, without --service-account)", err, c.clusterRole)
	}
	return err
}

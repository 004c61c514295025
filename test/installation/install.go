// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package installation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// Names of what config/ installs.
const (
	Namespace      = "policygate-system"
	ManagerAccount = "policygate-manager"
	AgentAccount   = "policygate-agent"

	webhookName    = "policygate"
	webhookService = "policygate-webhook"
	// hubAudience is what a hub's token must be for.
	hubAudience = "policygate-hub"
	// tokenLife is longer than any run.
	tokenLife = 6 * time.Hour
)

// Options say where Install installs what.
type Options struct {
	// Client is an administrator's.
	Client kubernetes.Interface
	// Kubectl is the path of the command, Kubeconfig that of an
	// administrator's.
	Kubectl, Kubeconfig string
	// Directory holds the kustomization to apply, such as config/default.
	Directory string
	// WebhookPort is where the manager's webhook listens on the loopback.
	WebhookPort int
}

// Install applies a kustomization as it is shipped, and then has the API server
// reach the webhook at a port of the loopback: there is no Service network.
func Install(ctx context.Context, o Options) error {
	cmd := exec.CommandContext(ctx, o.Kubectl, "--kubeconfig", o.Kubeconfig, "apply", "--server-side", "-k", o.Directory)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apply %s: %w\n%s", o.Directory, err, out)
	}
	// The API server connects to an ExternalName itself and still demands a
	// certificate for the Service's name.
	service, err := json.Marshal(map[string]any{"spec": map[string]any{
		"type": "ExternalName", "externalName": "localhost", "clusterIP": nil, "clusterIPs": nil, "selector": nil,
	}})
	if err != nil {
		return err
	}
	if _, err := o.Client.CoreV1().Services(Namespace).Patch(ctx, webhookService, types.MergePatchType, service, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("make the webhook's Service lead to the loopback: %w", err)
	}
	webhooks := o.Client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	configuration, err := webhooks.Get(ctx, webhookName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get the webhook's configuration: %w", err)
	}
	for i := range configuration.Webhooks {
		configuration.Webhooks[i].ClientConfig.Service.Port = new(int32(o.WebhookPort))
	}
	if _, err := webhooks.Update(ctx, configuration, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("set the webhook's port: %w", err)
	}
	return nil
}

// CreatePod creates a Pod of the product and two tokens of its ServiceAccount
// that are bound to it, as the kubelet asks for: one for the hub and one for
// the API server.
func CreatePod(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod) (hub, api string, err error) {
	created, err := client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return "", "", err
	}
	token := func(audiences ...string) (string, error) {
		request, err := client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName,
			&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
				Audiences:         audiences,
				ExpirationSeconds: new(int64(tokenLife / time.Second)),
				BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: created.Name, UID: created.UID},
			}}, metav1.CreateOptions{})
		if err != nil {
			return "", fmt.Errorf("ask for a token of %s: %w", created.Name, err)
		}
		return request.Status.Token, nil
	}
	hub, err = token(hubAudience)
	if err != nil {
		return "", "", err
	}
	api, err = token()
	return hub, api, err
}

// Build builds commands of the product, such as manager, into dir, as a release
// does.
func Build(ctx context.Context, root, dir string, commands ...string) error {
	args := []string{"build", "-trimpath", "-ldflags=-s -w", "-o", dir + string(filepath.Separator)}
	for _, c := range commands {
		args = append(args, "./cmd/"+c)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %v: %w\n%s", commands, err, out)
	}
	return nil
}

// Root returns the directory that holds the product's go.mod, below which tests
// and commands run.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "PROJECT")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no directory above the current one holds PROJECT: run from within the repository")
		}
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// installed is the namespace that config/ installs into.
	installed = "policygate-system"
	// webhookName is the name of the webhook's configuration.
	webhookName = "policygate"
	// webhookService is the name of its Service.
	webhookService = "policygate-webhook"
	managerAccount = "policygate-manager"
	agentAccount   = "policygate-agent"
)

// install applies config/default as it is shipped, and then has the API server
// reach the webhook at port of the loopback: there is no Service network.
func (c *controlPlane) install(ctx context.Context, root string, port int) error {
	if err := c.kubectl(ctx, "apply", "--server-side", "-k", filepath.Join(root, "config", "default")); err != nil {
		return err
	}
	// The API server connects to an ExternalName itself and still demands a
	// certificate for the Service's name.
	service, err := json.Marshal(map[string]any{"spec": map[string]any{
		"type": "ExternalName", "externalName": "localhost", "clusterIP": nil, "clusterIPs": nil, "selector": nil,
	}})
	if err != nil {
		return err
	}
	if _, err := c.client.CoreV1().Services(installed).Patch(ctx, webhookService, types.MergePatchType, service, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("make the webhook's Service lead to the loopback: %w", err)
	}
	webhooks := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	configuration, err := webhooks.Get(ctx, webhookName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get the webhook's configuration: %w", err)
	}
	for i := range configuration.Webhooks {
		configuration.Webhooks[i].ClientConfig.Service.Port = new(int32(port))
	}
	if _, err := webhooks.Update(ctx, configuration, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("set the webhook's port: %w", err)
	}
	return nil
}

// kubectl runs it as an administrator.
func (c *controlPlane) kubectl(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, asset("kubectl"), append([]string{"--kubeconfig", c.kubeconfig}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %v: %w\n%s", args, err, out)
	}
	return nil
}

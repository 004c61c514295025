// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
	"github.com/policygate/policygate/cmd/kubectl-policygate/doctor"
)

const doctorHelp = `Says whether Policy Gate is in order, and what to do where it is not: the webhook
and whether the API server reaches it, the manager and its certificates, the
agents and their versions, what each node's dataplane is and whether it can be
seen, and Pods without a gate that should have one.

To see whether the API server reaches the webhook, a Pod is created in the
namespace of the kubeconfig or of --namespace, as a dry run: nothing comes of it.

The exit status is 0 if all is in order, 2 if something is to be looked at, and 1
if nothing could be found out.

It asks every replica of the manager by a port-forward, with a token that is good
for nothing else and of 10 minutes. Who is no cluster-admin needs the Role
policygate-doctor-user in the namespace that Policy Gate is installed in, the
ClusterRole policygate-webhook-viewer, and the right to create Pods where that is
tried. What a permission is missing for is not checked, and named.`

const doctorExamples = `  kubectl policygate doctor
  kubectl policygate doctor -n shop -o json`

// doctorOptions are what the command line of "doctor" says.
type doctorOptions struct {
	*kubeconfig
	asking
	output
	clock clock.PassiveClock
}

func newDoctor(k *kubeconfig) *cobra.Command {
	o := &doctorOptions{
		kubeconfig: k, clock: clock.RealClock{},
		asking: asking{path: explainv1.DoctorPath, role: "policygate-doctor-user"},
	}
	cmd := &cobra.Command{
		Use:               "doctor",
		Short:             "Say whether Policy Gate is in order, and what to do",
		Long:              doctorHelp,
		Example:           doctorExamples,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(o.output.validate(), o.asking.validate()); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			config, namespace, err := o.load()
			if err != nil {
				return err
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return fmt.Errorf("make the client: %w", err)
			}
			if err := client.Discovery().RESTClient().Get().AbsPath("/version").Do(ctx).Error(); err != nil {
				return fmt.Errorf("reach the API server: %w", err)
			}
			report := doctor.NewReport(o.facts(ctx, config, client, namespace))
			if err := o.print(cmd.OutOrStdout(), report, report.WriteText); err != nil {
				return err
			}
			return exitError{report.ExitStatus()}
		},
	}
	o.output.bind(cmd, "How to print the findings: text for people, json or yaml for scripts.", outputText, outputJSON, outputYAML)
	o.asking.bind(cmd, "policygate-doctor", "diagnoses")
	return cmd
}

// facts are all that can be seen. The namespace is where a Pod is tried.
func (o *doctorOptions) facts(ctx context.Context, config *rest.Config, client kubernetes.Interface, namespace string) *doctor.Facts {
	f := &doctor.Facts{Namespace: o.installNamespace, Plugin: thisBuild().Version, Now: o.clock.Now()}
	f.Webhook = seeWebhook(ctx, client)
	f.Trial = tryPod(ctx, client, namespace)
	f.Manager = o.seeManager(ctx, client)
	f.Agents = o.seeAgents(ctx, client)
	managers, err := o.findManagers(ctx, client)
	if err == nil {
		var c *counter
		if c, err = o.open(ctx, config, client); err == nil {
			f.Replicas = askAll(ctx, c, managers)
		}
	}
	if err != nil {
		// What it takes is in the error.
		f.Unasked = &doctor.Unread{Why: err.Error()}
	}
	return f
}

// asker asks one replica of the manager.
type asker interface {
	ask(ctx context.Context, m manager, question, answer any) error
}

// askAll asks every replica what it sees.
func askAll(ctx context.Context, c asker, managers []manager) []doctor.Replica {
	replicas := make([]doctor.Replica, 0, len(managers))
	for _, m := range managers {
		r := doctor.Replica{Pod: m.name}
		var d explainv1.Diagnosis
		if err := c.ask(ctx, m, struct{}{}, &d); err != nil {
			r.Unread = &doctor.Unread{Why: err.Error()}
		} else {
			r.Diagnosis = &d
		}
		replicas = append(replicas, r)
	}
	return replicas
}

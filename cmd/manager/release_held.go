// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/gate/uninstall"
)

// releaseHeldName is the subcommand's name.
const releaseHeldName = "release-held"

// releaseHeld opens every gate that is shut.
type releaseHeld struct {
	kubeconfig    string
	context       string
	conditionType string
	timeout       time.Duration
}

func (r *releaseHeld) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&r.kubeconfig, "kubeconfig", "",
		"Path of the administrator's kubeconfig; kubectl's rules apply if it is empty. The agents' and the manager's own rights do not suffice.")
	fs.StringVar(&r.context, "context", "",
		"Context of the kubeconfig to use; its current one if it is empty.")
	fs.StringVar(&r.conditionType, "condition-type", string(v1alpha1.ConditionProgrammed),
		"Type of the readiness gate, as the manager was given it.")
	fs.DurationVar(&r.timeout, "timeout", 2*time.Minute,
		"How long to wait for Pods that have no address yet: a hold cannot be ended before its Pod has one.")
}

// parse implements command.
func (r *releaseHeld) parse(flags *pflag.FlagSet, args []string) error {
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("argument %q: want flags only", flags.Arg(0))
	}
	if r.timeout <= 0 {
		return errors.New("--timeout=" + r.timeout.String() + ": want a duration above 0")
	}
	return nil
}

// run implements command.
func (r *releaseHeld) run(ctx context.Context, log logr.Logger) error {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = r.kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: r.context}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides).ClientConfig()
	if err != nil {
		return fmt.Errorf("configure the client: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make the client: %w", err)
	}
	released, err := uninstall.ReleaseHeld(ctx, uninstall.Options{
		Client:        client,
		ConditionType: corev1.PodConditionType(r.conditionType),
		Timeout:       r.timeout,
		Clock:         clock.RealClock{},
		Log:           log,
	})
	log.Info("held pods were let go", "count", released)
	return err
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/certs"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/gate"
	"github.com/policygate/policygate/controllers/hub"
	"github.com/policygate/policygate/internal/apiclient"
	"github.com/policygate/policygate/webhook/inject"
)

// addressOff turns a server off.
const addressOff = "0"

// maxShutdownDelay is more than any balancer of Services takes.
const maxShutdownDelay = 5 * time.Minute

// options are what the command line of the manager says.
type options struct {
	namespace        string
	hubAddress       string
	traceAddress     string
	webhookPort      int
	healthAddress    string
	metricsAddress   string
	holdImage        string
	conditionType    string
	families         string
	maxForeignNodes  int
	watchServices    bool
	kubeOVN          bool
	northbound       string
	startupTaint     string
	notReadyLimit    time.Duration
	stalledAfter     time.Duration
	defaultTimeout   time.Duration
	defaultOnTimeout string
	leaderElect      bool
	shutdownDelay    time.Duration
	// How long certificates live, and how long old and new ones are side by side.
	authorityLifetime, certificateLifetime, certificateOverlap time.Duration
}

// newOptions returns the defaults.
func newOptions() *options {
	certificates := certs.DefaultOptions("")
	return &options{
		namespace:        "policygate-system",
		hubAddress:       ":9444",
		traceAddress:     "127.0.0.1:9446",
		webhookPort:      9443,
		healthAddress:    ":8081",
		metricsAddress:   ":8080",
		conditionType:    string(v1alpha1.ConditionProgrammed),
		families:         string(expect.FamiliesAuto),
		maxForeignNodes:  expect.DefaultMaxForeignNodes,
		northbound:       northboundName,
		notReadyLimit:    coverage.DefaultNotReadyLimit,
		stalledAfter:     gate.DefaultStalledAfter,
		defaultTimeout:   v1alpha1.DefaultTimeout,
		defaultOnTimeout: v1alpha1.OnTimeoutStart,
		leaderElect:      true,
		shutdownDelay:    5 * time.Second,

		authorityLifetime:   certificates.CALife,
		certificateLifetime: certificates.LeafLife,
		certificateOverlap:  certificates.Overlap,
	}
}

func (o *options) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.namespace, "namespace", o.namespace,
		"Namespace that Policy Gate runs in: its certificates and its Lease are there, and an agent's token must be of its ServiceAccount policygate-agent.")
	fs.StringVar(&o.hubAddress, "hub-bind-address", o.hubAddress,
		"Address where agents connect. Every replica serves, so that none is missed when another goes.")
	fs.StringVar(&o.traceAddress, "trace-bind-address", o.traceAddress,
		`Address of /trace, /explain and /doctor, which kubectl policygate asks; "0" turns it off. The default is the Pod's loopback, where a port-forward ends and other Pods do not reach it.`)
	fs.IntVar(&o.webhookPort, "webhook-port", o.webhookPort,
		"Port where the API server sends Pods that are created.")
	fs.StringVar(&o.healthAddress, "health-probe-bind-address", o.healthAddress,
		`Address of /healthz and /readyz; "0" turns them off. Agents dial only replicas that are ready.`)
	fs.StringVar(&o.metricsAddress, "metrics-bind-address", o.metricsAddress,
		`Address of /metrics, without TLS; "0" turns it off. Metrics name no Pods.`)
	fs.StringVar(&o.holdImage, "hold-image", o.holdImage,
		"Image of the injected init container, which must have /hold. Required: a Pod whose hold cannot be pulled never starts.")
	fs.StringVar(&o.conditionType, "condition-type", o.conditionType,
		"Type of the readiness gate and its Pod condition. Agents must be given the same, and the admission policies name it.")
	fs.StringVar(&o.families, "families", o.families,
		"Address families to confirm: auto, v4, v6 or both. auto leaves out a family on a node where the policy engine was seen not to enforce it, as nothing would ever confirm it.")
	fs.IntVar(&o.maxForeignNodes, "max-foreign-nodes", o.maxForeignNodes,
		"Nodes on which a Pod waits for policies of other namespaces, at most. Without a limit one namespace's rule for everybody holds the Pods of all others until every node has confirmed.")
	fs.BoolVar(&o.watchServices, "watch-services", o.watchServices,
		"Watch Services, and have Pods whose policies a Service concerns confirmed only once the engine rests again. Needed with Kube-OVN up to 1.15, which writes such policies anew; other engines do not know Services. Needs the rights in config/services.")
	fs.BoolVar(&o.kubeOVN, "kube-ovn", o.kubeOVN,
		"The policy engine is Kube-OVN: what Pods and policies need of any node is asked of OVN's northbound database as well, by the Deployment policygate-northbound of config/overlays/kube-ovn, and awaited. What kube-ovn-controller has yet to write there is seen and named so.")
	fs.StringVar(&o.northbound, "northbound-service-account", o.northbound,
		"ServiceAccount, of the manager's namespace, whose Pods may say what is in OVN's northbound database; nobody may without --kube-ovn.")
	fs.StringVar(&o.startupTaint, "startup-taint", o.startupTaint,
		"Key of the taint that kubelets register their nodes with, which is removed once a node's agent is connected and sees the dataplane; none by default. The component config/startup-taint sets it, and gives the right to.")
	fs.DurationVar(&o.notReadyLimit, "node-not-ready-limit", o.notReadyLimit,
		"How long a node may be NotReady until Pods of other nodes no longer wait for it; up to 1h. One whose agent answers is waited for all the same.")
	fs.DurationVar(&o.stalledAfter, "node-stalled-after", o.stalledAfter,
		"How long a node may confirm nothing while Pods wait for it, until Pods of other nodes no longer do: it is Stalled then. 30s, twice the longest sync that was seen of an engine, to 1h.")
	fs.DurationVar(&o.defaultTimeout, "default-timeout", o.defaultTimeout,
		"How long a Pod is held if neither it nor its namespace says otherwise; at most 10m. Held time counts toward a Job's activeDeadlineSeconds.")
	fs.StringVar(&o.defaultOnTimeout, "default-on-timeout", o.defaultOnTimeout,
		"What happens then: start lets the containers start with the gate shut, or PartiallyConfirmed if only other nodes are missing; fail ends the hold with exit status 95.")
	fs.BoolVar(&o.leaderElect, "leader-elect", o.leaderElect,
		"Elect one replica to write messages and certificates. Turn it off only for a single replica; gates are opened by every replica either way.")
	fs.DurationVar(&o.shutdownDelay, "shutdown-delay", o.shutdownDelay,
		"How long a replica that is asked to end goes on answering, while whatever balances the Services learns that it ends. The Pod's terminationGracePeriodSeconds must leave 10 s more.")
	fs.DurationVar(&o.authorityLifetime, "authority-lifetime", o.authorityLifetime,
		"How long a certificate authority is valid. It is replaced when two thirds are over, and at once when the annotation "+certs.AnnotationRotate+" of ConfigMap "+certs.ConfigMapCA+" is given another value.")
	fs.DurationVar(&o.certificateLifetime, "certificate-lifetime", o.certificateLifetime,
		"How long the certificate of webhook and hub is valid; less than a third of --authority-lifetime. It is replaced when two thirds are over.")
	fs.DurationVar(&o.certificateOverlap, "certificate-overlap", o.certificateOverlap,
		"How long a new authority is published before it signs, and the former one stays trusted after: the longest that an API server, an agent or a replica may take to learn of either. At least 1s, less than a third of --certificate-lifetime.")
}

// parse implements command.
func (o *options) parse(flags *pflag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("argument %q: want flags only, or %s first", flags.Arg(0), releaseHeldName)
	}
	return o.validate()
}

// validate returns an error that names each flag that is not usable, its value
// and what would be.
func (o *options) validate() error {
	var errs []error
	bad := func(name string, value any, want string) {
		errs = append(errs, fmt.Errorf("--%s=%v: want %s", name, value, want))
	}
	if len(validation.IsDNS1123Label(o.namespace)) > 0 {
		bad("namespace", o.namespace, "the name of a namespace")
	}
	if !bindable(o.hubAddress) {
		bad("hub-bind-address", o.hubAddress, "host:port or :port")
	}
	if o.traceAddress != addressOff && !bindable(o.traceAddress) {
		bad("trace-bind-address", o.traceAddress, "host:port, :port or 0")
	}
	if o.webhookPort < 1 || o.webhookPort > 65535 {
		bad("webhook-port", o.webhookPort, "1 to 65535")
	}
	if o.healthAddress != addressOff && !bindable(o.healthAddress) {
		bad("health-probe-bind-address", o.healthAddress, "host:port, :port or 0")
	}
	if o.metricsAddress != addressOff && !bindable(o.metricsAddress) {
		bad("metrics-bind-address", o.metricsAddress, "host:port, :port or 0")
	}
	if o.holdImage == "" {
		bad("hold-image", `""`, "the image that Policy Gate itself runs, which has /hold")
	}
	if why := validation.IsQualifiedName(o.conditionType); len(why) > 0 {
		bad("condition-type", o.conditionType, "a qualified name: "+strings.Join(why, "; "))
	}
	switch expect.Families(o.families) {
	case expect.FamiliesAuto, expect.FamiliesV4, expect.FamiliesV6, expect.FamiliesBoth:
	default:
		bad("families", o.families, "auto, v4, v6 or both")
	}
	if o.maxForeignNodes < 0 {
		bad("max-foreign-nodes", o.maxForeignNodes, "0 or more")
	}
	if o.northbound == agentAccount || len(validation.IsDNS1123Subdomain(o.northbound)) > 0 {
		bad("northbound-service-account", o.northbound, "the name of a ServiceAccount other than "+agentAccount)
	}
	o.validateNodes(bad)
	if o.defaultTimeout < v1alpha1.MinTimeout || o.defaultTimeout > v1alpha1.MaxTimeout {
		bad("default-timeout", o.defaultTimeout, fmt.Sprintf("%s to %s", v1alpha1.MinTimeout, v1alpha1.MaxTimeout))
	}
	if o.defaultOnTimeout != v1alpha1.OnTimeoutStart && o.defaultOnTimeout != v1alpha1.OnTimeoutFail {
		bad("default-on-timeout", o.defaultOnTimeout, v1alpha1.OnTimeoutStart+" or "+v1alpha1.OnTimeoutFail)
	}
	if o.shutdownDelay < 0 || o.shutdownDelay > maxShutdownDelay {
		bad("shutdown-delay", o.shutdownDelay, fmt.Sprintf("0s to %s", maxShutdownDelay))
	}
	o.validateLifetimes(bad)
	return errors.Join(errs...)
}

// validateLifetimes passes to bad each flag of certificates that is not usable.
func (o *options) validateLifetimes(bad func(name string, value any, want string)) {
	if o.certificateOverlap < time.Second || o.certificateOverlap >= o.certificateLifetime/3 {
		bad("certificate-overlap", o.certificateOverlap, fmt.Sprintf("at least 1s and less than a third of --certificate-lifetime, %s", o.certificateLifetime))
	}
	if o.certificateLifetime >= o.authorityLifetime/3 {
		bad("certificate-lifetime", o.certificateLifetime, fmt.Sprintf("less than a third of --authority-lifetime, %s", o.authorityLifetime))
	}
}

// maxNodeLimit is longer than anybody waits for a node.
const maxNodeLimit = time.Hour

// validateNodes passes to bad each flag about nodes that is not usable.
func (o *options) validateNodes(bad func(name string, value any, want string)) {
	if why := validation.IsQualifiedName(o.startupTaint); o.startupTaint != "" && len(why) > 0 {
		bad("startup-taint", o.startupTaint, "the key of a taint: "+strings.Join(why, "; "))
	}
	if o.notReadyLimit < 0 || o.notReadyLimit > maxNodeLimit {
		bad("node-not-ready-limit", o.notReadyLimit, fmt.Sprintf("0s to %s", maxNodeLimit))
	}
	if o.stalledAfter < gate.MinStalledAfter || o.stalledAfter > maxNodeLimit {
		bad("node-stalled-after", o.stalledAfter, fmt.Sprintf("%s to %s", gate.MinStalledAfter, maxNodeLimit))
	}
}

// bindable reports whether address can be listened on.
func bindable(address string) bool {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// run implements command.
func (o *options) run(ctx context.Context, log logr.Logger) error {
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("configure the client: %w", err)
	}
	apiclient.Redial(config)
	if err := awaitAPIServer(ctx, config, o.healthAddress, log); err != nil {
		return err
	}
	ending := newShutdown(ctx, o.shutdownDelay, clock.RealClock{})
	mgr, err := newManager(ctx, config, o, ending, log)
	if err != nil {
		return err
	}
	log.Info("manager starts", "version", version())
	ctx, stop := ending.context()
	defer stop()
	return mgr.Start(ctx) //nolint:contextcheck // it outlives the one that asks for the end
}

// certificates returns the options of the certificates.
func (o *options) certificates() certs.Options {
	c := certs.DefaultOptions(o.namespace)
	c.CALife, c.LeafLife, c.Overlap = o.authorityLifetime, o.certificateLifetime, o.certificateOverlap
	return c
}

// injection returns the webhook's options.
func (o *options) injection() inject.Options {
	defaults := v1alpha1.DefaultSettings()
	defaults.Timeout = o.defaultTimeout
	defaults.OnTimeout = o.defaultOnTimeout
	return inject.Options{
		ConditionType: corev1.PodConditionType(o.conditionType),
		Image:         o.holdImage,
		PullPolicy:    corev1.PullIfNotPresent,
		Defaults:      defaults,
	}
}

const (
	// agentAccount is the ServiceAccount of the agents.
	agentAccount = "policygate-agent"
	// northboundName is the Deployment of cmd/northbound, and its ServiceAccount
	// unless a flag names another.
	northboundName = "policygate-northbound"
)

// accounts are the users whose tokens open sessions.
func (o *options) accounts() hub.Accounts {
	const users = "system:serviceaccount:"
	accounts := hub.Accounts{Agent: users + o.namespace + ":" + agentAccount}
	if o.kubeOVN {
		accounts.Northbound = users + o.namespace + ":" + o.northbound
	}
	return accounts
}

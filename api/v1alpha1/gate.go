// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 names everything that a user of Policy Gate reads or writes
// in the Kubernetes API: labels, annotations, the Pod condition and its reasons,
// and the kind PolicyStatus.
package v1alpha1

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// ConditionProgrammed is the default type of the readiness gate and of the Pod
// condition behind it. It is an option of every binary, since KEP-5709 may
// standardise a name.
const ConditionProgrammed corev1.PodConditionType = "policygate.io/PolicyProgrammed"

// Keys of labels and annotations.
const (
	// KeyInject is a namespace's label ("enabled") and a Pod's annotation
	// ("true" or "false").
	KeyInject = "policygate.io/inject"
	// KeyHold is an annotation of a Pod or a namespace: "auto", "true", "false".
	KeyHold = "policygate.io/hold"
	// KeyScope is an annotation of a Pod or a namespace: "peers" or "local".
	KeyScope = "policygate.io/scope"
	// KeyTimeout is an annotation of a Pod or a namespace: a duration.
	KeyTimeout = "policygate.io/timeout"
	// KeyOnTimeout is an annotation of a Pod or a namespace: "start" or "fail".
	KeyOnTimeout = "policygate.io/on-timeout"
	// KeyProgrammed is the annotation that an agent writes when it opens a
	// gate; its value is of package programmed. Stripped at creation.
	KeyProgrammed = "policygate.io/programmed"
)

// Values of those keys.
const (
	InjectNamespace = "enabled"
	ValueTrue       = "true"
	ValueFalse      = "false"
	HoldAuto        = "auto"
	ScopePeers      = "peers"
	ScopeLocal      = "local"
	OnTimeoutStart  = "start"
	OnTimeoutFail   = "fail"
)

// Bounds of the timeout annotation.
const (
	DefaultTimeout = 60 * time.Second
	MinTimeout     = time.Second
	MaxTimeout     = 10 * time.Minute
)

// HoldContainerName is the name of the injected init container.
const HoldContainerName = "policygate-hold"

// HoldVolumeName is the name of the injected downwardAPI volume.
const HoldVolumeName = "policygate-programmed"

// HoldTimeoutExitCode is the hold's exit status when its timeout ran out and
// the Pod asked for "fail". It lies outside the shell's and Go's own codes.
const HoldTimeoutExitCode = 95

// Reasons of the Pod condition. True: ReasonConfirmed, ReasonPartiallyConfirmed,
// ReasonEngineDeviates. False: the others.
const (
	// ReasonConfirmed: every node of the span has confirmed.
	ReasonConfirmed = "Confirmed"
	// ReasonPartiallyConfirmed: the timeout ran out, the Pod's own node has
	// confirmed, other nodes have not, and on-timeout is "start".
	ReasonPartiallyConfirmed = "PartiallyConfirmed"
	// ReasonEngineDeviates: confirmed but for advisory expectations, which
	// this engine is known or was seen not to realize.
	ReasonEngineDeviates = "EngineDeviates"
	// ReasonWaiting: some node has not confirmed yet; the message names it.
	ReasonWaiting = "Waiting"
	// ReasonTimeout: the timeout ran out with the gate still shut.
	ReasonTimeout = "Timeout"
	// ReasonAddressChanged: the Pod was given other addresses, or its node
	// rebooted, after the gate had opened.
	ReasonAddressChanged = "AddressChanged"
	// ReasonUninstalled: Policy Gate was removed while the Pod was held.
	ReasonUninstalled = "Uninstalled"
)

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"time"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
)

// Facts are what was seen of an installation.
type Facts struct {
	// Namespace is the one that Policy Gate is installed in.
	Namespace string
	// Plugin is the version of this command.
	Plugin string
	// Now is the time by the clock of this machine.
	Now      time.Time
	Webhook  Webhook
	Trial    Trial
	Manager  Workload
	Agents   Workload
	Replicas []Replica
	// Unasked says why no replica could be asked; nil if some were tried.
	Unasked *Unread
}

// Unread says why something could not be seen.
type Unread struct {
	// Why is the error.
	Why string
	// Grant says how to get a permission that is missing, empty if that is
	// not what is wrong.
	Grant string
}

// Webhook is the MutatingWebhookConfiguration.
type Webhook struct {
	Unread *Unread
	// Found says whether it is there.
	Found bool
	// Entries are the names of its webhooks, Bare those of them that have no
	// CA bundle.
	Entries, Bare []string
}

// Trial is a Pod that was created as a dry run, to see whether the API server
// reaches the webhook.
type Trial struct {
	Unread *Unread
	// Namespace is where.
	Namespace string
	// Injected says whether the Pod came back with a hold.
	Injected bool
	// Unreached is what the API server says of the webhook when it could not
	// call it; empty if it says nothing.
	Unreached string
	// Denied is what the webhook answered in place of injecting; empty if it
	// did not deny.
	Denied string
}

// Workload is a Deployment or a DaemonSet.
type Workload struct {
	Unread *Unread
	// Found says whether it is there.
	Found bool
	// Desired and Ready count Pods, and Current those of the newest template.
	Desired, Ready, Current int32
}

// Replica is a Pod of the manager that was asked.
type Replica struct {
	Pod string
	// Unread says why it did not answer. Then there is no Diagnosis.
	Unread    *Unread
	Diagnosis *explainv1.Diagnosis
}

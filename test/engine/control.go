// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/test/engine/rules"
)

// Control are the switches of an engine. They may change at any time; the
// engine looks at them before and during every step, about 20 times a second,
// and makes a sync whenever they change. The zero value is an engine that
// behaves.
//
// Durations are written as in "1.5s".
type Control struct {
	// Lag lies between a sync's snapshot and its application. What happens in
	// the cluster meanwhile waits for the next sync: with a lag every sync is
	// one that lands with an older snapshot.
	Lag metav1.Duration `json:"lag,omitzero"`
	// PodLag is for how long the engine must have known a Pod's address
	// before it takes notice of it, on whatever node the Pod is.
	PodLag metav1.Duration `json:"podLag,omitzero"`
	// HalfProgrammed gives a Pod of this node that no sync has applied yet a
	// chain that allows all and leaves it out of every set. The next sync,
	// which is requested at once, completes it. With a Lag of L a Pod is half
	// programmed for about L.
	HalfProgrammed bool `json:"halfProgrammed,omitempty"`
	// StaleSync, when it changes to more than zero, makes the engine take a
	// snapshot at once and keep it. Syncs go on as usual from newer snapshots.
	// When the kept snapshot is that old, and at least one newer one has been
	// applied, the kept one is applied, once, over the newer state. The sync
	// that repairs this is requested at once and lasts a Lag.
	StaleSync metav1.Duration `json:"staleSync,omitzero"`
	// Freeze stops everything. A sync that has not begun to write is given up,
	// one that is writing finishes first; State tells when the engine is at
	// rest. When it ends, a sync from a fresh snapshot follows at once.
	Freeze bool `json:"freeze,omitempty"`
	// DropPolicies, each as namespace/name, leave those policies' chains
	// empty.
	DropPolicies []string `json:"dropPolicies,omitempty"`
	// DropAddresses are left out of the sets of peers.
	DropAddresses []string `json:"dropAddresses,omitempty"`
	// FlushPodChains leaves the chains of this node's Pods empty: they are
	// open.
	FlushPodChains bool `json:"flushPodChains,omitempty"`
	// Crash, when it changes to CrashBetween, makes the engine end as a crash
	// would in the next sync that writes, once that has written the sets and
	// before it writes a rule. One that finds the switch set when it starts
	// does not crash: so one that is started again goes on.
	Crash Crash `json:"crash,omitempty"`
	// IPv6Off removes the engine's IPv6 rules and sets and writes no new ones.
	// It does nothing for an engine without IPv6.
	IPv6Off bool `json:"ipv6Off,omitempty"`
}

// Crash is where an engine ends.
type Crash string

// CrashBetween is between the sets and the rules of a sync.
const CrashBetween Crash = "betweenSetsAndRules"

// ParseControl reads switches from JSON. Empty text is the zero value. An
// unknown field or place to crash, a negative duration, an address or a
// policy's name that does not parse is an error that names it.
func ParseControl(data []byte) (Control, error) {
	var c Control
	if len(bytes.TrimSpace(data)) == 0 {
		return c, nil
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return Control{}, fmt.Errorf("parse control: %w", err)
	}
	for name, d := range map[string]metav1.Duration{"lag": c.Lag, "podLag": c.PodLag, "staleSync": c.StaleSync} {
		if d.Duration < 0 {
			return Control{}, fmt.Errorf("control: %s is %s, want zero or more", name, d.Duration)
		}
	}
	if c.Crash != "" && c.Crash != CrashBetween {
		return Control{}, fmt.Errorf("control: crash is %q, want %q or nothing", c.Crash, CrashBetween)
	}
	if _, err := c.faults(); err != nil {
		return Control{}, fmt.Errorf("control: %w", err)
	}
	return c, nil
}

func (c Control) faults() (rules.Faults, error) {
	faults := rules.Faults{
		DropPolicies:   map[types.NamespacedName]bool{},
		DropAddresses:  map[netip.Addr]bool{},
		FlushPodChains: c.FlushPodChains,
	}
	for _, p := range c.DropPolicies {
		namespace, name, ok := strings.Cut(p, "/")
		if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
			return rules.Faults{}, fmt.Errorf("dropPolicies: %q, want namespace/name", p)
		}
		faults.DropPolicies[types.NamespacedName{Namespace: namespace, Name: name}] = true
	}
	for _, text := range c.DropAddresses {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return rules.Faults{}, fmt.Errorf("dropAddresses: %w", err)
		}
		faults.DropAddresses[a] = true
	}
	return faults, nil
}

// ControlFile returns a source of switches that reads a JSON file anew each
// time. A missing file, like an empty path, is the zero value. Write the file
// under another name and rename it, so that no half of it is read.
func ControlFile(path string) func() (Control, error) {
	return func() (Control, error) {
		if path == "" {
			return Control{}, nil
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return Control{}, nil
		}
		if err != nil {
			return Control{}, fmt.Errorf("read control: %w", err)
		}
		return ParseControl(data)
	}
}

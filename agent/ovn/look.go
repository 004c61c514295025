// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/policygate/policygate/api/flow"
)

// Question is a flow that is asked about.
type Question struct {
	Flow flow.Flow
	// External says that an end of the flow may be outside of the cluster: what
	// leaves may then have another source.
	External bool
}

// Answer is what becomes of a flow.
type Answer struct {
	// Verdict is what OVN does on this node with the flow's first packet, and
	// will do with any: an answer that is new is Inconclusive until the flow
	// cache has been gone through.
	Verdict flow.Verdict
	// Routed is whether an end of the flow is on this node.
	Routed bool
	// Traced: packets were traced for it.
	Traced bool
}

// Look is the state of the node when it is asked. It is safe for concurrent
// use.
type Look struct {
	dataplane *Dataplane

	mu       sync.Mutex // guards rewrites
	rewrites uint64
}

// Look returns a look, or why there is none: the database is not in sync, or
// vswitchd does not run.
func (d *Dataplane) Look(ctx context.Context) (*Look, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ports, state, err := d.ports()
	if err != nil {
		return nil, err
	}
	session, err := d.connected(ctx)
	if err != nil {
		return nil, err
	}
	d.know(session, state, ports)
	return &Look{dataplane: d, rewrites: d.rewrites}, nil
}

// Together answers a batch of questions in their order, all with the same
// process of vswitchd and the same ports. The error is why it could not be
// asked.
func (l *Look) Together(ctx context.Context, questions []Question) ([]Answer, error) {
	answers, rewrites, err := l.dataplane.together(ctx, questions)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.rewrites = max(l.rewrites, rewrites)
	l.mu.Unlock()
	return answers, nil
}

// Rewrites counts the changes that were found of what the node's ovn-controller
// has acknowledged, of its ports and of answers, at most one of each for a
// batch. It never falls.
func (l *Look) Rewrites() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rewrites
}

// Audit returns why looks cannot see what OVN does here, or "".
func (d *Dataplane) Audit(context.Context) (unsupported string) {
	ports, _, err := d.ports()
	if err != nil || ports.geneve != 0 || len(ports.tunnels) == 0 {
		return ""
	}
	return "OVN's tunnels here are of " + strings.Join(unique(ports.tunnels), " and ") + ", of which only Geneve can be traced"
}

// ErrNoBridge means that the node has no integration bridge: OVN does nothing
// here.
var ErrNoBridge = errors.New("the node has no bridge " + bridge)

// Acknowledged returns the NB_Global.nb_cfg up to which ovn-controller says that
// it has installed everything on this node. It is what it was while vswitchd has
// lost all flows. The error says why it is not known, ErrNoBridge that there is
// nobody to say so.
func (d *Dataplane) Acknowledged(context.Context) (uint64, error) {
	_, state, err := d.ports()
	switch {
	case err != nil:
		return 0, err
	case !state.Bridge:
		return 0, ErrNoBridge
	case state.Acknowledged == "":
		return 0, errors.New("ovn-controller has acknowledged nothing yet")
	}
	at, err := strconv.ParseUint(state.Acknowledged, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("ovn-nb-cfg of %s is %q: want a number", bridge, state.Acknowledged)
	}
	return at, nil
}

// Name is that of this dataplane, as hub.proto names it.
const Name = "ovn"

// Survey is what can be told of OVN on a node as a whole.
type Survey struct {
	// Present: there is an integration bridge.
	Present bool
	// Pods are how many addresses have a logical port here.
	Pods int
	// Unjudged says of some ports why nothing can be concluded about them, at
	// most three.
	Unjudged []string
}

// mostUnjudged bounds Survey.Unjudged: they are for a remark of 200 bytes.
const mostUnjudged = 3

// Survey reads what is there. The error is why the database is not known.
func (d *Dataplane) Survey(context.Context) (Survey, error) {
	ports, state, err := d.ports()
	if err != nil {
		return Survey{}, err
	}
	s := Survey{Present: state.Bridge, Pods: len(ports.pods)}
	for _, p := range ports.pods {
		if p.why != "" {
			s.Unjudged = append(s.Unjudged, p.why)
		}
	}
	s.Unjudged = unique(s.Unjudged)
	s.Unjudged = s.Unjudged[:min(len(s.Unjudged), mostUnjudged)]
	return s, nil
}

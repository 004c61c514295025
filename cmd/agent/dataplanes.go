// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/confirm"
	"github.com/policygate/policygate/agent/dataplane"
	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/agent/kernel/notice"
	"github.com/policygate/policygate/agent/ovn"
	"github.com/policygate/policygate/agent/session"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
	"github.com/policygate/policygate/internal/ovs/ovsdb"
)

// dataplanes are what the node enforces policies with, as the other parts
// consume it.
type dataplanes struct {
	dataplane.Part

	// ovn is nil without OVN.
	ovn     *ovn.Dataplane
	notices confirm.Notices
	traces  session.Traces
	// run keeps them up to date until ctx ends; then it returns nil.
	run func(ctx context.Context) error
	// close frees them.
	close func() error
}

// openDataplanes opens what the node has: netfilter, OVN if the options say
// where, or both. Beside OVN, netfilter is left out if the agent may not read
// it.
func openDataplanes(ctx context.Context, o *options, log logr.Logger, registerer prometheus.Registerer) (*dataplanes, error) {
	netfilter, err := kernel.New(kernel.Options{})
	if err != nil {
		return nil, fmt.Errorf("open netfilter: %w", err)
	}
	d := &dataplanes{
		Part:    netfilterPart{netfilter},
		notices: notice.New(notice.Options{XtablesLock: o.XtablesLock, Clock: clock.RealClock{}, Log: log.WithName("notice")}),
		traces:  kernelTraces{},
		run:     func(context.Context) error { return nil },
		close:   netfilter.Close,
	}
	if o.OVSRunDir == "" {
		return d, nil
	}
	client, switched, err := openOVN(o.OVSRunDir, log, registerer)
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	d.ovn, d.run = switched, client.Run
	d.close = func() error { switched.Close(); return netfilter.Close() }
	d.traces = ovnTraces{switched, d.traces}
	of := ovnPart{switched}
	if _, err := netfilter.Look(ctx); errors.Is(err, fs.ErrPermission) {
		log.Info("OVN alone is looked at: netfilter may not be read without root and NET_ADMIN", "error", err.Error())
		d.Part, d.notices = of, switched
		return d, nil
	}
	d.Part, d.notices = dataplane.Join(of, switched, d.Part), dataplane.Notices{switched, d.notices}
	return d, nil
}

var _ confirm.Acknowledger = (*dataplanes)(nil)

// Acknowledged implements confirm.Acknowledger.
func (d *dataplanes) Acknowledged(ctx context.Context) (uint64, error) {
	if d.ovn == nil {
		return 0, confirm.ErrNoOVN
	}
	at, err := d.ovn.Acknowledged(ctx)
	if errors.Is(err, ovn.ErrNoBridge) {
		return 0, confirm.ErrNoOVN
	}
	return at, err
}

// openOVN returns OVN's dataplane and the client of the node's database, which
// has to run for it. Both connect as soon as there is something to connect to.
func openOVN(runDir string, log logr.Logger, registerer prometheus.Registerer) (*ovsdb.Client, *ovn.Dataplane, error) {
	var switched *ovn.Dataplane // made below, and before the client runs
	client, err := ovsdb.New(ovsdb.Options{
		Endpoints: []string{"unix:" + filepath.Join(runDir, "db.sock")}, Database: ovn.DatabaseName, Tables: ovn.Tables(),
		Clock: clock.RealClock{}, Log: log.WithName("ovsdb"),
		Changed: func() { switched.Changed() },
	})
	if err != nil {
		return nil, nil, fmt.Errorf("open the node's Open vSwitch database: %w", err)
	}
	switched = ovn.New(ovn.Options{
		Connect: ovn.Connector(runDir, clock.RealClock{}), Database: ovn.NewView(client), Routes: ovn.KernelRoutes{},
		Clock: clock.RealClock{}, Log: log.WithName("ovn"), Registerer: registerer,
	})
	return client, switched, nil
}

// netfilterPart is the netfilter dataplane as package confirm consumes it.
type netfilterPart struct{ *kernel.Netfilter }

// Look implements confirm.Dataplane.
func (p netfilterPart) Look(ctx context.Context) (confirm.Look, error) {
	return dataplane.Look[kernel.Question, kernel.Answer](p.Netfilter.Look(ctx))
}

// Survey implements confirm.Surveyor.
func (p netfilterPart) Survey(ctx context.Context) (*hubv1.State, error) {
	survey, err := p.Netfilter.Survey(ctx)
	if err != nil {
		return nil, err
	}
	return stateOf(survey), nil
}

// ovnPart is the OVN dataplane as package confirm consumes it.
type ovnPart struct{ *ovn.Dataplane }

// Look implements confirm.Dataplane.
func (p ovnPart) Look(ctx context.Context) (confirm.Look, error) {
	return dataplane.Look[ovn.Question, ovn.Answer](p.Dataplane.Look(ctx))
}

// Survey implements confirm.Surveyor.
func (p ovnPart) Survey(ctx context.Context) (*hubv1.State, error) {
	survey, err := p.Dataplane.Survey(ctx)
	if err != nil {
		return nil, err
	}
	state := &hubv1.State{}
	if survey.Present {
		state.Dataplanes = []string{ovn.Name}
	}
	if len(survey.Unjudged) > 0 {
		state.Remarks = []*hubv1.Remark{{
			Kind: hubv1.RemarkUnjudgedPorts, Text: tracev1.Printable(strings.Join(survey.Unjudged, "; ")),
		}}
	}
	return state, nil
}

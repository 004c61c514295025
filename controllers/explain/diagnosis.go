// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
	"github.com/policygate/policygate/controllers/hub"
)

// Sessions says which agents are connected.
type Sessions interface {
	// Sessions returns the nodes that the hub has heard of, by name.
	Sessions() []hub.Session
}

// Ungated knows the Pods without a gate that should have one.
type Ungated interface {
	// Len returns how many there are.
	Len() int
	// List returns the first of them by namespace and name, at most limit.
	List(limit int) []types.NamespacedName
}

// diagnose answers what this replica sees of the installation.
func (h *handler) diagnose(w http.ResponseWriter, r *http.Request, user string) (any, error) {
	if err := decode(w, r, maxEmpty, &struct{}{}); err != nil {
		return nil, err
	}
	d, err := h.diagnosis(r.Context())
	if err != nil {
		return nil, err
	}
	h.Log.Info("diagnosed", "user", user)
	return d, nil
}

func (h *handler) diagnosis(ctx context.Context) (*explainv1.Diagnosis, error) {
	nodes, err := h.Inventory.Nodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	sessions := h.Sessions.Sessions()
	d := &explainv1.Diagnosis{
		Version: h.Version, Time: h.Clock.Now(),
		Certificate: certificateOf(h.GetCertificate),
		Nodes:       nodeViews(nodes, sessions),
	}
	if h.Northbound {
		d.Northbound = northboundView(sessions)
	}
	if h.Ungated != nil {
		d.Ungated = &explainv1.Ungated{Total: h.Ungated.Len()}
		for _, pod := range h.Ungated.List(explainv1.MaxUngated) {
			d.Ungated.Pods = append(d.Ungated.Pods, pod.String())
		}
	}
	return d, nil
}

// certificateOf says until when the certificate that is served is valid.
func certificateOf(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) explainv1.Certificate {
	served, err := get(&tls.ClientHelloInfo{})
	if err != nil {
		return explainv1.Certificate{Error: err.Error()}
	}
	leaf := served.Leaf
	if leaf == nil {
		if len(served.Certificate) == 0 {
			return explainv1.Certificate{Error: "it is empty"}
		}
		if leaf, err = x509.ParseCertificate(served.Certificate[0]); err != nil {
			return explainv1.Certificate{Error: err.Error()}
		}
	}
	return explainv1.Certificate{NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
}

// nodeViews joins the cluster's nodes and the hub's sessions, by name. A
// session of a node that has gone is left out, and so is a Windows node, where
// no agent runs.
func nodeViews(nodes []corev1.Node, sessions []hub.Session) []explainv1.NodeView {
	byName := make(map[string]hub.Session, len(sessions))
	for _, s := range sessions {
		byName[s.Node] = s
	}
	views := make([]explainv1.NodeView, 0, len(nodes))
	for i := range nodes {
		n := &nodes[i]
		if n.Status.NodeInfo.OperatingSystem == string(corev1.Windows) {
			continue
		}
		view := viewOf(byName[n.Name])
		view.Name, view.Ready = n.Name, ready(n)
		views = append(views, view)
	}
	slices.SortFunc(views, func(a, b explainv1.NodeView) int { return cmp.Compare(a.Name, b.Name) })
	return views
}

// northboundView returns what is known of the agent of OVN's northbound
// database. It is ready if it is connected: there is no Node to say so.
func northboundView(sessions []hub.Session) *explainv1.NodeView {
	view := explainv1.NodeView{}
	if i := slices.IndexFunc(sessions, func(s hub.Session) bool { return s.Node == hubv1.Northbound }); i >= 0 {
		view = viewOf(sessions[i])
	}
	view.Name, view.Ready = hubv1.Northbound, !view.Since.IsZero()
	return &view
}

// viewOf returns what an agent has said.
func viewOf(s hub.Session) explainv1.NodeView {
	view := explainv1.NodeView{
		Since: s.Since, Version: tracev1.Clean(s.Version), Unsupported: tracev1.Clean(s.State.Unsupported),
	}
	for _, dataplane := range s.State.Dataplanes {
		view.Dataplanes = append(view.Dataplanes, tracev1.Clean(dataplane))
	}
	for _, remark := range s.State.Remarks {
		view.Remarks = append(view.Remarks, explainv1.Remark{Kind: tracev1.Clean(remark.Kind), Text: tracev1.Clean(remark.Text)})
	}
	return view
}

func ready(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/hub"
)

// inventory is a cluster of three nodes, one of them of Windows.
type inventory struct{}

func (inventory) Nodes(context.Context) ([]corev1.Node, error) {
	ready := node("n2")
	ready.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	windows := node("w1")
	windows.Status.NodeInfo.OperatingSystem = "windows"
	return []corev1.Node{*ready, *windows, *node("n1")}, nil
}

func (inventory) Namespace(context.Context, string) (*corev1.Namespace, error) { return nil, nil }

// sessions are of n2's agent, and of one that has gone with its node.
type sessions struct{}

func (sessions) Sessions() []hub.Session {
	return []hub.Session{
		{Node: "gone", Version: "v0"},
		{Node: "n2", Since: noon().Add(-time.Hour), Version: "v1\n", State: hub.State{
			Unsupported: "e\x1bBPF", Dataplanes: []string{"iptables-nft", "ipset"},
			Remarks: []hub.Remark{{Kind: "IPVS", Text: "3 servers"}},
		}},
	}
}

// ungated are three Pods.
type ungated struct{}

func (ungated) Len() int { return 3 }

func (ungated) List(limit int) []types.NamespacedName {
	all := []types.NamespacedName{{Namespace: "a", Name: "x"}, {Namespace: "a", Name: "y"}, {Namespace: "b", Name: "x"}}
	return all[:min(limit, len(all))]
}

func TestADiagnosisIsWhatTheReplicaSees(t *testing.T) {
	s := serve(t)
	status, body := s.post(t, explainv1.DoctorPath, "Bearer doctor", "{}")
	var got explainv1.Diagnosis
	if err := json.Unmarshal([]byte(body), &got); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	if c := got.Certificate; c.Error != "" || !c.NotBefore.Before(time.Now()) || !c.NotAfter.After(time.Now()) {
		t.Errorf("certificate %+v, want the one that is served", c)
	}
	got.Certificate = explainv1.Certificate{}
	want := explainv1.Diagnosis{
		Version: "v1.2.3", Time: noon(),
		Nodes: []explainv1.NodeView{
			{Name: "n1"},
			{
				Name: "n2", Ready: true, Since: noon().Add(-time.Hour), Version: "v1?", Unsupported: "e?BPF",
				Dataplanes: []string{"iptables-nft", "ipset"}, Remarks: []explainv1.Remark{{Kind: "IPVS", Text: "3 servers"}},
			},
		},
		Ungated: &explainv1.Ungated{Total: 3, Pods: []string{"a/x", "a/y", "b/x"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("diagnosis (-want +got):\n%s", diff)
	}
}

func TestADiagnosisSaysWhetherTheNorthboundDatabaseIsSeen(t *testing.T) {
	unsupported := hub.Session{Node: hubv1.Northbound, Since: noon(), Version: "v1\x1b", State: hub.State{Unsupported: "e\nrefused", Dataplanes: []string{"ovn-nb"}}}
	for name, tc := range map[string]struct {
		sessions []hub.Session
		want     *explainv1.NodeView
	}{
		"it was never connected": {nil, &explainv1.NodeView{Name: hubv1.Northbound}},
		"it is": {
			[]hub.Session{{Node: "n1", Since: noon()}, unsupported},
			&explainv1.NodeView{
				Name: hubv1.Northbound, Ready: true, Since: noon(), Version: "v1?", Unsupported: "e?refused", Dataplanes: []string{"ovn-nb"},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, northboundView(tc.sessions)); diff != "" {
				t.Errorf("view (-want +got):\n%s", diff)
			}
			// Without it, and among the nodes, there is none.
			nodes := []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}}
			if got := nodeViews(nodes, tc.sessions); len(got) != 1 || got[0].Name != "n1" {
				t.Errorf("nodes %+v, want n1", got)
			}
		})
	}
}

func TestADiagnosisWithoutACountOfUngatedPodsSaysSo(t *testing.T) {
	h := &handler{Options: Options{
		Inventory: inventory{}, Sessions: sessions{}, Clock: clocktesting.NewFakePassiveClock(noon()),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("not loaded") },
	}}
	got, err := h.diagnosis(t.Context())
	if err != nil || got.Ungated != nil || got.Certificate.Error != "not loaded" {
		t.Errorf("%+v, %v; want no ungated Pods and the certificate's error", got, err)
	}
}

func TestCertificateOf(t *testing.T) {
	good, _ := selfSigned(t)
	bare := &tls.Certificate{Certificate: good.Certificate}
	for name, tc := range map[string]struct {
		certificate *tls.Certificate
		problem     bool
	}{
		"a parsed one":    {good, false},
		"an unparsed one": {bare, false},
		"an empty one":    {&tls.Certificate{}, true},
		"garbage":         {&tls.Certificate{Certificate: [][]byte{{1}}}, true},
	} {
		got := certificateOf(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return tc.certificate, nil })
		if (got.Error != "") != tc.problem || got.NotAfter.IsZero() != tc.problem {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

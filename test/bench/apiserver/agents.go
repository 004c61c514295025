// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/reporter"
	"github.com/policygate/policygate/agent/session"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/bench/fleet"
	"github.com/policygate/policygate/test/bench/world"
	"github.com/policygate/policygate/test/installation"
)

const (
	// hubServerName is what the hub's certificate is for.
	hubServerName = "policygate-hub." + installation.Namespace + ".svc"
	// maxWrong bounds the descriptions of wrong openings that are kept.
	maxWrong = 20
)

// agents are one for each node, each a fleet of its own with its own tokens.
type agents struct {
	fleets []*fleet.Fleet
	judge  *judge
}

// newAgents makes the agents' Pods and tokens, and agents that know no replicas
// yet.
func (c *controlPlane) newAgents(ctx context.Context, dir string, s Shape, w *world.World, log logr.Logger) (*agents, error) {
	a := &agents{fleets: make([]*fleet.Fleet, s.Nodes), judge: &judge{world: w, opened: make(map[types.UID]bool)}}
	err := parallel(ctx, s.Nodes, func(ctx context.Context, i int) error {
		node := s.node(i)
		pod := newPod(installation.Namespace, "policygate-agent-"+node, node, "agent")
		pod.Spec.ServiceAccountName, pod.Spec.HostNetwork = installation.AgentAccount, true
		pod.Spec.Containers[0].Ports = nil
		hubToken, apiToken, err := installation.CreatePod(ctx, c.client, pod)
		if err != nil {
			return err
		}
		file := filepath.Join(dir, node+".token")
		if err := os.WriteFile(file, []byte(hubToken), 0o600); err != nil {
			return err
		}
		client, err := c.newAgentClient(apiToken)
		if err != nil {
			return err
		}
		a.fleets[i] = fleet.New(fleet.Options{
			World: w, Pods: judgedPods{reporter.ClientPods(client), a.judge}, ServerName: hubServerName,
			ConditionType: v1alpha1.ConditionProgrammed, Clock: clock.RealClock{}, Log: log,
		}, []fleet.Node{{Name: node, BootID: bootID(node), TokenFile: file}})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("make the agents: %w", err)
	}
	return a, nil
}

// newAgentClient returns a client of core/v1 with the token. All share their
// connections.
func (c *controlPlane) newAgentClient(token string) (*rest.RESTClient, error) {
	config := rest.AnonymousClientConfig(c.config)
	config.BearerToken = token
	config.APIPath, config.GroupVersion = "/api", &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	return rest.RESTClientFor(config)
}

// roots returns the certificates that the manager has published, once it has.
func (c *controlPlane) roots(ctx context.Context) (*x509.CertPool, error) {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		bundle, err := c.client.CoreV1().ConfigMaps(installation.Namespace).Get(ctx, "policygate-ca", metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("get the certificates of the hub: %w", err)
		}
		pool := x509.NewCertPool()
		if err == nil && pool.AppendCertsFromPEM([]byte(bundle.Data["ca.crt"])) {
			return pool, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the manager has published no certificates: %w", ctx.Err())
		case <-ticker.C:
		}
	}
}

// run runs the agents until ctx ends.
func (a *agents) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, f := range a.fleets {
		group.Go(func() error { return f.Run(ctx) })
	}
	return group.Wait()
}

// setReplicas tells all what they would learn from EndpointSlices: those of a
// replica whose process has ended say that it is not ready.
func (a *agents) setReplicas(replicas []*installation.Manager) {
	var known []session.Replica
	for _, r := range replicas {
		known = append(known, session.Replica{Name: r.Name, Address: r.Hub, Ready: r.Ready})
	}
	for _, f := range a.fleets {
		f.SetReplicas(known)
	}
}

// setRoots tells all whom to trust.
func (a *agents) setRoots(roots *x509.CertPool) {
	for _, f := range a.fleets {
		f.SetRoots(roots)
	}
}

// synced returns how many agents have a session.
func (a *agents) synced() int {
	n := 0
	for _, f := range a.fleets {
		n += f.Synced()
	}
	return n
}

// judge holds each gate that opens against the truth.
type judge struct {
	world *world.World

	mu     sync.Mutex // guards the following fields
	opened map[types.UID]bool
	Judged
}

// Judged is what the truth says of the gates that were opened.
type Judged struct {
	// Gates and Flows are how many were held against it.
	Gates, Flows int
	// WrongGates are those that were opened although a kernel did, or was
	// about to do, otherwise than the policies demand; Wrong are some of the
	// reasons.
	WrongGates int
	Wrong      []string
}

// result returns what was judged since the last call.
func (j *judge) result() Judged {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := j.Judged
	j.Judged = Judged{}
	return out
}

// judgedPods has each gate judged at the moment before it is opened.
type judgedPods struct {
	reporter.Pods
	judge *judge
}

// PatchStatus implements reporter.Pods.
func (p judgedPods) PatchStatus(ctx context.Context, namespace, name string, patch []byte) error {
	var of struct {
		Metadata struct {
			UID types.UID `json:"uid"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(patch, &of); err != nil {
		return errors.Join(err, errors.New("the patch of a gate names no Pod"))
	}
	p.judge.opening(of.Metadata.UID)
	return p.Pods.PatchStatus(ctx, namespace, name, patch)
}

// opening judges the gate of uid, the first time.
func (j *judge) opening(uid types.UID) {
	j.mu.Lock()
	again := j.opened[uid]
	j.opened[uid] = true
	j.mu.Unlock()
	if again {
		return
	}
	o := j.world.Opened(uid, time.Now())
	j.mu.Lock()
	defer j.mu.Unlock()
	if o.Unjudged != "" {
		return
	}
	j.Gates++
	j.Flows += o.Strangers + o.Peers
	if len(o.Wrong) > 0 {
		j.WrongGates++
		if len(j.Wrong) < maxWrong {
			j.Wrong = append(j.Wrong, o.Wrong...)
		}
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// maxEvidence is how many findings are saved with all that is around them: the
// first tell what is wrong, and a state is a megabyte or so.
const maxEvidence = 10

// logSeconds is how much of the logs is saved: what a fault and its pause take.
const logSeconds = 120

// evidence saves what is needed to understand a finding. Its methods may be
// called concurrently.
type evidence struct {
	dir string
	bed *testbed.Testbed
	out io.Writer

	mu              sync.Mutex // guards what follows
	saved, suspects int
	kept            int // of the suspects
}

// save prints a finding and saves the rules of nodes, the objects of the
// workload and the logs of Policy Gate as they are now. It returns the
// directory.
func (e *evidence) save(ctx context.Context, kind, text string, nodes ...string) string {
	e.mu.Lock()
	e.saved++
	n := e.saved
	e.mu.Unlock()
	_, _ = fmt.Fprintf(e.out, "%s: %s\n", kind, text)
	if n > maxEvidence {
		return "nothing: there are too many"
	}
	dir := filepath.Join(e.dir, fmt.Sprintf("%s-%02d", kind, n))
	if err := e.write(ctx, dir, text, nodes); err != nil {
		_, _ = fmt.Fprintf(e.out, "not all was saved in %s: %v\n", dir, err)
	}
	return dir
}

// suspect saves the rules of nodes as they are now, and returns the directory.
func (e *evidence) suspect(ctx context.Context, nodes ...string) string {
	e.mu.Lock()
	e.suspects++
	e.kept++
	n, many := e.suspects, e.kept > maxEvidence
	e.mu.Unlock()
	if many {
		return ""
	}
	dir := filepath.Join(e.dir, fmt.Sprintf("rules-%02d", n))
	err := os.MkdirAll(dir, 0o755)
	for _, node := range e.bed.Cluster.Nodes() {
		if err == nil && slices.Contains(nodes, node.Name) {
			err = rules(ctx, dir, node)
		}
	}
	if err != nil {
		_, _ = fmt.Fprintf(e.out, "not all was saved in %s: %v\n", dir, err)
	}
	return dir
}

// drop removes what suspect has saved. Empty: nothing.
func (e *evidence) drop(dir string) {
	if dir == "" {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.kept--
	_ = os.RemoveAll(dir) // left behind it says too much, and nothing false
}

func (e *evidence) write(ctx context.Context, dir, text string, nodes []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	errs := []error{os.WriteFile(filepath.Join(dir, "finding.txt"), []byte(text+"\n"), 0o600)}
	slices.Sort(nodes)
	// The rules first: they may change.
	for _, node := range e.bed.Cluster.Nodes() {
		if slices.Contains(nodes, node.Name) {
			errs = append(errs, rules(ctx, dir, node))
		}
	}
	errs = append(errs, e.objects(ctx, dir), e.logs(ctx, dir))
	return errors.Join(errs...)
}

func rules(ctx context.Context, dir string, node *cluster.Node) error {
	var errs []error
	for _, argv := range [][]string{{"iptables-save", "-c"}, {"ipset", "save"}, {"nft", "-a", "list", "ruleset"}, {"ip", "route"}, {"conntrack", "-L"}} {
		out, err := node.Command(ctx, argv[0], argv[1:]...).Output()
		errs = append(errs, err, os.WriteFile(filepath.Join(dir, node.Name+"-"+argv[0]+".txt"), out, 0o600))
	}
	return errors.Join(errs...)
}

func (e *evidence) objects(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pods, podsErr := e.bed.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{LabelSelector: runLabel})
	policies, policiesErr := e.bed.Client.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{})
	events, eventsErr := e.bed.Client.CoreV1().Events("").List(ctx, metav1.ListOptions{})
	errs := []error{podsErr, policiesErr, eventsErr}
	for name, object := range map[string]any{"pods": pods, "policies": policies, "events": events} {
		text, err := json.MarshalIndent(object, "", " ")
		errs = append(errs, err, os.WriteFile(filepath.Join(dir, name+".json"), text, 0o600))
	}
	return errors.Join(errs...)
}

// logs saves the end of what managers and agents have logged.
func (e *evidence) logs(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pods, err := e.bed.Client.CoreV1().Pods(testbed.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range pods.Items {
		var text bytes.Buffer
		for _, previous := range []bool{true, false} {
			log, err := e.bed.Client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{
				Previous: previous, SinceSeconds: new(int64(logSeconds)), Timestamps: true,
			}).DoRaw(ctx)
			if err != nil && !previous { // there need not be one before
				errs = append(errs, err)
			}
			text.Write(log)
		}
		errs = append(errs, os.WriteFile(filepath.Join(dir, p.Name+"-"+p.Spec.NodeName+".log"), text.Bytes(), 0o600))
	}
	return errors.Join(errs...)
}

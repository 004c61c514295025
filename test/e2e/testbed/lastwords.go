// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// lastWords is how many lines of each log LastWords returns: an agent logs
// about one for each event of its sessions.
const lastWords = 15

// lastWordsTime bounds what a test has left for that: what failed may be the
// API server.
const lastWordsTime = 20 * time.Second

// LastWords returns what a person needs who sees only a test's output: each Pod
// of Policy Gate with its node, how often its containers were started, what
// ended the last of them, and the end of the logs. What cannot be read is said
// in its place.
func (t *Testbed) LastWords(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, lastWordsTime)
	defer cancel()
	pods, err := t.Client.CoreV1().Pods(Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Sprintf("Pods of %s: %v\n", Namespace, err)
	}
	var text strings.Builder
	for i := range pods.Items {
		pod := &pods.Items[i]
		for _, c := range pod.Status.ContainerStatuses {
			fmt.Fprintf(&text, "%s on %s: ready %v, restarts %d, %s\n", pod.Name, pod.Spec.NodeName, c.Ready, c.RestartCount, situation(c))
			for _, previous := range []bool{true, false} {
				if previous && c.LastTerminationState.Terminated == nil {
					continue
				}
				log, err := t.Client.CoreV1().Pods(Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{
					Container: c.Name, Previous: previous, TailLines: new(int64(lastWords)), Timestamps: true,
				}).DoRaw(ctx)
				if err != nil {
					fmt.Fprintf(&text, "  (no log: %v)\n", err)
				}
				for line := range strings.Lines(string(log)) {
					fmt.Fprintf(&text, "  %s\n", strings.TrimSuffix(line, "\n"))
				}
			}
		}
	}
	return text.String()
}

// situation says what a container does and what ended it before.
func situation(c corev1.ContainerStatus) string {
	var words []string
	switch {
	case c.State.Waiting != nil:
		words = append(words, "waiting: "+c.State.Waiting.Reason+" "+c.State.Waiting.Message)
	case c.State.Running != nil:
		words = append(words, "running since "+c.State.Running.StartedAt.UTC().Format("15:04:05"))
	}
	for _, ended := range []*corev1.ContainerStateTerminated{c.State.Terminated, c.LastTerminationState.Terminated} {
		if ended != nil {
			words = append(words, fmt.Sprintf("ended at %s with %d (%s) %s",
				ended.FinishedAt.UTC().Format("15:04:05"), ended.ExitCode, ended.Reason, ended.Message))
		}
	}
	return strings.Join(words, ", ")
}

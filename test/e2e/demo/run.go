// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"github.com/policygate/policygate/api/v1alpha1"
)

// Options of a run.
type Options struct {
	Client kubernetes.Interface
	// ServerNode runs MariaDB, ClientNode the Jobs.
	ServerNode, ClientNode string
	// DatabaseImage has MariaDB's server and clients, ProbeImage the probe.
	DatabaseImage, ProbeImage string
	// Jobs per round.
	Jobs int
	// Progress receives lines for the person who waits.
	Progress io.Writer
}

// The pace of a round. A Pod costs two cores half a second of container
// runtime: a faster pace would measure their saturation. Pods of the churn come
// often enough that the engine is rarely idle.
const (
	jobInterval   = time.Second
	churnInterval = 3 * time.Second
	churnAlive    = 3
)

// Run sets the database up and runs the three rounds.
func Run(ctx context.Context, o Options) ([]Round, error) {
	host, err := o.setUp(ctx)
	if err != nil {
		return nil, err
	}
	churn, stop := context.WithCancel(ctx)
	churned := make(chan error, 1)
	go func() { churned <- o.churn(churn) }()
	defer stop()

	var rounds []Round
	for _, name := range []string{Ungated, Sleep10, Gated} {
		round, err := o.round(ctx, name, host)
		if err != nil {
			return rounds, fmt.Errorf("round %s: %w", name, err)
		}
		_, _ = fmt.Fprintf(o.Progress, "round %s: %d Jobs, %d failed\n", name, len(round.Jobs), round.Failed())
		rounds = append(rounds, round)
	}
	stop()
	if err := <-churned; err != nil && !errors.Is(err, context.Canceled) {
		return rounds, fmt.Errorf("background churn: %w", err)
	}
	return rounds, nil
}

// setUp starts the database behind its Service and policy, waits until it
// serves, and returns the Service's address.
func (o Options) setUp(ctx context.Context) (string, error) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	if _, err := o.Client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		return "", err
	}
	if _, err := o.Client.NetworkingV1().NetworkPolicies(namespace).Create(ctx, policy(), metav1.CreateOptions{}); err != nil {
		return "", err
	}
	svc, err := o.Client.CoreV1().Services(namespace).Create(ctx, service(), metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	pods := o.Client.CoreV1().Pods(namespace)
	// A namespace's default ServiceAccount comes a moment after it.
	err = wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		_, err := pods.Create(ctx, serverPod(o.DatabaseImage, o.ServerNode), metav1.CreateOptions{})
		return err == nil, ignoreForbidden(err)
	})
	if err != nil {
		return "", fmt.Errorf("create the database's Pod: %w", err)
	}
	_, _ = fmt.Fprintf(o.Progress, "MariaDB starts on %s behind Service %s and NetworkPolicy allow-backup\n", o.ServerNode, svc.Spec.ClusterIP)
	err = wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, 2*time.Minute, true, func(ctx context.Context) (bool, error) {
		pod, err := pods.Get(ctx, "mariadb", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return conditionTrue(pod, corev1.PodReady), nil
	})
	if err != nil {
		return "", fmt.Errorf("wait for MariaDB: %w\n%s", err, o.log(ctx, "mariadb"))
	}
	return svc.Spec.ClusterIP, nil
}

func ignoreForbidden(err error) error {
	if apierrors.IsForbidden(err) {
		return nil
	}
	return err
}

func conditionTrue(pod *corev1.Pod, kind corev1.PodConditionType) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == kind && c.Status == corev1.ConditionTrue
	})
}

// round runs one round's Jobs and removes them.
func (o Options) round(ctx context.Context, name, host string) (Round, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	seen, err := o.watch(ctx, name)
	if err != nil {
		return Round{}, err
	}
	_, _ = fmt.Fprintf(o.Progress, "round %s: starting %d Jobs on %s\n", name, o.Jobs, o.ClientNode)
	for n := range o.Jobs {
		job := backupJob(fmt.Sprintf("%s-%02d", name, n+1), name, o.DatabaseImage, o.ClientNode, host)
		if _, err := o.Client.BatchV1().Jobs(namespace).Create(ctx, job, metav1.CreateOptions{}); err != nil {
			return Round{}, err
		}
		if err := pause(ctx, jobInterval); err != nil {
			return Round{}, err
		}
	}
	jobs := map[string]*Job{}
	shown := 0
	for ended := 0; ended < o.Jobs; {
		select {
		case <-ctx.Done():
			return Round{}, fmt.Errorf("%d of %d Jobs ended: %w", ended, o.Jobs, ctx.Err())
		case s, ok := <-seen:
			if !ok {
				return Round{}, fmt.Errorf("the watch of Pods ended with %d of %d Jobs ended", ended, o.Jobs)
			}
			if o.note(ctx, jobs, s) {
				ended++
			}
		}
		if ended-shown >= 5 || ended == o.Jobs && shown != ended {
			_, _ = fmt.Fprintf(o.Progress, "round %s: %d/%d done\n", name, ended, o.Jobs)
			shown = ended
		}
	}
	round := Round{Name: name}
	for _, job := range jobs {
		round.Jobs = append(round.Jobs, *job)
	}
	slices.SortFunc(round.Jobs, func(a, b Job) int { return strings.Compare(a.Name, b.Name) })
	return round, o.Client.BatchV1().Jobs(namespace).DeleteCollection(ctx,
		metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)},
		metav1.ListOptions{LabelSelector: roundLabel + "=" + name})
}

// sighting is a Pod and when it was seen so.
type sighting struct {
	at  time.Time
	pod *corev1.Pod
}

// watch delivers every state of a round's Pods until ctx ends. The times are
// taken on arrival: a condition's own have no fraction of a second.
func (o Options) watch(ctx context.Context, round string) (<-chan sighting, error) {
	w, err := o.Client.CoreV1().Pods(namespace).Watch(ctx, metav1.ListOptions{LabelSelector: roundLabel + "=" + round})
	if err != nil {
		return nil, err
	}
	// Room for every state of every Pod, so that the Jobs' creation never
	// delays a time that is taken here.
	out := make(chan sighting, 64*o.Jobs)
	go func() {
		defer close(out)
		defer w.Stop()
		for event := range w.ResultChan() {
			if pod, ok := event.Object.(*corev1.Pod); ok {
				out <- sighting{at: time.Now(), pod: pod}
			}
		}
	}()
	return out, nil
}

// note adds a sighting to its Job and reports whether the Job ended with it.
func (o Options) note(ctx context.Context, jobs map[string]*Job, s sighting) bool {
	name := s.pod.Labels["batch.kubernetes.io/job-name"]
	job := jobs[name]
	if job == nil {
		job = &Job{Name: name}
		jobs[name] = job
	}
	if job.Scheduled.IsZero() && s.pod.Spec.NodeName != "" {
		job.Scheduled = s.at
	}
	if s.pod.Status.Phase != corev1.PodFailed && s.pod.Status.Phase != corev1.PodSucceeded || !job.Ended.IsZero() {
		return false
	}
	job.Ended = s.at
	job.Failed = s.pod.Status.Phase == corev1.PodFailed
	job.Unconfirmed = s.pod.Labels[roundLabel] == Gated && !conditionTrue(s.pod, v1alpha1.ConditionProgrammed)
	job.Output = o.log(ctx, s.pod.Name)
	job.Connected = firstConnect(job.Output)
	return true
}

// firstConnect returns the time that the client printed right before it
// dialled, or zero if it did not get there.
func firstConnect(log string) time.Time {
	for line := range strings.Lines(log) {
		if text, ok := strings.CutPrefix(line, "first-connect "); ok {
			if nanos, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64); err == nil {
				return time.Unix(0, nanos)
			}
		}
	}
	return time.Time{}
}

// log returns a Pod's log, or why it could not be had.
func (o Options) log(ctx context.Context, pod string) string {
	text, err := o.Client.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{}).DoRaw(ctx)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// churn lets Pods come and go on both nodes until ctx ends.
func (o Options) churn(ctx context.Context) error {
	pods := o.Client.CoreV1().Pods(namespace)
	nodes := []string{o.ServerNode, o.ClientNode}
	for n := 0; ; n++ {
		pod := churnPod(n, o.ProbeImage, nodes[n%len(nodes)])
		if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			return err
		}
		if n >= churnAlive {
			err := pods.Delete(ctx, fmt.Sprintf("churn-%d", n-churnAlive), metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))})
			if err != nil && !apierrors.IsNotFound(err) {
				return err
			}
		}
		if err := pause(ctx, churnInterval); err != nil {
			return err
		}
	}
}

// pause waits for d or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

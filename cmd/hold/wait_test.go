// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"log"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/api/programmed"
)

const (
	mine   = "uid=u;ips=10.0.0.1;boot=b"
	others = "uid=u;ips=10.0.0.2;boot=b"
)

func me(t *testing.T) programmed.Identity {
	t.Helper()
	id, err := programmed.New("u", []string{"10.0.0.1"}, "b")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestWait(t *testing.T) {
	// A step is what the file holds from a time after the start on.
	type step struct {
		at      time.Duration
		content string
		err     error
	}
	tests := map[string]struct {
		options  options
		steps    []step
		wantCode int
		wantAt   time.Duration
		wantLog  []string
	}{
		"a gate that was opened before is waited for to be opened anew": {
			options:  options{timeout: time.Minute},
			steps:    []step{{content: mine}, {at: 2 * time.Second, content: mine + ";again=1"}},
			wantCode: 0,
			wantAt:   2 * time.Second,
			wantLog: []string{
				"waiting up to 1m0s for network policies to be in force for " + mine,
				"the gate was opened before this hold started, perhaps for an earlier sandbox: waiting for it to be opened anew",
				"gate opened after 2s",
			},
		},
		"a gate that was opened again before is, too": {
			options:  options{timeout: time.Minute},
			steps:    []step{{content: mine + ";again=1"}, {at: 2 * time.Second, content: mine}},
			wantCode: 0,
			wantAt:   2 * time.Second,
			wantLog: []string{
				"waiting up to 1m0s for network policies to be in force for " + mine,
				"the gate was opened before this hold started, perhaps for an earlier sandbox: waiting for it to be opened anew",
				"gate opened after 2s",
			},
		},
		"a gate that nobody opens anew is waited for until the timeout": {
			options:  options{timeout: 5 * time.Second},
			steps:    []step{{content: mine}},
			wantCode: 0,
			wantAt:   5 * time.Second,
			wantLog: []string{
				"waiting up to 5s for network policies to be in force for " + mine,
				"the gate was opened before this hold started, perhaps for an earlier sandbox: waiting for it to be opened anew",
				"gate still shut after 5s: starting all the same (on-timeout is start)",
			},
		},
		"a gate that opens, with a line every ten seconds": {
			options:  options{timeout: time.Minute},
			steps:    []step{{at: 25 * time.Second, content: mine + "\n"}},
			wantCode: 0,
			wantAt:   25 * time.Second,
			wantLog: []string{
				"waiting up to 1m0s for network policies to be in force for " + mine,
				"still waiting after 10s; the Pod's condition says for what",
				"still waiting after 20s; the Pod's condition says for what",
				"gate opened after 25s",
			},
		},
		"an annotation that was written again opens the gate": {
			options:  options{timeout: time.Minute},
			steps:    []step{{}, {at: time.Second, content: mine + ";again=2"}},
			wantCode: 0,
			wantAt:   time.Second,
			wantLog: []string{
				"waiting up to 1m0s for network policies to be in force for " + mine,
				"gate opened after 1s",
			},
		},
		"an annotation for other addresses opens nothing and is told once": {
			options: options{timeout: time.Minute},
			steps: []step{
				{content: others}, {at: 2 * time.Second, content: ""}, {at: 3 * time.Second, content: others},
				{at: 5 * time.Second, content: mine},
			},
			wantCode: 0,
			wantAt:   5 * time.Second,
			wantLog: []string{
				"waiting up to 1m0s for network policies to be in force for " + mine,
				"the annotation policygate.io/programmed is for another Pod, other addresses or another boot: waiting for a new one",
				"gate opened after 5s",
			},
		},
		"content that merely begins like the identity opens nothing": {
			options:  options{timeout: time.Second},
			steps:    []step{{content: mine + ",10.0.0.2"}},
			wantCode: 0,
			wantAt:   time.Second,
			wantLog: []string{
				"waiting up to 1s for network policies to be in force for " + mine,
				"the annotation policygate.io/programmed is for another Pod, other addresses or another boot: waiting for a new one",
				"gate still shut after 1s: starting all the same (on-timeout is start)",
			},
		},
		"a file that cannot be read is waited for": {
			options:  options{timeout: time.Minute},
			steps:    []step{{err: errors.New("no such file")}, {at: time.Second / 2}, {at: time.Second, content: mine}},
			wantCode: 0,
			wantAt:   time.Second,
			wantLog: []string{
				"waiting up to 1m0s for network policies to be in force for " + mine,
				"cannot read the annotation: no such file",
				"gate opened after 1s",
			},
		},
		"a timeout with start lets the containers start": {
			options:  options{timeout: 5 * time.Second},
			wantCode: 0,
			wantAt:   5 * time.Second,
			wantLog: []string{
				"waiting up to 5s for network policies to be in force for " + mine,
				"gate still shut after 5s: starting all the same (on-timeout is start)",
			},
		},
		"a timeout with fail leaves the condition time to say so": {
			options:  options{timeout: 5 * time.Second, failOnTimeout: true},
			wantCode: 95,
			wantAt:   8 * time.Second,
			wantLog: []string{
				"waiting up to 5s for network policies to be in force for " + mine,
				"gate still shut after 5s: failing in 3s unless it opens",
				"gate still shut after 8s: exiting with status 95 (on-timeout is fail)",
			},
		},
		"a gate that opens within the grace is open": {
			options:  options{timeout: 5 * time.Second, failOnTimeout: true},
			steps:    []step{{at: 6 * time.Second, content: mine}},
			wantCode: 0,
			wantAt:   6 * time.Second,
			wantLog: []string{
				"waiting up to 5s for network policies to be in force for " + mine,
				"gate still shut after 5s: failing in 3s unless it opens",
				"gate opened after 6s",
			},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				ticker := time.NewTicker(pollInterval)
				defer ticker.Stop()
				var out bytes.Buffer
				h := hold{
					options:  tc.options,
					identity: me(t),
					ticks:    ticker.C,
					log:      log.New(&out, "", 0),
					read: func() ([]byte, error) {
						var current step
						for _, s := range tc.steps {
							if time.Since(start) >= s.at {
								current = s
							}
						}
						return []byte(current.content), current.err
					},
				}
				if got := h.wait(t.Context(), start); got != tc.wantCode {
					t.Errorf("exit status = %d, want %d", got, tc.wantCode)
				}
				if got := time.Since(start); got != tc.wantAt {
					t.Errorf("ended after %s, want %s", got, tc.wantAt)
				}
				if diff := cmp.Diff(tc.wantLog, strings.Split(strings.TrimSpace(out.String()), "\n")); diff != "" {
					t.Errorf("log (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestWaitStopsAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h := hold{
		options:  options{timeout: time.Minute},
		identity: me(t),
		read:     func() ([]byte, error) { return nil, nil },
		log:      log.New(&bytes.Buffer{}, "", 0),
	}
	if got := h.wait(ctx, time.Unix(0, 0)); got != exitSignal {
		t.Errorf("exit status = %d, want %d", got, exitSignal)
	}
}

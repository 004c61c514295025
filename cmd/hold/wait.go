// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log"
	"strings"
	"time"

	"github.com/policygate/policygate/api/programmed"
)

const (
	// failGrace lets the condition say Timeout before the container fails: a
	// Job's podFailurePolicy looks at the condition when the Pod fails.
	failGrace = 3 * time.Second
	// progressInterval bounds what a waiting hold writes to its log.
	progressInterval = 10 * time.Second
)

// hold waits for one gate.
type hold struct {
	options
	// identity is what the content must match for the gate to be open.
	identity programmed.Identity
	// read returns the content of the file. An absent annotation is empty.
	read func() ([]byte, error)
	// ticks carries the present time, as a time.Ticker's channel does.
	ticks <-chan time.Time
	log   *log.Logger

	// started is true once the file was read, and before is what it held then:
	// whoever wrote that knew nothing of this hold.
	started bool
	before  string
}

// wait returns the exit status: exitOpen once the file holds the identity, or
// when the timeout has run out and the Pod is to start; exitTimeout when it
// has and the Pod is to fail; exitSignal as soon as ctx is done.
func (h *hold) wait(ctx context.Context, start time.Time) int {
	h.log.Printf("waiting up to %s for network policies to be in force for %s", h.timeout, h.identity)
	var (
		said     = map[string]bool{} // troubles, each logged once
		timedOut bool
		progress = start
	)
	for now := start; ; {
		open, trouble := h.look()
		waited := now.Sub(start).Round(time.Millisecond)
		switch {
		case open:
			h.log.Printf("gate opened after %s", waited)
			return exitOpen
		case waited >= h.timeout && !h.failOnTimeout:
			h.log.Printf("gate still shut after %s: starting all the same (on-timeout is start)", waited)
			return exitOpen
		case waited >= h.timeout+failGrace:
			h.log.Printf("gate still shut after %s: exiting with status %d (on-timeout is fail)", waited, exitTimeout)
			return exitTimeout
		case waited >= h.timeout && !timedOut:
			timedOut = true
			h.log.Printf("gate still shut after %s: failing in %s unless it opens", waited, failGrace)
		case trouble != "" && !said[trouble]:
			said[trouble] = true
			h.log.Print(trouble)
		case now.Sub(progress) >= progressInterval:
			progress = now
			h.log.Printf("still waiting after %s; the Pod's condition says for what", waited.Round(time.Second))
		}
		select {
		case now = <-h.ticks:
		case <-ctx.Done():
			h.log.Print("told to stop before the gate opened")
			return exitSignal
		}
	}
}

// look returns whether the gate is open, and otherwise what is odd about the
// file, if anything is.
func (h *hold) look() (open bool, trouble string) {
	content, err := h.read()
	if err != nil {
		return false, fmt.Sprintf("cannot read the annotation: %v", err)
	}
	text := strings.TrimSpace(string(content))
	if !h.started {
		h.started, h.before = true, text
	}
	switch {
	case text == "":
		return false, ""
	case h.identity.Matches(text) && text != h.before:
		return true, ""
	case h.identity.Matches(text):
		// A new sandbox can get the address of the former one, while the rules
		// for it are gone.
		return false, "the gate was opened before this hold started, perhaps for an earlier sandbox: waiting for it to be opened anew"
	default:
		// A new sandbox or a reboot re-runs init containers while the old
		// annotation still stands.
		return false, "the annotation policygate.io/programmed is for another Pod, other addresses or another boot: waiting for a new one"
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command probe is the workload of the end-to-end tests: a client whose first
// act is to dial, and a server. It prints one JSON object per event, which the
// tests read from the Pod's log.
//
//	probe dial [-for DURATION] ADDRESS...   dial each once at once; exit 1 if one fails.
//	                                        With -for, dial again every 100 ms that long
//	probe serve ADDRESS...                  accept and close, until SIGTERM
//	probe sleep DURATION
//	probe bpf INTERFACE                     have a BPF program there, until SIGTERM
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Event is one line of the log.
type Event struct {
	// At is the wall clock's time in nanoseconds since 1970, taken before the dial.
	At int64 `json:"at"`
	// Addr is what was dialled or is served.
	Addr string `json:"addr"`
	// OK says that the connection was made.
	OK bool `json:"ok"`
	// Refused says that it was refused, as opposed to not answered.
	Refused bool `json:"refused,omitempty"`
	// Error is why not.
	Error string `json:"error,omitempty"`
	// Micros is how long the dial took.
	Micros int64 `json:"micros"`
}

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if len(args) < 2 {
		return usage()
	}
	switch args[0] {
	case "dial":
		return dialAll(ctx, args[1:])
	case "serve":
		return serve(ctx, args[1:])
	case "bpf":
		return holdBPF(ctx, args[1])
	case "sleep":
		d, err := time.ParseDuration(args[1])
		if err != nil {
			return usage()
		}
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
		return 0
	}
	return usage()
}

func usage() int {
	fmt.Fprintln(os.Stderr, "usage: probe dial [-for DURATION] ADDRESS... | serve ADDRESS... | sleep DURATION | bpf INTERFACE")
	return 2
}

func dialAll(ctx context.Context, addrs []string) int {
	var again time.Duration
	if addrs[0] == "-for" && len(addrs) > 2 {
		d, err := time.ParseDuration(addrs[1])
		if err != nil {
			return usage()
		}
		again, addrs = d, addrs[2:]
	}
	status := 0
	out := json.NewEncoder(os.Stdout)
	for end := time.Now().Add(again); ; {
		for _, addr := range addrs {
			event := dial(ctx, addr)
			if err := out.Encode(event); err != nil || !event.OK {
				status = 1
			}
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return status
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func dial(ctx context.Context, addr string) Event {
	start := time.Now()
	// Longer than the 1 s after which a lost SYN is sent again.
	dialer := net.Dialer{Timeout: 3 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	event := Event{At: start.UnixNano(), Addr: addr, OK: err == nil, Micros: time.Since(start).Microseconds()}
	if err != nil {
		event.Error = err.Error()
		event.Refused = errors.Is(err, syscall.ECONNREFUSED)
		return event
	}
	conn.Close()
	return event
}

func serve(ctx context.Context, addrs []string) int {
	for _, addr := range addrs {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				conn.Close()
			}
		}()
	}
	<-ctx.Done()
	return 0
}

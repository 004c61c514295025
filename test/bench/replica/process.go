// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/policygate/policygate/test/bench/store"
)

// clockTicks is the unit of the times in /proc/PID/stat: USER_HZ, which is 100
// on every architecture that Go knows.
const clockTicks = 100

// Options are what a Replica is made of.
type Options struct {
	Store *store.Store
	// Directory takes the socket.
	Directory string
	// Name is for people and for agents; each process has its own.
	Name          string
	Certificate   []byte // PEM, with Key
	Key           []byte
	ConditionType string
	// Lies has the barrier's LISTs return nothing.
	Lies    bool
	Verbose bool
	// Patched is told of each patch of a condition, nil of success.
	Patched func(namespace, name string, err error)
}

// Replica is the process as its driver sees it. Its methods may be called from
// any goroutine.
type Replica struct {
	options  Options
	command  *exec.Cmd
	wire     *wire
	hub      string
	echo     string
	unwatch  func()
	reaped   chan struct{}
	received chan struct{}

	mu sync.Mutex // guards what follows
	// queue is what is to be sent, in order; frozen are the kinds of which
	// nothing is sent, and held what was kept back of them.
	queue  []*frame
	frozen map[store.Kind]bool
	held   map[store.Kind][]*frame
	lists  map[store.Kind]int
	sent   uint64
	asked  map[uint64]chan *Told
	last   uint64
	wake   chan struct{}
	ended  chan struct{}
	once   sync.Once
}

// Start starts a process, syncs it and returns once it listens.
func Start(ctx context.Context, o Options) (*Replica, error) {
	socket := filepath.Join(o.Directory, o.Name+".sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listen for the replica: %w", err)
	}
	defer listener.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the own binary: %w", err)
	}
	command := exec.Command(self)
	command.Env = append(os.Environ(), socketVariable+"="+socket)
	command.Stderr = os.Stderr
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start the replica: %w", err)
	}
	r := &Replica{
		options: o, command: command, reaped: make(chan struct{}), received: make(chan struct{}),
		frozen: map[store.Kind]bool{}, held: map[store.Kind][]*frame{}, lists: map[store.Kind]int{},
		asked: map[uint64]chan *Told{}, wake: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	go func() {
		defer close(r.reaped)
		_ = command.Wait() // it is killed, or its error is on its standard error
	}()
	if err := r.begin(ctx, listener); err != nil {
		r.Kill()
		return nil, fmt.Errorf("replica %s: %w", o.Name, err)
	}
	return r, nil
}

func (r *Replica) begin(ctx context.Context, listener net.Listener) error {
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	accepted, failed := make(chan net.Conn, 1), make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			failed <- err
			return
		}
		accepted <- conn
	}()
	select {
	case conn := <-accepted:
		r.wire = newWire(conn)
	case err := <-failed:
		return err
	case <-r.reaped:
		return errors.New("the process has ended: see its standard error")
	}
	if err := r.wire.send(&frame{Op: opSettings, Settings: &settings{
		Certificate: r.options.Certificate, Key: r.options.Key,
		ConditionType: r.options.ConditionType, Lies: r.options.Lies, Verbose: r.options.Verbose,
	}}); err != nil {
		return err
	}
	go r.send()
	r.unwatch = r.options.Store.Watch(func(e store.Event) {
		r.put(&frame{Op: opEvent, Kind: e.Kind, Deleted: e.Deleted, Data: e.Data})
	})
	r.put(&frame{Op: opComplete})
	listening := make(chan struct{})
	go r.receive(listening)
	select {
	case <-listening:
		return nil
	case <-r.received:
		return errors.New("the process has gone: see its standard error")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// put queues a frame, or keeps it back. It does not block.
func (r *Replica) put(f *frame) {
	r.mu.Lock()
	if f.Op == opEvent && r.frozen[f.Kind] {
		r.held[f.Kind] = append(r.held[f.Kind], f)
	} else {
		r.queue = append(r.queue, f)
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// overtake queues a frame before all others: a LIST is often answered before a
// watch tells what is in it.
func (r *Replica) overtake(f *frame) {
	r.mu.Lock()
	r.queue = append([]*frame{f}, r.queue...)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// send sends what is queued until the process goes.
func (r *Replica) send() {
	for {
		r.mu.Lock()
		queue := r.queue
		r.queue = nil
		r.mu.Unlock()
		for _, f := range queue {
			if r.wire.send(f) != nil {
				return
			}
		}
		select {
		case <-r.ended:
			return
		case <-r.wake:
		}
	}
}

// receive answers what the process asks until it goes.
func (r *Replica) receive(listening chan<- struct{}) {
	defer close(r.received)
	for {
		f, err := r.wire.receive()
		if err != nil {
			return
		}
		switch f.Op {
		case opReady:
			r.hub, r.echo = f.Ready.Hub, f.Ready.Echo
			close(listening)
		case opList:
			r.mu.Lock()
			r.lists[f.Kind]++
			r.mu.Unlock()
			r.overtake(&frame{Op: opListed, ID: f.ID, Versions: r.options.Store.List(f.Kind)})
		case opPatch:
			_, err := r.options.Store.PatchStatus(f.Namespace, f.Name, f.Data)
			if r.options.Patched != nil {
				r.options.Patched(f.Namespace, f.Name, err)
			}
			r.put(&frame{Op: opPatched, ID: f.ID, Status: statusOf(err)})
		case opTold:
			r.mu.Lock()
			answer := r.asked[f.ID]
			delete(r.asked, f.ID)
			r.sent = f.Told.Agents
			r.mu.Unlock()
			if answer != nil {
				answer <- f.Told
			}
		case opSettings, opEvent, opComplete, opLead, opListed, opPatched, opTell:
			return // not for this end
		}
	}
}

// statusOf returns an API server's error as it travels.
func statusOf(err error) []byte {
	var status apierrors.APIStatus
	if err == nil || !errors.As(err, &status) {
		return nil
	}
	data, err := json.Marshal(status.Status())
	if err != nil {
		return nil
	}
	return data
}

// Name is that of the options.
func (r *Replica) Name() string { return r.options.Name }

// Address is where the hub listens.
func (r *Replica) Address() string { return r.hub }

// Echo is where the bare echo listens.
func (r *Replica) Echo() string { return r.echo }

// Lead has the replica write messages, or cease to.
func (r *Replica) Lead(lead bool) { r.put(&frame{Op: opLead, Lead: lead}) }

// Freeze keeps the events of a kind back until Thaw.
func (r *Replica) Freeze(kind store.Kind) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen[kind] = true
}

// Thaw delivers what Freeze has kept back.
func (r *Replica) Thaw(kind store.Kind) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.frozen, kind)
	r.queue = append(r.queue, r.held[kind]...)
	delete(r.held, kind)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Lists returns how many LISTs of a kind the replica has asked for.
func (r *Replica) Lists(kind store.Kind) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lists[kind]
}

// Sent returns the bytes that had gone to agents when Tell was called last.
func (r *Replica) Sent() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent
}

// Tell returns what the replica has timed since the last call.
func (r *Replica) Tell(ctx context.Context) (*Told, error) {
	answer := make(chan *Told, 1)
	r.mu.Lock()
	r.last++
	id := r.last
	r.asked[id] = answer
	r.mu.Unlock()
	r.put(&frame{Op: opTell, ID: id})
	select {
	case told := <-answer:
		return told, nil
	case <-r.received:
		return nil, fmt.Errorf("replica %s has gone", r.options.Name)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Kill ends the process at once, with SIGKILL, and waits until it is gone.
func (r *Replica) Kill() {
	r.once.Do(func() {
		if r.unwatch != nil {
			r.unwatch()
		}
		_ = r.command.Process.Kill() // it may have ended by itself
		<-r.reaped
		close(r.ended)
		if r.wire != nil {
			r.wire.conn.Close()
		}
	})
}

// Usage is what a process has taken.
type Usage struct {
	// Resident and Peak are bytes of memory.
	Resident, Peak uint64
	// CPU is the time of all processors.
	CPU time.Duration
}

// Usage returns what the process has taken until now.
func (r *Replica) Usage() (Usage, error) { return UsageOf(r.command.Process.Pid) }

// UsageOf returns what a process has taken until now, as /proc says.
func UsageOf(pid int) (Usage, error) {
	var u Usage
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Usage{}, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			continue
		}
		switch name {
		case "VmRSS":
			u.Resident = kib << 10
		case "VmHWM":
			u.Peak = kib << 10
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Usage{}, err
	}
	// The name, in parentheses, may hold anything; utime and stime are the
	// 12th and 13th fields behind it.
	fields := strings.Fields(string(stat)[strings.LastIndexByte(string(stat), ')')+1:])
	if len(fields) < 13 {
		return Usage{}, fmt.Errorf("/proc/%d/stat has %d fields: want more", pid, len(fields))
	}
	for _, text := range fields[11:13] {
		ticks, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return Usage{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		u.CPU += time.Duration(ticks) * time.Second / clockTicks
	}
	return u, nil
}

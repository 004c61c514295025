// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// agentsOf is the environment variable that makes this binary be agents: the
// memory of a hub is measured in a process that has none of theirs.
const agentsOf = "HUB_TEST_AGENTS_OF"

func TestMain(m *testing.M) {
	if address := os.Getenv(agentsOf); address != "" {
		if err := beAgents(address, os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// beAgents opens as many sessions as number says, with a hub whose certificate
// comes on standard input. It writes a line once all are synced and ends them
// when standard input does.
func beAgents(address, number string) error {
	agents, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	input := bufio.NewReader(os.Stdin)
	var certificate []byte
	for !bytes.HasSuffix(certificate, []byte("-----END CERTIFICATE-----\n")) {
		line, err := input.ReadBytes('\n')
		if err != nil {
			return err
		}
		certificate = append(certificate, line...)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certificate)
	creds := credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "hub", MinVersion: tls.VersionTLS13})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i := range agents {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds))
		if err != nil {
			return err
		}
		defer conn.Close() //nolint:errcheck // the process ends
		stream, err := hubv1.NewHubClient(conn).Session(
			metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+claiming("", fmt.Sprint("token-of-n", i))))
		if err != nil {
			return err
		}
		if err := stream.Send(&hubv1.AgentMessage{Message: &hubv1.AgentMessage_Hello{Hello: &hubv1.Hello{BootId: "b"}}}); err != nil {
			return err
		}
		for m := new(hubv1.HubMessage); m.GetSynced() == nil; {
			if m, err = stream.Recv(); err != nil {
				return err
			}
		}
	}
	if _, err := os.Stdout.WriteString("synced\n"); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, input)
	return err
}

// usage is what this process uses.
type usage struct{ resident, heap, stack, goroutines float64 }

func used(b *testing.B) usage {
	b.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	var total, resident float64
	if _, err := fmt.Sscan(string(statm), &total, &resident); err != nil {
		b.Fatal(err)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{
		resident: resident * float64(os.Getpagesize()), heap: float64(m.HeapAlloc), stack: float64(m.StackInuse),
		goroutines: float64(runtime.NumGoroutine()),
	}
}

// worked returns the CPU time that this process has used.
func worked(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkSessions tells what a session costs a hub: CPU time to begin, a
// review apart, and memory while nothing happens. What one round has freed the
// next may use again: once (-benchtime 1x) tells most.
func BenchmarkSessions(b *testing.B) {
	for _, agents := range []int{100, 1000} {
		b.Run(fmt.Sprint("agents=", agents), func(b *testing.B) {
			for b.Loop() {
				f := serve(b, clock.RealClock{}, reviews{})
				for i := range agents {
					f.node(fmt.Sprint("n", i))
				}
				before := used(b)
				began := worked(b)
				end := f.idle(b, agents)
				beginning := worked(b) - began
				after := used(b)
				end()
				// Or the next round would count their memory.
				for ended := 0; ended < agents; _, ended = f.sink.count() {
					time.Sleep(time.Millisecond)
				}
				per := func(after, before float64) float64 { return (after - before) / float64(agents) }
				b.ReportMetric(float64(beginning.Microseconds())/float64(agents), "µs-CPU/session")
				b.ReportMetric(per(after.resident, before.resident)/1024, "KiB-RSS/session")
				b.ReportMetric(per(after.heap, before.heap)/1024, "KiB-heap/session")
				b.ReportMetric(per(after.stack, before.stack)/1024, "KiB-stack/session")
				b.ReportMetric(per(after.goroutines, before.goroutines), "goroutines/session")
			}
		})
	}
}

// idle opens sessions from another process. It returns what ends them.
func (f *fixture) idle(b *testing.B, agents int) (end func()) {
	b.Helper()
	binary, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	command := exec.CommandContext(b.Context(), binary, strconv.Itoa(agents))
	command.Env = append(os.Environ(), agentsOf+"="+f.Addr().String())
	command.Stderr = os.Stderr
	input, err := command.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	output, err := command.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	var once sync.Once
	end = func() {
		once.Do(func() {
			_ = input.Close()
			_ = command.Wait()
		})
	}
	b.Cleanup(end)
	if err := pem.Encode(input, &pem.Block{Type: "CERTIFICATE", Bytes: f.certificate}); err != nil {
		b.Fatal(err)
	}
	if line, err := bufio.NewReader(output).ReadString('\n'); err != nil || line != "synced\n" {
		b.Fatalf("the agents say %q: %v", line, err)
	}
	return end
}

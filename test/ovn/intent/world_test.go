// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/northbound"
	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/internal/ovs/ovsdb"
	"github.com/policygate/policygate/test/ovn/fixture"
)

// world is a running OVN with Pods, and the dataplane of its northbound database.
type world struct {
	*fixture.Fixture
	*northbound.Dataplane
	tb      testing.TB
	client  *ovsdb.Client
	changed chan struct{}
	pods    []*fixture.Pod
	// on are the logical switches of ports, by address.
	on map[netip.Addr]endpoint
}

// endpoint is what a trace has to know of an address.
type endpoint struct{ port, on, mac, gateway string }

// The second switch has a port with this address and no Pod.
const (
	farPort, farSwitch, farMAC, farGateway = "far.x", "far", "0a:00:00:00:17:05", "00:00:00:00:10:03"
	podSwitch, podGateway                  = "ovn-default", "00:00:00:00:10:01"
)

func farAddress() netip.Addr { return netip.MustParseAddr("10.17.0.5") }

// newWorld starts an OVN with Pods a, b and so on in namespaces db and web by
// turns, and one port on another switch.
func newWorld(tb testing.TB, pods int, o fixture.Options) *world {
	tb.Helper()
	w := &world{Fixture: fixture.Start(tb, o), tb: tb, changed: make(chan struct{}, 1), on: map[netip.Addr]endpoint{}}
	var options []fixture.PodOptions
	for i := range pods {
		options = append(options, fixture.PodOptions{
			Namespace: []string{"db", "web"}[i%2], Name: string(rune('a' + i)), Node: "n1", Unplugged: true,
		})
	}
	w.pods = w.AddPods(options...)
	for _, p := range w.pods {
		for _, ip := range p.IPs() {
			w.on[ip] = endpoint{p.Port(), podSwitch, p.MAC(), podGateway}
		}
	}
	w.must(w.Nbctl(tb.Context(), "ls-add", farSwitch,
		"--", "lrp-add", "ovn-cluster", "ovn-cluster-far", farGateway, "10.17.0.1/16",
		"--", "lsp-add", farSwitch, "far-ovn-cluster", "--", "lsp-set-type", "far-ovn-cluster", "router",
		"--", "lsp-set-addresses", "far-ovn-cluster", "router", "--", "lsp-set-options", "far-ovn-cluster", "router-port=ovn-cluster-far",
		"--", "lsp-add", farSwitch, farPort, "--", "lsp-set-addresses", farPort, farMAC+" "+farAddress().String(),
		"--", "set", "Logical_Switch_Port", farPort, "external_ids:pod=x/far"))
	w.on[farAddress()] = endpoint{farPort, farSwitch, farMAC, farGateway}

	var err error
	w.client, err = ovsdb.New(ovsdb.Options{
		Endpoints: []string{"unix:" + w.Northbound()}, Database: northbound.Database, Tables: northbound.Tables(), Leader: true,
		Clock: clock.RealClock{}, Log: logr.Discard(),
		Changed: func() {
			w.Changed()
			select {
			case w.changed <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		tb.Fatal(err)
	}
	w.Dataplane = northbound.New(northbound.Views(w.client))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.client.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	return w
}

func (w *world) must(out string, err error) string {
	w.tb.Helper()
	if err != nil {
		w.tb.Fatal(err)
	}
	return out
}

// verdicts returns what the database has of each flow.
func (w *world) verdicts(flows ...flow.Flow) ([]flow.Verdict, error) {
	look, err := w.Look(w.tb.Context())
	if err != nil {
		return nil, err
	}
	questions := make([]northbound.Question, len(flows))
	for i, f := range flows {
		questions[i].Flow = f
	}
	answers, err := look.Together(w.tb.Context(), questions)
	if err != nil {
		return nil, err
	}
	verdicts := make([]flow.Verdict, len(answers))
	for i, a := range answers {
		verdicts[i] = a.Verdict
	}
	return verdicts, nil
}

// patience is how long what takes milliseconds may take.
const patience = 20 * time.Second

// await waits until what the database has is as it should be.
func (w *world) await(is func() error) {
	w.tb.Helper()
	deadline := time.After(patience)
	for {
		err := is()
		if err == nil {
			return
		}
		select {
		case <-w.changed:
		case <-deadline:
			w.tb.Fatal(err)
		}
	}
}

// awaitVersion waits until the client has seen all that was written before: it
// writes a mark, and waits for that.
func (w *world) awaitVersion(mark string) {
	w.tb.Helper()
	w.must(w.Nbctl(w.tb.Context(), "--", "set", "Logical_Switch_Port", farPort, "external_ids:mark="+mark))
	w.await(func() error {
		v, err := w.client.View()
		if err != nil {
			return err
		}
		for r := range v.Rows("Logical_Switch_Port") {
			if got, _ := r.Key("external_ids", "mark"); got == mark {
				return nil
			}
		}
		return fmt.Errorf("mark %s has not come", mark)
	})
}

// trace returns whether OVN's logical flows let a packet through, by ovn-trace.
func (w *world) trace(f flow.Flow) (allowed bool, out string) {
	w.tb.Helper()
	src, dst := w.on[f.Src], w.on[f.Dst]
	mac := dst.mac
	if src.on != dst.on {
		mac = src.gateway
	}
	ip := "ip4"
	if f.Src.Is6() {
		ip = "ip6"
	}
	packet := fmt.Sprintf("inport==%q && eth.src==%s && eth.dst==%s && ip.ttl==64 && %s.src==%s && %s.dst==%s && %s && %s.src==40000 && %s.dst==%d",
		src.port, src.mac, mac, ip, f.Src, ip, f.Dst, f.Protocol, f.Protocol, f.Protocol, f.Port)
	command := exec.CommandContext(w.tb.Context(), "ovn-trace", "--db=unix:"+w.Southbound(), "--ct=new", "--ct=new", "--ct=new", "--ct=new", "--ct=new", "--ct=new",
		src.on, packet)
	text, err := command.CombinedOutput()
	if err != nil {
		w.tb.Fatalf("%s: %v\n%s", command, err, text)
	}
	return strings.Contains(string(text), fmt.Sprintf("output to %q", dst.port)), string(text)
}

// worlds returns how many worlds a test makes up: INTENT_WORLDS for long.
func worlds(t *testing.T, usually uint64) uint64 {
	t.Helper()
	text, set := os.LookupEnv("INTENT_WORLDS")
	if !set {
		return usually
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 {
		t.Fatalf("INTENT_WORLDS %q: want how many worlds to make up", text)
	}
	return n
}

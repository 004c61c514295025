// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/utils/clock"

	"github.com/policygate/policygate/internal/ovs/ovsdb"
	"github.com/policygate/policygate/internal/ovs/unixctl"
)

// vswitch is an ovs-vswitchd with its database, in a network namespace of its
// own. Its bridges are of datapaths that need no kernel.
type vswitch struct {
	*process
	t  *testing.T
	db *server
}

func startVswitch(t *testing.T) *vswitch {
	t.Helper()
	v := &vswitch{t: t, db: serve(t, vswitchSchema)}
	run(t, "ovs-vsctl", "--no-wait", "--db="+v.db.endpoint(), "init")
	v.start()
	return v
}

func (v *vswitch) start() {
	v.t.Helper()
	v.process = start(v.t, func(cmd *exec.Cmd) {
		cmd.Env = append(os.Environ(), "OVS_RUNDIR="+v.db.dir, "OVS_LOGDIR="+v.db.dir, "OVS_DBDIR="+v.db.dir)
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNET
	}, "ovs-vswitchd", v.db.endpoint(), "--enable-dummy", "--pidfile", "--no-chdir")
	await(v.t, "ovs-vswitchd listens", func() bool {
		return answers(filepath.Join(v.db.dir, fmt.Sprintf("ovs-vswitchd.%d.ctl", v.cmd.Process.Pid)))
	}, v.process)
}

// vsctl configures it and waits until it has done that.
func (v *vswitch) vsctl(args ...string) {
	v.t.Helper()
	run(v.t, "ovs-vsctl", append([]string{"--timeout=20", "--db=" + v.db.endpoint()}, args...)...)
}

// flow adds a flow to br-int.
func (v *vswitch) flow(flow string) {
	v.t.Helper()
	run(v.t, "ovs-ofctl", "add-flow", "unix:"+filepath.Join(v.db.dir, "br-int.mgmt"), flow)
}

func (v *vswitch) connect() *unixctl.Session {
	v.t.Helper()
	s, err := unixctl.Connect(v.t.Context(), unixctl.Options{RunDir: v.db.dir, Clock: clock.RealClock{}})
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(s.Close)
	return s
}

func (v *vswitch) bridge() {
	v.t.Helper()
	v.vsctl("add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=dummy", "fail-mode=secure",
		"--", "add-port", "br-int", "p1", "--", "set", "interface", "p1", "type=dummy", "ofport_request=1",
		"--", "add-port", "br-int", "p2", "--", "set", "interface", "p2", "type=dummy", "ofport_request=2", "external_ids:iface-id=srv.db")
}

func TestTraces(t *testing.T) {
	v := startVswitch(t)
	v.bridge()
	v.flow("in_port=1,ip,actions=output:2")
	s := v.connect()

	version, err := s.Version(t.Context())
	if err != nil || !strings.Contains(version, "ovs-vswitchd (Open vSwitch)") || strings.Contains(version, "\n") {
		t.Errorf("version %q, %v", version, err)
	}
	for flow, want := range map[string]string{
		"in_port=1,tcp,nw_dst=10.16.0.5,tp_dst=80": "Datapath actions: 2",
		"in_port=2,tcp,nw_dst=10.16.0.5,tp_dst=80": "Datapath actions: drop",
	} {
		text, err := s.Trace(t.Context(), "br-int", flow)
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("trace %s: %v, no %q in:\n%s", flow, err, want, text)
		}
	}
	for want, arguments := range map[string][2]string{
		"unknown bridge":           {"br-nope", "in_port=1"},
		"the server says":          {"br-int", "banana"},
		"begins with a dash":       {"br-int", "-generate"},
		`"-generate" begins`:       {"-generate", "in_port=1"},
		"is not printable ASCII":   {"br-int", "in_port=1\n"},
		"contains a space":         {"br-int x", "in_port=1"},
		"flow: empty":              {"br-int", ""},
		"bridge of 300 bytes":      {strings.Repeat("b", 300), "in_port=1"},
		"flow of 5000 bytes: more": {"br-int", strings.Repeat("f", 5000)},
	} {
		if text, err := s.Trace(t.Context(), arguments[0], arguments[1]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("trace %q: %q, error %v, want %q", arguments, text, err, want)
		}
	}
}

func TestWaitingForRevalidators(t *testing.T) {
	v := startVswitch(t)
	v.bridge()
	s := v.connect()
	if err := s.WaitRevalidators(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.vsctl("add-br", "br-other", "--", "set", "bridge", "br-other", "datapath_type=netdev")
	if err := s.WaitRevalidators(t.Context()); !errors.Is(err, unixctl.ErrSeveralDatapaths) {
		t.Errorf("error %v, want that there are several datapaths", err)
	}
}

func TestVswitchThatIsRestarted(t *testing.T) {
	v := startVswitch(t)
	v.bridge()
	first, same := v.connect(), v.connect()
	if first.ID() != same.ID() {
		t.Errorf("one process has the IDs %s and %s", first.ID(), same.ID())
	}
	v.signal(syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := first.Trace(ctx, "br-int", "in_port=1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("trace of a daemon that is stopped: %v", err)
	}
	v.kill()
	if _, err := first.Trace(t.Context(), "br-int", "in_port=1"); err == nil {
		t.Error("trace of a daemon that has died: no error")
	}
	if err := first.WaitRevalidators(t.Context()); err == nil {
		t.Error("wait for a daemon that has died: no error")
	}
	if s, err := unixctl.Connect(t.Context(), unixctl.Options{RunDir: v.db.dir, Clock: clock.RealClock{}}); err == nil {
		t.Errorf("connected to a daemon that has died: %s", s.ID())
	}
	v.start()
	if next := v.connect(); next.ID() == first.ID() {
		t.Errorf("two processes have the ID %s", next.ID())
	}
}

func TestInterfacesOfAnOVS(t *testing.T) {
	v := startVswitch(t)
	c := follow(t, ovsdb.Options{
		Endpoints: []string{v.db.endpoint()},
		Database:  "Open_vSwitch",
		Tables: []ovsdb.Table{
			{Name: "Interface", Columns: []ovsdb.Column{
				{Name: "name", As: ovsdb.String}, {Name: "type", As: ovsdb.String}, {Name: "ofport", As: ovsdb.Int}, {Name: "external_ids", As: ovsdb.Map},
			}},
			{Name: "Bridge", Columns: []ovsdb.Column{{Name: "name", As: ovsdb.String}, {Name: "external_ids", As: ovsdb.Map}, {Name: "ports", As: ovsdb.UUIDs}}},
		},
	})
	c.awaitView("it is in sync", whatever)
	v.bridge()
	view := c.awaitView("the port has a number", func(view *ovsdb.View) bool {
		p := find(view, "Interface", "p2")
		return p != nil && p.Int("ofport") == 2
	})
	if id, ok := find(view, "Interface", "p2").Key("external_ids", "iface-id"); id != "srv.db" || !ok {
		t.Errorf("iface-id %q, %v", id, ok)
	}
	if n := len(find(view, "Bridge", "br-int").UUIDs("ports")); n != 3 {
		t.Errorf("the bridge has %d ports, want 3", n)
	}
	v.vsctl("set", "bridge", "br-int", "external_ids:ovn-nb-cfg=7")
	c.awaitView("the acknowledgement is there", func(view *ovsdb.View) bool {
		cfg, _ := find(view, "Bridge", "br-int").Key("external_ids", "ovn-nb-cfg")
		return cfg == "7"
	})
	v.vsctl("del-port", "p2")
	c.awaitView("the port is gone", func(view *ovsdb.View) bool { return find(view, "Interface", "p2") == nil })
}

// find returns the row of that name, or nil.
func find(v *ovsdb.View, table, name string) *ovsdb.Row {
	for row := range v.Rows(table) {
		if row.String("name") == name {
			return row
		}
	}
	return nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recorded returns a trace of the real ovs-vswitchd 3.1.0 with OVN 23.03.1.
func recorded(tb testing.TB, name string) string {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "traces", name+".txt"))
	if err != nil {
		tb.Fatal(err)
	}
	return string(text)
}

func TestRecordedTracesEndAsTheirPacketsDo(t *testing.T) {
	srv := keys{datapath: 2, port: 2}
	for name, want := range map[string]struct {
		end          end
		why          string
		outputs      []int
		entry, place keys
	}{
		"keys":                        {end: dropped, entry: srv, place: keys{2, 0}},
		"ingress-allowed":             {end: output, outputs: []int{3}, entry: keys{2, 0x7ffe}, place: srv},
		"ingress-allowed-v6":          {end: output, outputs: []int{3}, entry: keys{2, 0x7ffe}, place: srv},
		"ingress-allowed-logged":      {end: output, outputs: []int{3}, entry: keys{2, 0x7ffe}, place: srv},
		"ingress-allowed-from-ovn0":   {end: output, outputs: []int{3}, entry: keys{3, 2}, place: srv},
		"ingress-unselected":          {end: output, outputs: []int{5}, entry: keys{4, 0x7ffe}, place: keys{4, 2}},
		"ingress-control":             {end: output, outputs: []int{3}, entry: keys{2, 0x7ffe}, place: srv},
		"ingress-control-v6":          {end: output, outputs: []int{3}, entry: keys{2, 0x7ffe}, place: srv},
		"ingress-denied":              {end: dropped, entry: keys{2, 0x7ffe}, place: srv},
		"ingress-denied-v6":           {end: dropped, entry: keys{2, 0x7ffe}, place: srv},
		"ingress-denied-logged":       {end: dropped, entry: keys{2, 0x7ffe}, place: srv},
		"ingress-denied-metered":      {end: dropped, entry: keys{2, 0x7ffe}, place: srv},
		"ingress-denied-from-ovn0":    {end: dropped, entry: keys{3, 2}, place: srv},
		"ingress-rejected":            {why: "sent to ovn-controller", entry: keys{2, 0x7ffe}, place: srv},
		"ingress-other-key":           {end: dropped, entry: keys{77, 0x7ffe}, place: keys{77, 2}},
		"local-allowed":               {end: output, outputs: []int{4}, entry: srv, place: keys{2, 4}},
		"local-allowed-routed":        {end: output, outputs: []int{5}, entry: srv, place: keys{2, 1}},
		"local-denied-at-source":      {end: dropped, entry: keys{2, 4}, place: keys{2, 0}},
		"local-denied-at-destination": {end: dropped, entry: keys{4, 2}, place: srv},
		"egress-allowed":              {end: output, outputs: []int{1}, entry: srv, place: keys{2, 3}},
		"egress-allowed-routed":       {end: output, outputs: []int{1}, entry: keys{2, 4}, place: keys{2, 1}},
		"egress-allowed-external":     {end: output, outputs: []int{2}, entry: keys{2, 4}, place: keys{2, 1}},
		"egress-denied":               {end: dropped, entry: keys{2, 4}, place: keys{2, 0}},
		"egress-denied-routed":        {end: dropped, entry: keys{2, 4}, place: keys{2, 0}},
		"egress-control":              {end: output, outputs: []int{1}, entry: keys{2, 4}, place: keys{2, 3}},
		"egress-control-routed":       {why: "sent to ovn-controller", entry: keys{2, 4}, place: keys{2, 1}},
		"egress-control-unknown-mac":  {end: dropped, entry: keys{2, 4}, place: keys{2, 0}},
		"egress-no-route":             {why: "ends without being sent or dropped: ct(commit", entry: srv, place: keys{2, 1}},
		"egress-unresolved":           {why: "sent to ovn-controller", entry: srv, place: keys{2, 1}},
		"egress-virtual-server":       {why: "does not go on after hash(l4(0)),recirc(0x37), no live bucket", entry: keys{2, 4}, place: keys{2, 0}},
		"arp-answered":                {end: output, outputs: []int{3}, entry: srv, place: srv},
		"arp-router":                  {end: output, outputs: []int{2}, entry: keys{3, 2}, place: keys{3, 2}},
		"arp-flooded":                 {why: "sent to ovn-controller", outputs: []int{1, 4}, entry: srv, place: keys{2, 0x8000}},
		"nd-answered":                 {why: "sent to ovn-controller", entry: srv, place: keys{2, 0}},
		"nd-router":                   {why: "sent to ovn-controller", entry: keys{3, 2}, place: keys{3, 0}},
		"nd-flooded":                  {why: "sent to ovn-controller", outputs: []int{1, 4}, entry: srv, place: keys{2, 0x8000}},
		"disabled-port-control":       {end: dropped, entry: keys{2, 3}, place: keys{2, 0}},
		"unbound-port-keys":           {end: dropped},
		"unbound-port-from-ovn0":      {end: dropped, entry: keys{3, 2}, place: keys{3, 1}},
		"unbound-port-from-pod":       {why: "ends without being sent or dropped", entry: keys{2, 3}, place: srv},
		"empty-bridge":                {end: dropped},
		"empty-bridge-keys":           {end: dropped},
		"empty-bridge-control":        {end: dropped},
	} {
		t.Run(name, func(t *testing.T) {
			o := outcomeOf(recorded(t, name))
			if o.end != want.end || !strings.Contains(o.why, want.why) || (o.why == "") != (want.why == "") {
				t.Errorf("it ends %d because %q, want %d because %q", o.end, o.why, want.end, want.why)
			}
			if diff := cmp.Diff(want.outputs, o.outputs()); diff != "" {
				t.Errorf("outputs (-want +got):\n%s", diff)
			}
			if o.entry() != want.entry || o.place() != want.place {
				t.Errorf("from %+v to %+v, want from %+v to %+v", o.entry(), o.place(), want.entry, want.place)
			}
			if o.source || o.destination {
				t.Errorf("addresses are taken to be rewritten")
			}
		})
	}
}

func TestAllRecordedTracesAreTested(t *testing.T) {
	files, err := filepath.Glob("testdata/traces/*.txt")
	if err != nil || len(files) != 43 {
		t.Errorf("%d recorded traces (%v), want the 43 of TestRecordedTracesEndAsTheirPacketsDo", len(files), err)
	}
}

func TestAChangedTraceIsUnclear(t *testing.T) {
	for name, tc := range map[string]struct {
		trace, old, new, why string
	}{
		"translation failed": {
			"ingress-allowed", "Datapath actions: ct(commit,zone=10,mark=0/0x1,nat(src)),6",
			"Datapath actions: ct(commit,zone=10,mark=0/0x1,nat(src)),6\nTranslation failed (Recursion too deep), packet is dropped.", "Translation failed",
		},
		"an action of a later version":    {"ingress-allowed", "nat(src)),6", "nat(src)),psample(group=1),6", "psample"},
		"an argument of a later version":  {"ingress-allowed", "ct(commit,", "ct(commit,lazy,", "lazy"},
		"two outputs":                     {"ingress-allowed", "nat(src)),6", "nat(src)),6,7", "several ports"},
		"a clone with an output":          {"ingress-allowed", "nat(src)),6", "nat(src)),clone(7),6", "several ports"},
		"output and drop":                 {"ingress-allowed", "nat(src)),6", "nat(src)),6,drop", "drop"},
		"a header for no port":            {"egress-allowed", "out_port(2)),4", "out_port(2))", "no port"},
		"an output before it comes again": {"ingress-allowed", "ct(zone=10),recirc", "6,ct(zone=10),recirc", "not go on with the packet alone"},
		"two recirculations":              {"ingress-allowed", "ct(zone=10),recirc", "recirc(0x1),ct(zone=10),recirc", "not go on with the packet alone"},
		"another recirculation":           {"ingress-denied", "\nrecirc(0x", "\nrecirc(0x1", "not go on with the packet alone"},
		"another state of the connection": {"ingress-denied", "trk|new (use", "trk|est (use", "resume after connection tracking"},
		"a sample of what is dropped":     {"ingress-denied", "Datapath actions: drop", "Datapath actions: sample(sample=100.0%,actions(userspace(pid=0)))", "sample"},
		"a flow twice in one section":     {"ingress-denied", "Megaflow: ", "Final flow: tcp\nMegaflow: ", "ends before"},
		"a register twice":                {"ingress-denied", ",metadata=0x2,", ",metadata=0x2,metadata=0x3,", "twice"},
		"a notice in front":               {"ingress-allowed", "Flow: tcp", "note\nFlow: tcp", "where a flow was expected"},
		"a copy for ovn-controller":       {"ingress-allowed-logged", "userdata=00.00.00.07", "userdata=00.00.00.08", "sent to ovn-controller"},
		"a log of which nothing is said":  {"ingress-denied-logged", "controller(userdata", "controller(data", "sent to ovn-controller"},
	} {
		t.Run(name, func(t *testing.T) {
			text := recorded(t, tc.trace)
			if tc.trace == "ingress-allowed" {
				text = latest(t, "ingress-allowed")
			}
			at := strings.LastIndex(text, tc.old)
			if strings.HasPrefix(tc.old, "ct(zone=10)") || tc.old == "Flow: tcp" {
				at = strings.Index(text, tc.old)
			}
			if at < 0 {
				t.Fatalf("there is no %q", tc.old)
			}
			o := outcomeOf(text[:at] + tc.new + text[at+len(tc.old):])
			if o.end != unclear || !strings.Contains(o.why, tc.why) {
				t.Errorf("it ends %d because %q, want unclear because %q", o.end, o.why, tc.why)
			}
		})
	}
}

// latest returns a recorded trace with connection tracking as it is without
// load balancers.
func latest(tb testing.TB, name string) string {
	return strings.ReplaceAll(recorded(tb, name), "ct(zone=10,nat)", "ct(zone=10)")
}

func TestRewrittenAddressesAreSeen(t *testing.T) {
	for name, tc := range map[string]struct {
		old, new            string
		source, destination bool
	}{
		"by connection tracking, the source":      {"nat(src)),6", "nat(src=10.0.0.1)),6", true, false},
		"by connection tracking, the destination": {"nat(src)),6", "nat(dst=10.0.0.1:80)),6", false, true},
		"the header's source":                     {"nat(src)),6", "nat(src)),set(ipv4(src=10.0.0.1)),6", true, false},
		"the header's destination":                {"nat(src)),6", "nat(src)),set(ipv4(dst=10.0.0.1)),6", false, true},
		"the port":                                {"nat(src)),6", "nat(src)),set(tcp(dst=81)),6", false, true},
		"in a later section":                      {"nw_dst=10.16.0.5,nw_tos=0,nw_ecn=0,nw_ttl=64,nw_frag=no,tp_src=40000,tp_dst=80,tcp_flags=syn\n\nbridge", "nw_dst=10.16.0.9,nw_tos=0,nw_ecn=0,nw_ttl=64,nw_frag=no,tp_src=40000,tp_dst=80,tcp_flags=syn\n\nbridge", false, true},
		"the time to live":                        {"nat(src)),6", "nat(src)),set(ipv4(ttl=63)),6", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			text := recorded(t, "ingress-allowed")
			at := strings.LastIndex(text, tc.old)
			if at < 0 {
				t.Fatalf("there is no %q", tc.old)
			}
			o := outcomeOf(text[:at] + tc.new + text[at+len(tc.old):])
			if o.end != output || o.source != tc.source || o.destination != tc.destination {
				t.Errorf("end %d (%s), source %t, destination %t", o.end, o.why, o.source, o.destination)
			}
		})
	}
}

func TestAConnectionThatIsRewrittenIsUnclear(t *testing.T) {
	text := strings.Replace(recorded(t, "egress-allowed"), " Modified flow: ", " Modified flow: tcp,nw_dst=10.0.0.1", 1)
	if o := outcomeOf(text); o.end != unclear || !strings.Contains(o.why, "rewrites") {
		t.Errorf("it ends %d because %q", o.end, o.why)
	}
}

// A trace that was cut off says nothing.
func TestABeginningOfATraceIsUnclear(t *testing.T) {
	files, err := filepath.Glob("testdata/traces/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.SplitAfter(string(raw), "\n")
			last := len(lines) - 1
			for !strings.HasPrefix(lines[last], "Datapath actions: ") {
				last--
			}
			for n := range last + 1 {
				if o := outcomeOf(strings.Join(lines[:n], "")); o.end != unclear || o.why == "" {
					t.Errorf("its first %d lines: it ends %d because %q", n, o.end, o.why)
				}
			}
		})
	}
}

func TestATraceThatLacksALineIsNotTheOpposite(t *testing.T) {
	for _, name := range []string{"ingress-allowed", "ingress-denied", "egress-denied", "local-allowed-routed"} {
		lines := strings.SplitAfter(recorded(t, name), "\n")
		want := outcomeOf(strings.Join(lines, "")).end
		for n := range lines {
			o := outcomeOf(strings.Join(slices.Delete(slices.Clone(lines), n, n+1), ""))
			if o.end != unclear && o.end != want {
				t.Errorf("%s without line %d ends %d, want %d or unclear", name, n+1, o.end, want)
			}
		}
	}
}

func FuzzOutcome(f *testing.F) {
	files, err := filepath.Glob("testdata/traces/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		o := outcomeOf(text)
		if (o.end == unclear) != (o.why != "") {
			t.Fatalf("it ends %d because %q", o.end, o.why)
		}
		if o.end == unclear {
			return
		}
		// Something is concluded only of a text with all of a trace's parts,
		// whose last actions say so by themselves.
		for _, part := range []string{"Flow: ", "\nFinal flow: ", "\nMegaflow: ", "\nDatapath actions: "} {
			if !strings.Contains(text, part) {
				t.Fatalf("concluded %d without %q", o.end, part)
			}
		}
		e, err := effectOf(o.sections[len(o.sections)-1].actions)
		if err != nil || len(e.recirculations) != 0 || (o.end == output) != (e.outputs == 1) || e.outputs > 1 {
			t.Fatalf("concluded %d of %+v, %v", o.end, e, err)
		}
	})
}

func BenchmarkOutcome(b *testing.B) {
	text := recorded(b, "local-allowed-routed")
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if outcomeOf(text).end != output {
			b.Fatal("it ends elsewhere")
		}
	}
}

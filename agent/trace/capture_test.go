// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/ruleset/savetext"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// savedSets answers from the text of ipset save; it knows the types that the
// captures have: hash:ip and hash:net.
type savedSets map[string]*savedSet

type savedSet struct {
	is4      bool
	prefixes map[netip.Prefix]bool // true: nomatch
	// lengths are those of the prefixes, longest first.
	lengths []int
}

func loadSets(t testing.TB, path string) savedSets {
	t.Helper()
	sets := savedSets{}
	for line := range strings.Lines(load(t, path)) {
		words := strings.Fields(line)
		switch {
		case len(words) > 4 && words[0] == "create" && (words[2] == "hash:ip" || words[2] == "hash:net"):
			sets[words[1]] = &savedSet{is4: words[4] == "inet", prefixes: map[netip.Prefix]bool{}}
		case len(words) > 2 && words[0] == "add" && sets[words[1]] != nil:
			prefix, err := netip.ParsePrefix(words[2])
			if err != nil {
				addr := netip.MustParseAddr(words[2])
				prefix = netip.PrefixFrom(addr, addr.BitLen())
			}
			set := sets[words[1]]
			set.prefixes[prefix] = words[len(words)-1] == "nomatch"
			if !slices.Contains(set.lengths, prefix.Bits()) {
				set.lengths = append(set.lengths, prefix.Bits())
				slices.Sort(set.lengths)
				slices.Reverse(set.lengths)
			}
		default:
			t.Fatalf("cannot read %q", line)
		}
	}
	return sets
}

// load returns the text of a file, which may be compressed.
func load(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil && strings.HasSuffix(path, ".gz") {
		var r *gzip.Reader
		if r, err = gzip.NewReader(bytes.NewReader(text)); err == nil {
			text, err = io.ReadAll(r)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (savedSets) Element(*ruleset.NativeSet, []byte) (ruleset.Element, error) {
	return ruleset.Element{}, errors.New("no native sets")
}

func (s savedSets) Member(name string, dims []ruleset.Direction, p trace.Packet) (trace.Ternary, string) {
	set := s[name]
	if set == nil {
		return trace.Unknown, "no set " + name
	}
	addr := p.Flow.Src
	if dims[0] == ruleset.Dst {
		addr = p.Flow.Dst
	}
	if addr.Is4() != set.is4 {
		return trace.No, ""
	}
	for _, bits := range set.lengths {
		prefix, err := addr.Prefix(bits)
		if nomatch, in := set.prefixes[prefix]; err == nil && in {
			return trace.Of(!nomatch), ""
		}
	}
	return trace.No, ""
}

// Spell implements trace.Speller.
func (savedSets) Spell(name string, dims []ruleset.Direction, p trace.Packet) (in, element string) {
	return name, spelled(dims, p)
}

func loadCapture(t testing.TB, name string) ([]ruleset.Table, savedSets) {
	t.Helper()
	dir := filepath.Join("testdata", "kube-router-v2.11", name)
	backend := ruleset.NFT
	if strings.Contains(name, "legacy") {
		backend = ruleset.Legacy
	}
	var tables []ruleset.Table
	for file, family := range map[string]ruleset.Family{"iptables-save.txt": ruleset.IPv4, "ip6tables-save.txt": ruleset.IPv6} {
		parsed, err := savetext.Parse(family, backend, load(t, filepath.Join(dir, file)))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		tables = append(tables, parsed...)
	}
	return tables, loadSets(t, filepath.Join(dir, "ipset-save.txt"))
}

// The pods of the captures' objects: .1. is node1, which was captured.
var (
	mysql0  = pod("1", "10")
	mysql1  = pod("2", "10")
	jobA    = pod("1", "20")
	jobB    = pod("2", "20")
	jobDone = pod("1", "21")
	fe0     = pod("1", "30")
	fe1     = pod("2", "30")
	v4only  = [2]string{"10.244.1.31", ""}
	prom    = pod("2", "40")
	nopol   = pod("1", "41")
	dns     = pod("2", "53")
	unused  = pod("2", "99")
	ghost   = pod("1", "99")
	node    = [2]string{"192.168.100.10", "fd00:192:168:100::10"}
	outside = [2]string{"198.51.100.7", "2001:db8::7"}
	listed  = [2]string{"203.0.113.5", ""}
	carved  = [2]string{"203.0.113.200", ""}
)

func pod(node, host string) [2]string {
	return [2]string{"10.244." + node + "." + host, "fd00:10:244:" + node + "::" + host}
}

func TestTheCapturedRulesAnswerAsThePoliciesSay(t *testing.T) {
	const no, yes = flow.Denied, flow.Allowed
	type expectation struct {
		src, dst [2]string
		proto    flow.Protocol
		port     uint16
		want     flow.Answer
	}
	expectations := map[string]expectation{
		"a job on the other node reaches the database":        {jobB, mysql0, flow.TCP, 3306, yes},
		"a job on the same node reaches the database":         {jobA, mysql0, flow.TCP, 3306, yes},
		"a job reaches the database on the other node":        {jobA, mysql1, flow.TCP, 3306, yes},
		"a job has no other port of the database":             {jobB, mysql0, flow.TCP, 3307, no},
		"a finished job is no peer":                           {jobDone, mysql0, flow.TCP, 3306, no},
		"a pod without policies is refused by the database":   {nopol, mysql0, flow.TCP, 3306, no},
		"monitoring on the other node reaches the metrics":    {prom, mysql0, flow.TCP, 9104, yes},
		"monitoring on the same node reaches the metrics":     {nopol, mysql0, flow.TCP, 9104, yes},
		"monitoring does not reach the database":              {prom, mysql0, flow.TCP, 3306, no},
		"a job does not reach the metrics":                    {jobB, mysql0, flow.TCP, 9104, no},
		"databases reach each other by udp":                   {mysql1, mysql0, flow.UDP, 4567, yes},
		"databases do not reach each other by tcp":            {mysql1, mysql0, flow.TCP, 3306, no},
		"anyone reaches port 33060":                           {unused, mysql0, flow.TCP, 33060, yes},
		"a named port that nobody has opens all ports":        {fe1, mysql0, flow.TCP, 12345, yes},
		"sctp is refused":                                     {jobB, mysql0, flow.SCTP, 3306, no},
		"the node itself is admitted":                         {node, mysql0, flow.TCP, 3306, yes},
		"a database may go anywhere":                          {mysql0, outside, flow.TCP, 443, yes},
		"a job asks the name server by udp":                   {jobA, dns, flow.UDP, 53, yes},
		"a job asks the name server by tcp":                   {jobA, dns, flow.TCP, 53, yes},
		"a job goes nowhere else":                             {jobA, outside, flow.TCP, 443, no},
		"a job admits everyone":                               {prom, jobA, flow.TCP, 8080, yes},
		"a front end is closed to the cluster":                {prom, fe0, flow.TCP, 8080, no},
		"a front end asks names of anyone":                    {fe0, outside, flow.UDP, 53, yes},
		"a front end goes nowhere else":                       {fe0, outside, flow.TCP, 443, no},
		"a pod without policies admits everyone":              {unused, nopol, flow.TCP, 80, yes},
		"a pod without policies goes anywhere":                {nopol, outside, flow.TCP, 80, yes},
		"a pod without policies is refused elsewhere":         {nopol, fe0, flow.TCP, 8080, no},
		"an outsider reaches the named port of the front end": {outside, fe0, flow.TCP, 8080, yes},
		"an outsider reaches the port range":                  {outside, fe0, flow.TCP, 8100, yes},
		"an outsider does not reach past the range":           {outside, fe0, flow.TCP, 8101, no},
		"an outsider does not reach another pod's name":       {outside, fe0, flow.TCP, 9090, no},
		"a front end reaches the listed block":                {fe0, listed, flow.TCP, 443, yes},
		"a front end does not reach the block's exception":    {fe0, carved, flow.TCP, 443, no},
		"a front end reaches no other port of the block":      {fe0, listed, flow.TCP, 80, no},
		"a default-deny pod is closed":                        {outside, v4only, flow.TCP, 80, no},
		"a default-deny pod goes nowhere":                     {v4only, outside, flow.TCP, 80, no},
		"a default-deny pod is held back by its own egress":   {v4only, fe0, flow.TCP, 80, no},
	}
	for _, capture := range []string{"iptables-nft", "iptables-legacy", "iptables-nft-defaultdeny"} {
		tables, sets := loadCapture(t, capture)
		for name, e := range expectations {
			for family := range 2 {
				if e.src[family] == "" || e.dst[family] == "" {
					continue
				}
				f := flow.Flow{Protocol: e.proto, Src: netip.MustParseAddr(e.src[family]), Dst: netip.MustParseAddr(e.dst[family]), Port: e.port}
				t.Run(capture+"/"+name+"/"+f.String(), func(t *testing.T) {
					got := trace.Trace(tables, pathOf(e.src, e.dst), f, sets)
					if got.Answer != e.want {
						t.Errorf("got %s, want %s", got, e.want)
					}
				})
			}
		}
		f := flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr(unused[0]), Dst: netip.MustParseAddr(ghost[0]), Port: 80}
		want := flow.Allowed
		if capture == "iptables-nft-defaultdeny" {
			want = flow.Denied
		}
		if got := trace.Trace(tables, pathOf(unused, ghost), f, sets); got.Answer != want {
			t.Errorf("%s: a pod that the engine does not know yet: got %s, want %s", capture, got, want)
		}
	}
}

// pathOf is the path on node1, whose pods are behind one bridge.
func pathOf(src, dst [2]string) trace.Path {
	local := func(a [2]string) bool { return strings.HasPrefix(a[0], "10.244.1.") }
	p := trace.Path{
		Way: trace.Forwarded, In: "eth0", Out: "eth0", Bridged: trace.Of(local(src) && local(dst)),
		SrcType: ruleset.Unicast, DstType: ruleset.Unicast,
	}
	if local(src) {
		p.In = "kube-bridge"
	}
	if local(dst) {
		p.Out = "kube-bridge"
	}
	if src == node {
		p.Way, p.In, p.SrcType = trace.Sent, "", ruleset.Local
	}
	return p
}

func TestTheReasonNamesTheDecidingRule(t *testing.T) {
	tables, sets := loadCapture(t, "iptables-nft")
	ask := func(src, dst [2]string) flow.Verdict {
		return trace.Trace(tables, pathOf(src, dst), flow.Flow{
			Protocol: flow.TCP, Src: netip.MustParseAddr(src[0]), Dst: netip.MustParseAddr(dst[0]), Port: 3306}, sets)
	}
	for want, got := range map[string]flow.Verdict{
		"nft ip filter/FORWARD KUBE-POD-FW-QARJUY65FDL57PXV: REJECT (db/mysql-0 reject)": ask(nopol, mysql0),
		"nft ip filter/FORWARD KUBE-NWPLCY-TAIL: ACCEPT (accept netpol-ok)":              ask(jobB, mysql0),
	} {
		if got.Reason != want {
			t.Errorf("got %s, want %s", got.Reason, want)
		}
	}
}

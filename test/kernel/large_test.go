// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// large is a node of 110 pods in a cluster of 5,000 with 100 policies, as
// kube-router loads it: 3,000 rules beside 600 ipsets of 153,550 entries, or
// native nf_tables with 700 sets of as many elements. At a scale of ten it is
// that ten times over.
type large struct {
	name  string
	scale int
	// ipsets is what ipset restore takes, "" if the sets are native.
	ipsets string
	// rules is what the loader takes.
	rules string
	// loader and its arguments load the rules in place of what is there.
	loader []string
	// dump and its arguments print them as text.
	dump []string
	// read parses that text, and the native sets in it.
	read func([]byte) ([]ruleset.Table, textSets, error)
}

// newLarge returns the variant "legacy", "iptables-nft" or "nftables".
func newLarge(t testing.TB, variant string, scale int) *large {
	t.Helper()
	l := &large{name: variant, scale: scale}
	switch variant {
	case "legacy":
		l.ipsets = repeatAll(readLarge(t, "ipset-save.txt"), scale)
		l.rules = repeatLines(readLarge(t, "iptables-legacy", "iptables-save.txt"), scale)
		l.loader = []string{"iptables-legacy-restore", "-w"}
		l.dump = []string{"iptables-legacy-save", "-t", "filter"}
		l.read = readSave(ruleset.Legacy)
	case "iptables-nft":
		l.ipsets = repeatAll(readLarge(t, "ipset-save.txt"), scale)
		l.rules = repeatLines(readLarge(t, "iptables-nft", "iptables-save.txt"), scale)
		l.loader = []string{"iptables-nft-restore", "-w"}
		l.dump = []string{"iptables-nft-save", "-t", "filter"}
		l.read = readSave(ruleset.NFT)
	case "nftables":
		l.rules = "flush ruleset\n" + repeatBlocks(readLarge(t, "nftables", "nft-ruleset.txt"), scale)
		l.loader = []string{"nft", "-f", "-"}
		// JSON is what nft prints fastest.
		l.dump = []string{"nft", "-j", "list", "ruleset"}
		l.read = readNFT
	default:
		t.Fatalf("variant %q", variant)
	}
	return l
}

func readLarge(t testing.TB, elem ...string) string {
	t.Helper()
	name := filepath.Join(elem...)
	file, err := os.Open(filepath.Join("testdata", "kube-router-v2.11", "large", name+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	text, err := io.ReadAll(unzipped)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return string(text)
}

// hashed are the beginnings of the names that end in a hash, one for each pod,
// policy or set.
var hashed = []string{"KUBE-POD-FW-", "KUBE-NWPLCY-", "KUBE-SRC-", "KUBE-DST-"}

// hashLength is that of the hash, in the letters of base32, which are capital.
const hashLength = 16

// nextHashed returns where the next hash in the text ends, or -1. What every
// pod shares, such as KUBE-NWPLCY-TAIL, has none.
func nextHashed(text string) int {
	for at := 0; ; {
		i := strings.Index(text[at:], "KUBE-")
		if i < 0 {
			return -1
		}
		at += i
		for _, prefix := range hashed {
			if end := at + len(prefix) + hashLength; strings.HasPrefix(text[at:], prefix) && end <= len(text) &&
				!strings.ContainsFunc(text[end-hashLength:end], notBase32) {
				return end
			}
		}
		at += len("KUBE-")
	}
}

func notBase32(r rune) bool { return (r < 'A' || r > 'Z') && (r < '2' || r > '7') }

// copyOf returns the text as the number n of its copies: the hash of each name
// ends in a small letter, which no other has, and the pods' network is another.
func copyOf(text string, n int) string {
	var b strings.Builder
	b.Grow(len(text))
	rest := text
	for end := nextHashed(rest); end >= 0; end = nextHashed(rest) {
		b.WriteString(rest[:end-1])
		b.WriteByte(byte('a' + n))
		rest = rest[end:]
	}
	b.WriteString(rest)
	return strings.ReplaceAll(b.String(), "10.244.", fmt.Sprintf("10.%d.", 244+n))
}

// repeatAll repeats the whole text.
func repeatAll(text string, scale int) string {
	var b strings.Builder
	for n := range scale {
		if n > 0 {
			b.WriteString(copyOf(text, n))
			continue
		}
		b.WriteString(text)
	}
	return b.String()
}

// repeatLines repeats in its place each line that is of one pod or policy.
func repeatLines(text string, scale int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(repeatIfHashed(line, line, scale))
	}
	return b.String()
}

// repeatBlocks repeats in its place each set and chain that is of one pod or
// policy, and of the other chains each rule that is.
func repeatBlocks(text string, scale int) string {
	var b, block strings.Builder
	name := ""
	for line := range strings.Lines(text) {
		if name == "" && (strings.HasPrefix(line, "\tset ") || strings.HasPrefix(line, "\tchain ")) && nextHashed(line) >= 0 {
			name = line
		}
		if name == "" {
			b.WriteString(repeatIfHashed(line, line, scale))
			continue
		}
		block.WriteString(line)
		if line == "\t}\n" {
			b.WriteString(repeatIfHashed(name, block.String(), scale))
			block.Reset()
			name = ""
		}
	}
	return b.String()
}

func repeatIfHashed(name, text string, scale int) string {
	if nextHashed(name) < 0 {
		return text
	}
	return repeatAll(text, scale)
}

// load loads the rules into a new rig's node, where the pods' networks of all
// copies are routed as those of the rig's are.
func (l *large) load(t testing.TB) *rig {
	t.Helper()
	r := newRig(t, capturePods[:1], nil)
	var b strings.Builder
	for n := range l.scale {
		if n > 0 {
			fmt.Fprintf(&b, "addr add 10.%d.1.1/24 dev kube-bridge\n", 244+n)
		}
		fmt.Fprintf(&b, "route add 10.%d.0.0/16 via 192.168.100.11\n", 244+n)
	}
	r.node.run(t, b.String(), "ip", "-batch", "-")
	if l.ipsets != "" {
		r.node.run(t, l.ipsets, "ipset", "restore")
	}
	r.node.run(t, l.rules, l.loader[0], l.loader[1:]...)
	return r
}

// localPods are the pods of the node in each copy, 10.244.1.2 and on.
const localPods = 110

// flows returns n flows into and out of the node's pods: each of another pod
// than the last, or with one all of the first; a few stay on the node. They
// are the same each time.
func (l *large) flows(n int, one bool) []flow.Flow {
	r := rand.New(rand.NewPCG(1, 2))
	ports := []flow.Flow{
		{Protocol: flow.TCP, Port: 3306}, {Protocol: flow.TCP, Port: 8080}, {Protocol: flow.TCP, Port: 443},
		{Protocol: flow.UDP, Port: 53}, {Protocol: flow.TCP, Port: 80},
	}
	address := func(copied, node, host int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(244 + copied), byte(node), byte(host)})
	}
	flows := make([]flow.Flow, 0, n)
	seen := map[flow.Flow]bool{}
	for i := 0; len(flows) < n; i++ {
		pod := 0
		if !one {
			pod = i
		}
		copied := pod % l.scale
		local := address(copied, 1, 2+(pod/l.scale*7)%localPods)
		f := ports[i%len(ports)]
		// The other nodes' pods have the addresses .2 to .111 as well.
		f.Src, f.Dst = address(copied, 2+r.IntN(45), 2+r.IntN(localPods)), local
		if i%10 == 9 {
			f.Src = address(copied, 1, 2+r.IntN(localPods))
		}
		if i%2 == 1 {
			f.Src, f.Dst = f.Dst, f.Src
		}
		if f.Src != f.Dst && !seen[f] {
			seen[f] = true
			flows = append(flows, f)
		}
	}
	return flows
}

// largePath is the way of a flow through the rig's node, of which the text
// that tools print says nothing.
func largePath(f flow.Flow) trace.Path {
	local := func(a netip.Addr) bool { return a.As4()[2] == 1 }
	p := trace.Path{
		Way: trace.Forwarded, In: "eth0", Out: "eth0", Bridged: trace.Of(local(f.Src) && local(f.Dst)),
		Returns: trace.Yes, SrcType: ruleset.Unicast, DstType: ruleset.Unicast,
	}
	if local(f.Src) {
		p.In = "kube-bridge"
	}
	if local(f.Dst) {
		p.Out = "kube-bridge"
	}
	return p
}

// differ compares the answers of the two ways, and wants some of both answers
// and no other.
func differ(flows []flow.Flow, native, text []flow.Verdict) error {
	var errs []error
	count := map[flow.Answer]int{}
	for i, f := range flows {
		count[native[i].Answer]++
		if native[i].Answer != text[i].Answer && len(errs) < 3 {
			errs = append(errs, fmt.Errorf("%s: by text %s, natively %s", f, text[i], native[i]))
		}
	}
	if count[flow.Allowed] == 0 || count[flow.Denied] == 0 || count[flow.Inconclusive] > 0 {
		errs = append(errs, fmt.Errorf("answers %v: want some allowed, some denied and no other", count))
	}
	return errors.Join(errs...)
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"compress/gzip"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// capture is what kube-router 2.11 left in the kernel of a node, and the
// objects that it was made from.
type capture struct {
	name string
	// tool writes the rules: "legacy" or "nft" of iptables, or "" for nft.
	tool string
	// dir has the rules, sets the ipsets, both without the ending.
	dir, sets string
	// objects is a file.
	objects string
	// denies: Pods that the engine does not know are refused.
	denies bool
}

// The captures that agent/trace is tested with are there, the others here.
const (
	traced = "../../agent/trace/testdata/kube-router-v2.11/"
	stored = "testdata/kube-router-v2.11/"
)

var captures = []capture{
	{"iptables-legacy", "legacy", traced + "iptables-legacy", traced + "iptables-legacy", stored + "objects.yaml", false},
	{"iptables-nft", "nft", traced + "iptables-nft", traced + "iptables-nft", stored + "objects.yaml", false},
	{"iptables-nft-defaultdeny", "nft", traced + "iptables-nft-defaultdeny", traced + "iptables-nft-defaultdeny", stored + "objects.yaml", true},
	{"nftables", "", stored + "nftables", "", stored + "objects.yaml", false},
	{"nftables-defaultdeny", "", stored + "nftables-defaultdeny", "", stored + "objects.yaml", true},
}

// largeCaptures are of 110 Pods on the node, 5,000 elsewhere and 100 policies,
// IPv4 only.
var largeCaptures = []capture{
	{"iptables-legacy", "legacy", stored + "large/iptables-legacy", stored + "large", stored + "large/objects.yaml.gz", false},
	{"iptables-nft", "nft", stored + "large/iptables-nft", stored + "large", stored + "large/objects.yaml.gz", false},
	{"nftables", "", stored + "large/nftables", "", stored + "large/objects.yaml.gz", false},
}

// read reads a file of a capture, or the same with .gz; it returns false if
// there is neither.
func (c capture) read(t testing.TB, name string) (string, bool) {
	t.Helper()
	for _, path := range []string{name, name + ".gz"} {
		text, err := readFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return text, true
	}
	return "", false
}

// readFile reads a file, of which the contents if it is compressed.
func readFile(path string) (text string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	var in io.Reader = file
	if filepath.Ext(path) == ".gz" {
		if in, err = gzip.NewReader(file); err != nil {
			return "", err
		}
	}
	all, err := io.ReadAll(in)
	return string(all), err
}

// load loads the capture into the rig's node.
func (c capture) load(t testing.TB, r *rig) {
	t.Helper()
	if text, ok := c.read(t, filepath.Join(c.dir, "nft-ruleset.txt")); ok {
		r.node.loadNFT(t, text)
		return
	}
	sets, ok := c.read(t, filepath.Join(c.sets, "ipset-save.txt"))
	if !ok {
		t.Fatalf("%s has no sets", c.name)
	}
	r.node.run(t, sets, "ipset", "restore")
	loaded := 0
	for _, family := range []string{"iptables", "ip6tables"} {
		if rules, ok := c.read(t, filepath.Join(c.dir, family+"-save.txt")); ok {
			r.node.restore(t, family+"-"+c.tool+"-restore", rules)
			loaded++
		}
	}
	if loaded == 0 {
		t.Fatalf("%s has no rules", c.name)
	}
}

// load loads the rules of a capture that agent/trace is tested with by the
// tool "legacy" or "nft", whichever wrote them.
func (r *rig) load(t testing.TB, name, tool string) {
	t.Helper()
	for _, c := range captures {
		if c.name == name && c.tool != "" {
			c.tool = tool
			c.load(t, r)
			return
		}
	}
	t.Fatalf("no capture %q of iptables", name)
}

// made returns the objects of the capture.
func (c capture) made(t testing.TB) *objects {
	t.Helper()
	text, err := readFile(c.objects)
	if err != nil {
		t.Fatal(err)
	}
	return parseObjects(t, []byte(text))
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(strings.TrimSpace(s)) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(strings.TrimSpace(s)) }

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/ipset"
	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/ruleset/savetext"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// countingSets is a kernel with two sets of addresses, of the policy's Pods and
// of their peers. It counts what it is asked.
type countingSets struct {
	members map[string]func(netip.Addr) bool
	// tests are by set and address, headers by set.
	tests, headers map[string]int
}

// The messages are linux/netfilter/ipset/ip_set.h's: HEADER is 12, TEST 11.
func (k *countingSets) Ask(kind, _ uint16, body []byte, each func([]byte) error) error {
	var name string
	var data []byte
	err := nlconn.Attributes(body[nlconn.NFGenMsgLen:], func(kind uint16, value []byte) {
		switch kind {
		case 2:
			name = nlconn.Text(value)
		case 7:
			data = value
		}
	})
	if err != nil {
		return err
	}
	if kind&0xff == 12 {
		k.headers[name]++
		answer := nlconn.Attribute(make([]byte, nlconn.NFGenMsgLen), 3, []byte("hash:ip\x00"))
		return each(nlconn.Attribute(answer, 5, []byte{unix.AF_INET}))
	}
	a, _ := netip.AddrFromSlice(data[len(data)-4:])
	return k.test(name, a)
}

func (k *countingSets) test(name string, a netip.Addr) error {
	k.tests[name+" "+a.String()]++
	if !k.members[name](a) {
		return unix.Errno(4103) // IPSET_ERR_EXIST: not in the set.
	}
	return nil
}

// get answers for the set of that name as a native one.
func (k *countingSets) get(name string) func([]byte) (ruleset.Element, error) {
	return func(key []byte) (ruleset.Element, error) {
		a, _ := netip.AddrFromSlice(key)
		return ruleset.Element{In: k.test(name, a) == nil}, nil
	}
}

const remotePeers = 20

func podAt(i int) netip.Addr  { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) }
func peerAt(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 2, 0, byte(i)}) }

func newCountingSets() *countingSets {
	within := func(prefix string) func(netip.Addr) bool { return netip.MustParsePrefix(prefix).Contains }
	return &countingSets{
		members: map[string]func(netip.Addr) bool{"pods": within("10.1.0.0/16"), "peers": within("10.2.0.0/25")},
		tests:   map[string]int{}, headers: map[string]int{},
	}
}

// policed is a node with so many Pods, each with a chain of its own that leads
// to the one policy's, as kube-router writes them.
func policed(t testing.TB, kernel *countingSets, pods int, native bool) []ruleset.Table {
	t.Helper()
	var b strings.Builder
	b.WriteString("*filter\n:FORWARD ACCEPT [0:0]\n:POLICY - [0:0]\n")
	for i := range pods {
		fmt.Fprintf(&b, ":POD-%d - [0:0]\n", i)
	}
	for i := range pods {
		fmt.Fprintf(&b, "-A FORWARD -d %s/32 -j POD-%d\n-A POD-%d -j POLICY\n-A POD-%d -j DROP\n", podAt(i), i, i, i)
	}
	b.WriteString("-A POLICY -p tcp -m tcp --dport 80 -m set --match-set pods dst -m set --match-set peers src -j ACCEPT\nCOMMIT\n")
	tables, err := savetext.Parse(ruleset.IPv4, ruleset.NFT, b.String())
	if err != nil {
		t.Fatal(err)
	}
	if native {
		lookUp := func(name string, field ruleset.Field) ruleset.Match {
			set := &ruleset.NativeSet{Table: "filter", Name: name, KeyLength: 4, Get: kernel.get(name)}
			key := make(ruleset.Value, 4)
			for i := range key {
				key[i] = ruleset.Byte{Known: true, Field: field, Index: uint8(i), Mask: 0xff}
			}
			return ruleset.Lookup{Set: set, Key: key}
		}
		chains := tables[0].Chains
		policy := chains[slices.IndexFunc(chains, func(c *ruleset.Chain) bool { return c.Name == "POLICY" })]
		policy.Rules[0].Matches = []ruleset.Match{lookUp("pods", ruleset.DstAddr), lookUp("peers", ruleset.SrcAddr)}
	}
	return tables
}

// lookAt asks on one look for each of the Pods whether its peers are let in
// and a stranger is not, each Pod in a batch of its own.
func lookAt(t testing.TB, n *Netfilter, r *reading, pods int) {
	t.Helper()
	for i := range pods {
		for peer := range remotePeers + 1 {
			f := flow.Flow{Protocol: flow.TCP, Src: peerAt(peer + 1), Dst: podAt(i), Port: 80}
			want := flow.Allowed
			if peer == remotePeers {
				f.Src, want = peerAt(200), flow.Denied
			}
			paths := []trace.Path{{Way: trace.Forwarded, In: "eth0", Out: fmt.Sprint("veth", i)}}
			if a := n.along(r, Question{Flow: f}, paths); a.Verdict.Answer != want {
				t.Fatalf("%s is %s, want %s", f, a.Verdict, want)
			}
		}
	}
}

// asks returns how many questions to sets were asked since the last call, and
// the one that was asked most often.
func (k *countingSets) asks() (all int, most string, times int) {
	for what, n := range k.tests {
		all += n
		if n > times {
			most, times = what, n
		}
	}
	clear(k.tests)
	clear(k.headers)
	return all, most, times
}

func TestPodsUnderOnePolicyShareTheAnswersOfItsSets(t *testing.T) {
	const pods = 50
	for name, native := range map[string]bool{"ipsets": false, "native sets": true} {
		t.Run(name, func(t *testing.T) {
			kernel := newCountingSets()
			n := &Netfilter{memory: newMemory()}
			tables := policed(t, kernel, pods, native)
			for look := range uint64(3) {
				n.memory.nextLook()
				lookAt(t, n, &reading{number: look, tables: tables, sets: ipset.New(kernel)}, pods)
				for set, times := range kernel.headers {
					if times > 1 {
						t.Errorf("look %d: it was asked %d times what set %s is, want once", look, times, set)
					}
				}
				all, most, times := kernel.asks()
				// Each Pod's address, each peer's, and the stranger's.
				want := pods + remotePeers + 1
				if native && look > 0 {
					// The rules are the same, so their sets are.
					want = 0
				}
				if all != want || times > 1 {
					t.Errorf("look %d: %d questions, %q %d times; want %d, each once", look, all, most, times, want)
				}
			}
			n.memory.forget()
			lookAt(t, n, &reading{number: 9, tables: tables, sets: ipset.New(kernel)}, pods)
			if all, _, _ := kernel.asks(); all != pods+remotePeers+1 {
				t.Errorf("%d questions after a change of the rules, want %d", all, pods+remotePeers+1)
			}
		})
	}
}

func TestAVolatileSetAndAnErrorAreAskedEachTime(t *testing.T) {
	m := newMemory()
	w := m.witness(&reading{sets: ipset.New(newCountingSets())})
	for name, set := range map[string]ruleset.NativeSet{
		"volatile": {Volatile: true, Get: func([]byte) (ruleset.Element, error) { return ruleset.Element{In: true}, nil }},
		"refused":  {Get: func([]byte) (ruleset.Element, error) { return ruleset.Element{}, unix.EBUSY }},
	} {
		asked := 0
		get := set.Get
		set.Get = func(key []byte) (ruleset.Element, error) {
			asked++
			return get(key)
		}
		for range 2 {
			_, err := w.Element(&set, []byte("key"))
			if (err != nil) != (name == "refused") {
				t.Errorf("%s: error %v", name, err)
			}
		}
		if asked != 2 {
			t.Errorf("%s: asked %d times, want 2", name, asked)
		}
	}
}

// BenchmarkPodsUnderOnePolicy counts the questions to sets in a look at one
// and at a hundred Pods of a node: they grow by the Pods' own addresses only.
func BenchmarkPodsUnderOnePolicy(b *testing.B) {
	for _, native := range []bool{false, true} {
		for _, pods := range []int{1, 100} {
			b.Run(fmt.Sprintf("native=%v/pods=%d", native, pods), func(b *testing.B) {
				kernel := newCountingSets()
				n := &Netfilter{memory: newMemory()}
				tables := policed(b, kernel, pods, native)
				questions, looks := 0, 0
				for b.Loop() {
					n.memory.forget()
					n.memory.nextLook()
					lookAt(b, n, &reading{number: uint64(looks) + 1, tables: tables, sets: ipset.New(kernel)}, pods)
					all, _, _ := kernel.asks()
					questions += all
					looks++
				}
				b.ReportMetric(float64(questions)/float64(looks), "questions/look")
				b.ReportMetric(float64(pods*(remotePeers+1)), "flows/look")
			})
		}
	}
}

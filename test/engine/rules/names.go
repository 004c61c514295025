// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"crypto/sha1" // names temporary sets as the original does; nothing is secured by it
	"crypto/sha256"
	"encoding/base32"
	"strconv"
	"strings"
)

const (
	inputChain   = "KUBE-ROUTER-INPUT"
	forwardChain = "KUBE-ROUTER-FORWARD"
	outputChain  = "KUBE-ROUTER-OUTPUT"
	commonChain  = "KUBE-NWPLCY-COMMON"
	defaultChain = "KUBE-NWPLCY-DEFAULT"
	tailChain    = "KUBE-NWPLCY-TAIL"

	podChainPrefix    = "KUBE-POD-FW-"
	policyChainPrefix = "KUBE-NWPLCY-"
	topChainPrefix    = "KUBE-ROUTER-"
	sourceSetPrefix   = "KUBE-SRC-"
	destSetPrefix     = "KUBE-DST-"
	tempSetPrefix     = "TMP-"
	ipv6SetPrefix     = "inet6:"

	// hashLength is what is kept of a base32 hash, so that prefix and hash fit
	// into the 28 bytes of a chain's name and the 31 of a set's.
	hashLength = 16
	// commentLength is where kube-router cuts a rule's comment.
	commentLength = 120
)

func shortHash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "")))
	return base32.StdEncoding.EncodeToString(sum[:])[:hashLength]
}

// ownsChain tells whether a chain of the filter table belongs to the engine.
func ownsChain(name string) bool {
	return strings.HasPrefix(name, topChainPrefix) ||
		strings.HasPrefix(name, policyChainPrefix) ||
		strings.HasPrefix(name, podChainPrefix)
}

// OwnsSet tells whether an ipset with this name belongs to the engine and to
// the family: sets of IPv6 carry a prefix. Temporary sets are the engine's,
// too, and count as IPv4 without the prefix.
func OwnsSet(f Family, name string) bool {
	rest, isIPv6 := strings.CutPrefix(name, ipv6SetPrefix)
	if isIPv6 != (f == IPv6) {
		return false
	}
	return strings.HasPrefix(rest, sourceSetPrefix) ||
		strings.HasPrefix(rest, destSetPrefix) ||
		strings.HasPrefix(rest, tempSetPrefix)
}

func setName(f Family, prefix string, parts ...string) string {
	name := prefix + shortHash(parts...)
	if f == IPv6 {
		return ipv6SetPrefix + name
	}
	return name
}

func podChain(namespace, name string, version int64) string {
	return podChainPrefix + shortHash(namespace, name, strconv.FormatInt(version, 10))
}

func policyChain(namespace, name string, version int64, f Family) string {
	return policyChainPrefix + shortHash(namespace, name, strconv.FormatInt(version, 10), f.String())
}

// targetSet names the set of the Pods that a policy selects, which are the
// destinations of its ingress rules and the sources of its egress rules.
func targetSet(d direction, namespace, name string, f Family) string {
	return setName(f, d.targetPrefix(), namespace, name, f.String())
}

// peerSet names the set of the peers of one rule.
func peerSet(d direction, namespace, name string, rule int, f Family) string {
	return setName(f, d.peerPrefix(), namespace, name, d.ruleWord(), strconv.Itoa(rule), f.String(), "pod")
}

// blockSet names the set of the ipBlocks of one rule.
func blockSet(d direction, namespace, name string, rule int, f Family) string {
	return setName(f, d.peerPrefix(), namespace, name, d.ruleWord(), strconv.Itoa(rule), f.String(), "ipblock")
}

// namedPortSet names the set of the destinations that have the n-th number
// that a rule's named ports resolve to.
func namedPortSet(d direction, namespace, name string, rule, n int, f Family) string {
	return setName(f, destSetPrefix, namespace, name, d.ruleWord(), strconv.Itoa(rule), strconv.Itoa(n), f.String(), "namedport")
}

// tempSetName names the set that is filled before it is swapped with the set
// that rules use. All sets of the same options share one.
func tempSetName(f Family, options string) string {
	sum := sha1.Sum([]byte("tmp:" + options))
	name := tempSetPrefix + base32.StdEncoding.EncodeToString(sum[:10])
	if f == IPv6 {
		return ipv6SetPrefix + name
	}
	return name
}

func clampComment(text string) string {
	if len(text) > commentLength {
		return text[:commentLength]
	}
	return text
}

// stampedComment appends to a comment the hash that kube-router gives the
// rules of its top chains. spec is the rule as kube-router would pass it to
// iptables, with the bare comment in it.
func stampedComment(chain, comment string, spec ...string) string {
	return comment + " - " + shortHash(chain, strings.Join(spec, ""))
}

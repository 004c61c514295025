// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package programmed is the value of the annotation policygate.io/programmed:
// what an agent writes when it opens a gate and what the hold compares with
// its own identity.
//
// A gate belongs to addresses, not to a name: a new sandbox or a reboot re-runs
// init containers while the old annotation still stands, so the value binds
// the Pod's UID, its addresses and the node's boot. The package imports only
// the standard library, because the hold does.
package programmed

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Identity is what a gate was opened for.
type Identity struct {
	// UID is the Pod's metadata.uid.
	UID string
	// IPs are the Pod's status.podIPs in any order, without duplicates.
	IPs []netip.Addr
	// BootID is /proc/sys/kernel/random/boot_id of the Pod's node, which is
	// also its Node's status.nodeInfo.bootID.
	BootID string
}

// String returns the annotation's value, "uid=U;ips=A,B;boot=ID" with the
// addresses sorted. Two identities are the same if and only if their strings
// are. It returns "" for an identity that lacks any part: an empty annotation
// opens nothing.
func (i Identity) String() string {
	if i.UID == "" || len(i.IPs) == 0 || i.BootID == "" {
		return ""
	}
	ips := slices.Clone(i.IPs)
	slices.SortFunc(ips, netip.Addr.Compare)
	ips = slices.Compact(ips)
	text := make([]string, len(ips))
	for n, ip := range ips {
		text[n] = ip.String()
	}
	return "uid=" + i.UID + ";ips=" + strings.Join(text, ",") + ";boot=" + i.BootID
}

// againMark precedes the number that tells repeated values apart.
const againMark = ";again="

// Again returns the value for the n-th time that it is written: String for 0,
// another text that Matches for each other n. A kubelet can miss that an
// annotation changed (while it writes a volume it forgets what comes in
// meanwhile, until its next full sync a minute later), and only another change
// wakes it.
func (i Identity) Again(n uint32) string {
	value := i.String()
	if n == 0 || value == "" {
		return value
	}
	return value + againMark + strconv.FormatUint(uint64(n), 10)
}

// Matches reports whether an annotation's value was written for this identity,
// for the first time or again. An empty identity matches nothing.
func (i Identity) Matches(value string) bool {
	own := i.String()
	if own == "" {
		return false
	}
	rest, ok := strings.CutPrefix(value, own)
	return ok && (rest == "" || strings.HasPrefix(rest, againMark))
}

// MatchesAnyBoot reports whether a value was written for this UID and these
// addresses, whatever the boot: BootID is not looked at. It is for an observer
// that does not know the node's boot yet. Without UID or addresses nothing
// matches.
func (i Identity) MatchesAnyBoot(value string) bool {
	const boot = "any"
	i.BootID = boot
	own := i.String()
	return own != "" && strings.HasPrefix(value, strings.TrimSuffix(own, boot))
}

// New returns the identity of a Pod given the text of its addresses. It
// returns an error that names what is missing or malformed.
func New(uid string, ips []string, bootID string) (Identity, error) {
	id := Identity{UID: uid, BootID: strings.TrimSpace(bootID)}
	if uid == "" {
		return Identity{}, fmt.Errorf("pod UID is empty")
	}
	if id.BootID == "" {
		return Identity{}, fmt.Errorf("boot id is empty: want the content of /proc/sys/kernel/random/boot_id")
	}
	if strings.ContainsAny(uid+id.BootID, ";,=\n") {
		return Identity{}, fmt.Errorf("pod UID %q or boot id %q has a separator in it", uid, id.BootID)
	}
	for _, text := range ips {
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		ip, err := netip.ParseAddr(text)
		if err != nil || ip.Zone() != "" {
			return Identity{}, fmt.Errorf("pod address %q: want an IPv4 or IPv6 address", text)
		}
		id.IPs = append(id.IPs, ip.Unmap())
	}
	if len(id.IPs) == 0 {
		return Identity{}, fmt.Errorf("pod has no address")
	}
	slices.SortFunc(id.IPs, netip.Addr.Compare)
	id.IPs = slices.Compact(id.IPs)
	return id, nil
}

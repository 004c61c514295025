// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Kind is a kind of objects whose versions the index can be asked for.
type Kind string

// The kinds that a release must be sure to have seen.
const (
	KindNetworkPolicy Kind = "NetworkPolicy"
	KindNamespace     Kind = "Namespace"
)

// tombstoneAge is how long a deletion is remembered: longer than any LIST
// takes that may still name the object.
const tombstoneAge = 10 * time.Minute

// versions is what has been seen of one kind.
type versions struct {
	// highest is the highest version that was applied.
	highest uint64
	present map[types.UID]uint64
	deleted map[types.UID]time.Time
	// tombs has the keys of deleted in the order of deletion.
	tombs []types.UID
}

func newVersions() *versions {
	return &versions{present: map[types.UID]uint64{}, deleted: map[types.UID]time.Time{}}
}

func (v *versions) set(uid types.UID, version string) {
	n := parseVersion(version)
	v.present[uid] = n
	v.highest = max(v.highest, n)
	delete(v.deleted, uid)
}

// delete notes that the object, last seen at version, is gone. A watch gives
// the version of the deletion itself.
func (v *versions) delete(uid types.UID, version string, now time.Time) {
	v.highest = max(v.highest, parseVersion(version))
	for len(v.tombs) > 0 && now.Sub(v.deleted[v.tombs[0]]) >= tombstoneAge {
		delete(v.deleted, v.tombs[0])
		v.tombs = v.tombs[1:]
	}
	delete(v.present, uid)
	if _, ok := v.deleted[uid]; !ok {
		v.deleted[uid] = now
		v.tombs = append(v.tombs, uid)
	}
}

func (v *versions) has(uid types.UID, version string) bool {
	if _, gone := v.deleted[uid]; gone {
		return true
	}
	n, ok := v.present[uid]
	want := parseVersion(version)
	return ok && want != 0 && n >= want
}

// parseVersion returns a resourceVersion as the number that it is, 0 for one
// that is none.
func parseVersion(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package world

import (
	"time"
)

// history is what an object was over time. The zero value has never been.
type history[T any] struct {
	// key stands for the object where delays are drawn.
	key uint64
	// versions are in order of time; first is the number of the first of them.
	versions []version[T]
	first    uint64
	// began is when the object came to be.
	began time.Time
	// pause is when no node realizes the object's versions; nil: always.
	pause *pause
}

// pause is a time in which engines do not get to some objects. ended is zero
// while it lasts.
type pause struct{ began, ended time.Time }

// version is what an object was from a moment on. state is nil if it was gone.
type version[T any] struct {
	at    time.Time
	state *T
}

// set appends a version, and forgets those that every node has replaced.
func (h *history[T]) set(at time.Time, state *T, most time.Duration) {
	if len(h.versions) == 0 && h.began.IsZero() {
		h.began = at
	}
	h.versions = append(h.versions, version[T]{at, state})
	known := 0
	for i := range h.versions {
		if done, ever := h.realized(i, most); ever && done.Before(at) {
			known = i
		}
	}
	h.versions = append([]version[T](nil), h.versions[known:]...)
	h.first += uint64(known)
}

// realized returns when a node whose delay that is realizes versions[i], false
// if that is not under way.
func (h *history[T]) realized(i int, delay time.Duration) (time.Time, bool) {
	at := h.versions[i].at
	if p := h.pause; p != nil && !at.Before(p.began) {
		switch {
		case p.ended.IsZero():
			return time.Time{}, false
		case at.Before(p.ended):
			at = p.ended
		}
	}
	return at.Add(delay), true
}

// latest returns what the object is, or nil.
func (h *history[T]) latest() *T {
	if h == nil || len(h.versions) == 0 {
		return nil
	}
	return h.versions[len(h.versions)-1].state
}

// since returns when the object became what it is.
func (h *history[T]) since() time.Time {
	return h.versions[len(h.versions)-1].at
}

// delays draws when nodes realize versions.
type delays struct {
	seed        uint64
	least, most time.Duration
}

// of returns the delay of a version on a node.
func (d delays) of(node, object, version uint64) time.Duration {
	if d.most <= d.least {
		return d.least
	}
	x := mix(d.seed ^ mix(node^mix(object^mix(version))))
	return d.least + time.Duration(x%uint64(d.most-d.least))
}

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// keyOf returns a number for a name, the same in every process: FNV-1a.
func keyOf(name string) uint64 {
	x := uint64(14695981039346656037)
	for i := range len(name) {
		x = (x ^ uint64(name[i])) * 1099511628211
	}
	return x
}

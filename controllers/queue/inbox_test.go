// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"slices"
	"sync"
	"testing"
)

func TestAnInboxDoesWhatWasPostedInOrder(t *testing.T) {
	b := NewInbox()
	var done []int
	b.Post(func() {
		done = append(done, 1)
		b.Post(func() { done = append(done, 3) })
	})
	b.Post(func() { done = append(done, 2) })
	<-b.Posted()
	if b.Do(); !slices.Equal(done, []int{1, 2}) {
		t.Errorf("did %v, want what was posted before", done)
	}
	if b.Empty() {
		t.Error("is empty, though something was posted meanwhile")
	}
	<-b.Posted()
	if b.Do(); !slices.Equal(done, []int{1, 2, 3}) || !b.Empty() {
		t.Errorf("did %v, empty is %v", done, b.Empty())
	}
}

func TestAnInboxIsOfManyGoroutines(t *testing.T) {
	b := NewInbox()
	var posting sync.WaitGroup
	done := 0
	for range 8 {
		posting.Go(func() {
			for range 100 {
				b.Post(func() { done++ })
			}
		})
	}
	for done < 800 {
		<-b.Posted()
		b.Do()
	}
	posting.Wait()
	if !b.Empty() {
		t.Error("something is left to do")
	}
}

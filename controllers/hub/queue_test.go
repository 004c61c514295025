// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

func TestQueue(t *testing.T) {
	cases := map[string]struct {
		puts func(q *queue)
		want []string
	}{
		"the latest assignment of a uid is sent, in its first one's place": {
			puts: func(q *queue) {
				q.assign("a", assign("a", 1))
				q.assign("b", assign("b", 1))
				q.assign("a", assign("a", 2))
			},
			want: []string{"assign a 2", "assign b 1"},
		},
		"a withdrawal takes the place of an assignment": {
			puts: func(q *queue) { q.assign("a", assign("a", 1)); q.withdraw("a") },
			want: []string{"withdraw a"},
		},
		"a release follows the assignment it was decided on": {
			puts: func(q *queue) { q.assign("a", assign("a", 1)); q.release("a", releaseOfA()) },
			want: []string{"assign a 1", "release a"},
		},
		"two releases are one": {
			puts: func(q *queue) { q.release("a", releaseOfA()); q.release("a", releaseOfA()) },
			want: []string{"release a"},
		},
		"an assignment drops a release that did not know of it": {
			puts: func(q *queue) { q.release("a", releaseOfA()); q.assign("a", assign("a", 2)) },
			want: []string{"assign a 2"},
		},
		"a withdrawal drops a release": {
			puts: func(q *queue) { q.release("a", releaseOfA()); q.withdraw("a") },
			want: []string{"withdraw a"},
		},
		"synced stays behind what was there before and before what came after": {
			puts: func(q *queue) {
				q.assign("a", assign("a", 1))
				q.synced()
				q.assign("b", assign("b", 1))
				q.assign("a", assign("a", 2))
			},
			want: []string{"assign a 2", "synced", "assign b 1"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			q := newQueue()
			tc.puts(q)
			var got []string
			for m := q.next(); m != nil; m = q.next() {
				switch x := m.GetMessage().(type) {
				case *hubv1.HubMessage_Assign:
					got = append(got, fmt.Sprintf("assign %s %d", x.Assign.GetSubject().GetUid(), x.Assign.GetGeneration()))
				case *hubv1.HubMessage_Withdraw:
					got = append(got, "withdraw "+x.Withdraw.GetUid())
				case *hubv1.HubMessage_Release:
					got = append(got, "release "+x.Release.GetSubject().GetUid())
				case *hubv1.HubMessage_Synced:
					got = append(got, "synced")
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
}

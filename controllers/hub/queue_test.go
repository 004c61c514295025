// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// of returns an assignment of ns/name, whose uid is that, too.
func of(uid string, generation uint64, d Description) *assignment {
	namespace, _, _ := strings.Cut(uid, "/")
	return &assignment{
		message:     &hubv1.Assign{Subject: &hubv1.Subject{Uid: uid, Namespace: namespace}},
		description: d,
		generation:  generation,
	}
}

// policy returns an assignment of a NetworkPolicy as of does.
func policy(uid string, generation uint64, d Description) *assignment {
	a := of(uid, generation, d)
	a.message.Policy = true
	return a
}

// describe returns a description whose only why is the text.
func describe(t testing.TB, why string) Description {
	t.Helper()
	d, err := Describe(&hubv1.Description{
		Expectations: []*hubv1.Expectation{{Want: hubv1.Answer_ANSWER_ALLOWED}, {Want: hubv1.Answer_ANSWER_DENIED}},
		Whys:         []string{why},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// word says what a message is.
func word(m *hubv1.HubMessage) string {
	switch x := m.GetMessage().(type) {
	case *hubv1.HubMessage_Assign:
		return fmt.Sprintf("assign %s %d as %d",
			x.Assign.GetSubject().GetUid(), x.Assign.GetGeneration(), x.Assign.GetDescription())
	case *hubv1.HubMessage_Withdraw:
		return "withdraw " + x.Withdraw.GetUid()
	case *hubv1.HubMessage_Release:
		return "release " + x.Release.GetSubject().GetUid()
	case *hubv1.HubMessage_Synced:
		return fmt.Sprintf("synced %d", x.Synced.GetSpreadMillis())
	case *hubv1.HubMessage_Trace:
		return fmt.Sprintf("trace %d", x.Trace.GetId())
	case *hubv1.HubMessage_Describe:
		return fmt.Sprintf("describe %d", x.Describe.GetId())
	case *hubv1.HubMessage_Forget:
		return fmt.Sprintf("forget %v", x.Forget.GetIds())
	}
	return "nothing"
}

// take takes at most n batches and says what is in them.
func take(q *queue, n int) []string {
	var words []string
	for range n {
		batch := q.next(nil, func() uint32 { return 20 })
		if len(batch) == 0 {
			break
		}
		for _, m := range batch {
			words = append(words, word(m))
		}
	}
	return words
}

const all = 1 << 20

func released(uid string) *hubv1.Release {
	namespace, _, _ := strings.Cut(uid, "/")
	return &hubv1.Release{Subject: &hubv1.Subject{Uid: uid, Namespace: namespace}}
}

func TestQueue(t *testing.T) {
	one, two := describe(t, "one"), describe(t, "two")
	none := Description{}
	cases := map[string]struct {
		puts func(q *queue)
		want []string
	}{
		"the latest assignment of a uid is sent, in its first one's place": {
			puts: func(q *queue) {
				q.assign("n/a", of("n/a", 1, none))
				q.assign("n/b", of("n/b", 2, none))
				q.assign("n/a", of("n/a", 3, none))
			},
			want: []string{"describe 1", "assign n/a 3 as 1", "assign n/b 2 as 1"},
		},
		"a withdrawal of what the agent does not hold leaves nothing to send": {
			puts: func(q *queue) {
				q.assign("n/a", of("n/a", 1, one))
				q.release("n/a", released("n/a"))
				q.withdraw("n/a", "n", false)
			},
		},
		"a withdrawal of what the agent holds takes the place of an assignment and a release": {
			puts: func(q *queue) {
				q.assign("n/a", of("n/a", 1, none))
				take(q, 1)
				q.assign("n/a", of("n/a", 2, none))
				q.release("n/a", released("n/a"))
				q.withdraw("n/a", "n", false)
			},
			want: []string{"withdraw n/a"},
		},
		"a withdrawal is superseded by an assignment": {
			puts: func(q *queue) {
				q.assign("n/a", of("n/a", 1, none))
				take(q, 1)
				q.withdraw("n/a", "n", false)
				q.assign("n/a", of("n/a", 2, none))
			},
			want: []string{"assign n/a 2 as 1"},
		},
		"a release follows the assignment it was decided on, and its description": {
			puts: func(q *queue) {
				q.assign("n/a", of("n/a", 1, one))
				q.release("n/a", released("n/a"))
			},
			want: []string{"describe 1", "assign n/a 1 as 1", "release n/a"},
		},
		"a release does not wait for the assignments of others": {
			puts: func(q *queue) {
				q.assign("n/b", of("n/b", 1, one))
				q.assign("n/a", of("n/a", 2, none))
				q.release("n/a", released("n/a"))
			},
			want: []string{"describe 1", "assign n/a 2 as 1", "release n/a", "describe 2", "assign n/b 1 as 2"},
		},
		"two releases are one": {
			puts: func(q *queue) { q.release("n/a", released("n/a")); q.release("n/a", released("n/a")) },
			want: []string{"release n/a"},
		},
		"an assignment drops a release that did not know of it": {
			puts: func(q *queue) {
				q.release("n/a", released("n/a"))
				q.assign("n/a", of("n/a", 2, none))
			},
			want: []string{"describe 1", "assign n/a 2 as 1"},
		},
		"synced waits for the full sync alone": {
			puts: func(q *queue) {
				q.assign("n/a", of("n/a", 1, none))
				q.synced()
				q.assign("n/b", of("n/b", 2, none))
				q.assign("n/a", of("n/a", 3, none))
			},
			want: []string{"describe 1", "assign n/a 3 as 1", "synced 20", "assign n/b 2 as 1"},
		},
		"synced does not wait for what was withdrawn": {
			puts: func(q *queue) {
				q.assign("n/a", of("n/a", 1, none))
				q.synced()
				q.withdraw("n/a", "n", false)
			},
			want: []string{"synced 20"},
		},
		"a full sync of nothing ends at once": {
			puts: func(q *queue) { q.synced() },
			want: []string{"synced 20"},
		},
		"a description is sent once and before the first assignment that names it": {
			puts: func(q *queue) {
				q.assign("n/a", of("n/a", 1, one))
				q.assign("n/b", of("n/b", 2, one))
				q.assign("n/c", of("n/c", 3, two))
			},
			want: []string{"describe 1", "assign n/a 1 as 1", "assign n/b 2 as 1", "describe 2", "assign n/c 3 as 2"},
		},
		"what is superseded is never described": {
			puts: func(q *queue) {
				q.assign("n/a", of("n/a", 1, one))
				q.assign("n/a", of("n/a", 2, two))
			},
			want: []string{"describe 1", "assign n/a 2 as 1"},
		},
		"a description that nothing names is kept for the next": {
			puts: func(q *queue) {
				q.assign("n/a", of("n/a", 1, one))
				take(q, all)
				q.withdraw("n/a", "n", false)
				take(q, all)
				q.assign("n/b", of("n/b", 2, one))
			},
			want: []string{"assign n/b 2 as 1"},
		},
		"namespaces take turns": {
			puts: func(q *queue) {
				for i := range 4 {
					q.assign(fmt.Sprint("burst/", i), of(fmt.Sprint("burst/", i), 1, none))
				}
				q.assign("n/a", of("n/a", 2, none))
				q.assign("n/b", of("n/b", 3, none))
				q.release("burst/3", released("burst/3"))
			},
			want: []string{
				"describe 1", "assign burst/3 1 as 1", "release burst/3",
				"assign burst/0 1 as 1", "assign n/a 2 as 1", "assign burst/1 1 as 1", "assign n/b 3 as 1", "assign burst/2 1 as 1",
			},
		},
		"policies wait for all Pods, and their namespaces take turns": {
			puts: func(q *queue) {
				q.assign("burst/p", policy("burst/p", 1, none))
				q.assign("burst/q", policy("burst/q", 2, none))
				q.assign("n/p", policy("n/p", 3, none))
				q.assign("n/a", of("n/a", 4, none))
				q.trace(&hubv1.Trace{Id: 1})
				q.release("n/b", released("n/b"))
				q.assign("n/c", of("n/c", 5, none))
			},
			want: []string{
				"release n/b", "describe 1", "assign n/a 4 as 1", "assign n/c 5 as 1",
				"assign burst/p 1 as 1", "assign n/p 3 as 1", "assign burst/q 2 as 1", "trace 1",
			},
		},
		"the withdrawal of a policy waits for Pods, too": {
			puts: func(q *queue) {
				q.assign("n/p", policy("n/p", 1, none))
				take(q, all)
				q.withdraw("n/p", "n", true)
				q.assign("n/a", of("n/a", 2, none))
			},
			want: []string{"assign n/a 2 as 1", "withdraw n/p"},
		},
		"synced waits for policies": {
			puts: func(q *queue) {
				q.assign("n/p", policy("n/p", 1, none))
				q.assign("n/a", of("n/a", 2, none))
				q.synced()
			},
			want: []string{"describe 1", "assign n/a 2 as 1", "assign n/p 1 as 1", "synced 20"},
		},
		"traces are last": {
			puts: func(q *queue) {
				q.trace(&hubv1.Trace{Id: 1})
				q.trace(&hubv1.Trace{Id: 2})
				q.assign("n/a", of("n/a", 1, none))
				q.synced()
			},
			want: []string{"describe 1", "assign n/a 1 as 1", "synced 20", "trace 1", "trace 2"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			q := newQueue()
			tc.puts(q)
			if diff := cmp.Diff(tc.want, take(q, all)); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
			if len(q.items) > 0 || q.states.order.Len() > 0 || q.policies.order.Len() > 0 || q.releases.order.Len() > 0 {
				t.Errorf("after all was taken %d items are left", len(q.items))
			}
		})
	}
}

func TestAReleaseIsNotBehindABurst(t *testing.T) {
	q := newQueue()
	for i := range 1000 {
		uid := fmt.Sprint("burst/", i)
		q.assign(uid, of(uid, 1, describe(t, uid)))
	}
	take(q, 3)
	q.assign("burst/500", of("burst/500", 2, describe(t, "x")))
	q.release("burst/500", released("burst/500"))
	want := []string{"describe 4", "assign burst/500 2 as 4", "release burst/500"}
	if diff := cmp.Diff(want, take(q, 2)); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

func TestAQueueHoldsNoMoreThanTheAssignments(t *testing.T) {
	q := newQueue()
	q.assign("n/held", of("n/held", 1, Description{}))
	take(q, all)
	// The agent reads nothing while Pods come and go.
	for i := range 5000 {
		uid := fmt.Sprint("n/", i)
		q.assign(uid, of(uid, 1, Description{}))
		q.release(uid, released(uid))
		q.assign("n/held", of("n/held", 1, Description{}))
		q.withdraw(uid, "n", false)
	}
	q.withdraw("n/held", "n", false)
	if len(q.items) != 1 {
		t.Errorf("%d uids wait, want the one that the agent holds", len(q.items))
	}
	if got := take(q, all); !slices.Equal(got, []string{"withdraw n/held"}) {
		t.Errorf("sent %q, want one withdrawal", got)
	}
}

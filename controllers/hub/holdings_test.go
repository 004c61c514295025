// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

func TestIdleDescriptionsAreForgottenTheLeastRecentlyUsedFirst(t *testing.T) {
	h := newHoldings()
	idle := func(uid string) *hubv1.HubMessage {
		h.assign(uid, describe(t, uid))
		return h.withdraw(uid)
	}
	for i := range maxIdle {
		if m := idle(fmt.Sprint(i)); m != nil {
			t.Fatalf("%s after %d idle descriptions, want %d kept", word(m), i+1, maxIdle)
		}
	}
	idle("0") // used again
	if got := word(idle("new")); got != "forget [2]" {
		t.Errorf("%s, want the least recently used forgotten", got)
	}
	if id, describe, _ := h.assign("a", describe(t, "1")); describe == nil || id != maxIdle+2 {
		t.Errorf("what was forgotten is named by id %d, described %v: want it described under a new id", id, describe != nil)
	}
}

func TestIdleDescriptionsAreBoundedInBytes(t *testing.T) {
	h := newHoldings()
	large := describe(t, strings.Repeat("x", maxIdleBytes))
	h.assign("a", large)
	h.assign("b", describe(t, "small"))
	if m := h.withdraw("b"); m != nil {
		t.Errorf("%s, want a small one kept", word(m))
	}
	// It is forgotten with all that is older, and is not worth more of them.
	if got := word(h.withdraw("a")); got != "forget [2 1]" {
		t.Errorf("%s, want both forgotten", got)
	}
	if h.idleBytes != 0 || h.idle.Len() != 0 || len(h.described) != 0 {
		t.Errorf("%d bytes of %d idle descriptions are left, %d known", h.idleBytes, h.idle.Len(), len(h.described))
	}
}

// mirror does what an agent does with messages, and demands rule 9 of it.
type mirror struct {
	t         *testing.T
	described map[uint64]string
	named     map[string]uint64
	// assigned counts the assignments of a uid.
	assigned map[string]int
}

func newMirror(t *testing.T) *mirror {
	return &mirror{t: t, described: map[uint64]string{}, named: map[string]uint64{}, assigned: map[string]int{}}
}

func (m *mirror) receive(message *hubv1.HubMessage) {
	m.t.Helper()
	switch x := message.GetMessage().(type) {
	case *hubv1.HubMessage_Describe:
		if _, twice := m.described[x.Describe.GetId()]; twice || x.Describe.GetId() == 0 {
			m.t.Fatalf("id %d is described twice, or is 0", x.Describe.GetId())
		}
		m.described[x.Describe.GetId()] = string(x.Describe.GetContent())
	case *hubv1.HubMessage_Forget:
		for _, id := range x.Forget.GetIds() {
			if _, known := m.described[id]; !known {
				m.t.Fatalf("id %d is forgotten and was not described", id)
			}
			delete(m.described, id)
			for uid, named := range m.named {
				if named == id {
					m.t.Fatalf("id %d is forgotten, and %s names it", id, uid)
				}
			}
		}
	case *hubv1.HubMessage_Assign:
		id := x.Assign.GetDescription()
		if _, known := m.described[id]; !known {
			m.t.Fatalf("%s names id %d, which is not described", x.Assign.GetSubject().GetUid(), id)
		}
		m.named[x.Assign.GetSubject().GetUid()] = id
		m.assigned[x.Assign.GetSubject().GetUid()]++
	case *hubv1.HubMessage_Withdraw:
		delete(m.named, x.Withdraw.GetUid())
	}
}

func TestRandomChangesLeaveTheAgentWithWhatIsAssigned(t *testing.T) {
	descriptions := []Description{{}}
	for i := range 3 * maxIdle {
		descriptions = append(descriptions, describe(t, strings.Repeat("x", i*100)))
	}
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 0))
		q := newQueue()
		agent := newMirror(t)
		want := map[string]Description{}
		receive := func(batches int) {
			for range batches {
				for _, m := range q.next(nil, func() uint32 { return 0 }) {
					agent.receive(m)
				}
			}
		}
		for range 3000 {
			number := random.IntN(60)
			uid, isPolicy := fmt.Sprintf("n%d/%d", random.IntN(3), number), number >= 40
			switch random.IntN(6) {
			case 0, 1:
				want[uid] = descriptions[random.IntN(len(descriptions))]
				a := of(uid, 1, want[uid])
				a.message.Policy = isPolicy
				q.assign(uid, a)
			case 2:
				if _, ok := want[uid]; ok {
					delete(want, uid)
					q.withdraw(uid, strings.Split(uid, "/")[0], isPolicy)
				}
			case 3:
				q.release(uid, released(uid))
			case 4:
				q.synced()
			default:
				receive(random.IntN(4))
			}
		}
		receive(all)
		if len(agent.named) != len(want) {
			t.Fatalf("seed %d: the agent holds %d assignments, want %d", seed, len(agent.named), len(want))
		}
		for uid, d := range want {
			id, ok := agent.named[uid]
			if !ok || agent.described[id] != d.value().content {
				t.Fatalf("seed %d: %s is held %v with another description than it was assigned with", seed, uid, ok)
			}
		}
		used := map[uint64]bool{}
		for _, id := range agent.named {
			used[id] = true
		}
		if idle := len(agent.described) - len(used); idle > maxIdle {
			t.Errorf("seed %d: the agent keeps %d idle descriptions, want at most %d", seed, idle, maxIdle)
		}
	}
}

func TestDescribe(t *testing.T) {
	message := func() *hubv1.Description {
		return &hubv1.Description{
			Expectations: []*hubv1.Expectation{{
				Flow: &hubv1.Flow{Protocol: 6, Dst: []byte{10, 0, 0, 1}, Port: 3306},
				Want: hubv1.Answer_ANSWER_ALLOWED,
			}},
			Whys: []string{"db/allow-jobs ingress[0]"},
		}
	}
	d, err := Describe(message())
	if err != nil {
		t.Fatal(err)
	}
	again, err := Describe(message())
	if err != nil || again != d {
		t.Errorf("equal contents are %v and %v (%v), want them equal", d, again, err)
	}
	if d == (Description{}) || d == describe(t, "other") {
		t.Error("other contents are equal to it")
	}
	var decoded hubv1.Description
	if err := proto.Unmarshal([]byte(d.value().content), &decoded); err != nil || !slices.Equal(decoded.GetWhys(), message().GetWhys()) ||
		len(decoded.GetExpectations()) != 1 || decoded.GetExpectations()[0].GetFlow().GetPort() != 3306 {
		t.Errorf("decoded %v, %v", &decoded, err)
	}
	if v := d.value(); v.expectations != 1 || v.whys != 1 || d.size() != len(v.content) {
		t.Errorf("counts %d and %d, %d bytes of %d", v.expectations, v.whys, d.size(), len(v.content))
	}
	if empty, err := Describe(nil); err != nil || empty != (Description{}) {
		t.Errorf("a description of nothing is %v, %v: want the zero one", empty, err)
	}
	if size := (Description{}).size(); size != 0 {
		t.Errorf("the zero description has %d bytes, want none", size)
	}
}

func TestDescribeRefusesWhatCannotTravel(t *testing.T) {
	for name, tc := range map[string]struct {
		whys []string
		want string
	}{
		"a text that is not UTF-8": {whys: []string{"fine", "bad\xff"}, want: `whys[1] is "bad\xff": want valid UTF-8`},
		"more than an agent takes": {whys: []string{strings.Repeat("x", maxContent)}, want: "want at most 1048576"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := Describe(&hubv1.Description{Whys: tc.whys})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if d != (Description{}) {
				t.Error("there is a description beside the error")
			}
		})
	}
}

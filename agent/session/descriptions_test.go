// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"google.golang.org/protobuf/proto"

	"github.com/policygate/policygate/agent/confirm"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

func describeOf(t testing.TB, id uint64, whys ...string) *hubv1.Describe {
	t.Helper()
	content, err := proto.Marshal(&hubv1.Description{Whys: whys})
	if err != nil {
		t.Fatal(err)
	}
	return &hubv1.Describe{Id: id, Content: content}
}

func naming(uid string, id uint64) *hubv1.Assign {
	return &hubv1.Assign{Subject: &hubv1.Subject{Uid: uid}, Description: id}
}

func TestDescriptions(t *testing.T) {
	for name, tc := range map[string]struct {
		describe []*hubv1.Describe
		forget   []uint64
		assign   uint64
		refused  string // by the last describe
		want     string // the error of the assignment
	}{
		"one that was described is there":     {describe: []*hubv1.Describe{describeOf(t, 7, "x")}, assign: 7},
		"an assignment that names none":       {assign: 0, want: "names description 0"},
		"one that was never described":        {assign: 7, want: "assignment of u names description 7"},
		"one that was forgotten":              {describe: []*hubv1.Describe{describeOf(t, 7)}, forget: []uint64{6, 7}, assign: 7, want: "description 7"},
		"one that was forgotten and comes on": {describe: []*hubv1.Describe{describeOf(t, 7)}, forget: []uint64{8}, assign: 7},
		"one that cannot be decoded": {
			describe: []*hubv1.Describe{{Id: 7, Content: []byte{0xff}}},
			refused:  "description 7: description of 1 bytes", assign: 7, want: "description 7",
		},
		"one without an id": {describe: []*hubv1.Describe{describeOf(t, 0)}, refused: "has id 0", want: "names description 0"},
		"one that is empty": {describe: []*hubv1.Describe{{Id: 7}}, assign: 7},
		"one id for two": {
			describe: []*hubv1.Describe{describeOf(t, 7, "x"), describeOf(t, 7, "y")},
			refused:  "description 7 is described twice", assign: 7, want: "description 7",
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDescriptions()
			var err error
			for _, m := range tc.describe {
				err = d.describe(m)
			}
			check(t, "describe", err, tc.refused)
			d.forget(&hubv1.Forget{Ids: tc.forget})
			got, err := d.of(naming("u", tc.assign))
			check(t, "assignment", err, tc.want)
			if there := got != nil; there != (tc.want == "") {
				t.Errorf("there is a description: %v", there)
			}
		})
	}
}

func check(t *testing.T, what string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", what, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: error %v, want one with %q", what, err, want)
	}
}

func TestDescriptionsAreBounded(t *testing.T) {
	d := newDescriptions()
	for id := range uint64(maxDescriptions) {
		if err := d.describe(describeOf(t, id+1)); err != nil {
			t.Fatal(err)
		}
	}
	check(t, "one too many", d.describe(describeOf(t, maxDescriptions+1)), "want at most 8192 kept")
	d.forget(&hubv1.Forget{Ids: []uint64{1}})
	check(t, "after one was forgotten", d.describe(describeOf(t, maxDescriptions+1)), "")

	d = newDescriptions()
	large := strings.Repeat("x", maxDescribed/2)
	check(t, "the first", d.describe(describeOf(t, 1, large)), "")
	check(t, "too large beside it", d.describe(describeOf(t, 2, large)), "too large beside")
	d.forget(&hubv1.Forget{Ids: []uint64{1}})
	check(t, "after it was forgotten", d.describe(describeOf(t, 2, large)), "")
	d.forget(&hubv1.Forget{Ids: []uint64{2}})
	if d.bytes != 0 || len(d.known) > 0 {
		t.Errorf("%d bytes of %d descriptions are left after all were forgotten", d.bytes, len(d.known))
	}
}

func TestAnAssignmentComesWithItsDescription(t *testing.T) {
	ca := newAuthority(t)
	h := serve(t, "", ca.leaf(t, serverName))
	f := start(t, nil)
	f.SetReplicas([]Replica{{Name: "a", Address: h.address, Ready: true}})
	f.SetRoots(ca.roots())
	s := h.next(t)
	assign := func(uid string, id uint64) *hubv1.HubMessage {
		return &hubv1.HubMessage{Message: &hubv1.HubMessage_Assign{Assign: naming(uid, id)}}
	}
	s.send(t,
		&hubv1.HubMessage{Message: &hubv1.HubMessage_Describe{Describe: describeOf(t, 1, "x")}},
		assign("u", 1), assign("v", 1), assign("w", 2),
		&hubv1.HubMessage{Message: &hubv1.HubMessage_Forget{Forget: &hubv1.Forget{Ids: []uint64{1}}}},
		assign("x", 1), synced,
	)
	f.await(t, "a assign u 0", "a assign v 0", "a assign w 0", "a assign x 0", "a forget before 1")
	got := f.descriptions
	if got[0] == nil || got[0] != got[1] {
		t.Error("two assignments with one description do not share it")
	}
	if got[2] != nil || got[3] != nil {
		t.Error("an assignment has a description that is not known")
	}
	// A new session knows none.
	close(s.end)
	s = h.next(t)
	s.send(t, assign("u", 1))
	f.await(t, "a assign u 0")
	if f.descriptions[4] != nil {
		t.Error("a description outlives its session")
	}
	if want := []confirm.Source{{Replica: "a", Session: 1}}; !slices.Equal(f.ended, want) {
		t.Errorf("sessions said to be over: %v, want %v", f.ended, want)
	}
}

// nowhere takes what it is told.
type nowhere struct{}

func (nowhere) Assign(confirm.Source, *hubv1.Assign, *confirm.Description) error { return nil }
func (nowhere) Withdraw(confirm.Source, string)                                  {}
func (nowhere) Ended(confirm.Source)                                             {}
func (nowhere) Forget(string, uint64)                                            {}
func (nowhere) Release(*hubv1.Release)                                           {}

func FuzzWhatAHubSends(f *testing.F) {
	for _, m := range []*hubv1.HubMessage{
		{Message: &hubv1.HubMessage_Describe{Describe: describeOf(f, 1, "x")}},
		{Message: &hubv1.HubMessage_Forget{Forget: &hubv1.Forget{Ids: []uint64{1, 1}}}},
		{Message: &hubv1.HubMessage_Assign{Assign: naming("u", 1)}},
		syncedWithin(1 << 31), assignOf("u", 1), {},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, b)
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		c := New(Options{Log: logr.Discard()})
		l := newLink(c, Replica{Name: "a"}, func() {})
		d := newDescriptions()
		for _, b := range [][]byte{first, second, first} {
			var m hubv1.HubMessage
			if proto.Unmarshal(b, &m) != nil {
				return
			}
			l.handle(confirm.Source{Replica: "a", Session: 1}, d, &m, nowhere{}, nowhere{})
		}
		sum := 0
		for id, k := range d.known {
			sum += k.bytes
			if id == 0 {
				t.Error("a description has id 0")
			}
		}
		if sum != d.bytes {
			t.Errorf("%d bytes are counted, %d are kept", d.bytes, sum)
		}
		if p := pause(0, c.spread(), false, 1); p > maxSpread {
			t.Errorf("waits %v, want at most %v", p, maxSpread)
		}
	})
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nlconn

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAnAnswerToOneRequest(t *testing.T) {
	errno := func(n int32) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(n)) }
	short := Message(5, 0, 7, []byte("body"))
	for name, c := range map[string]struct {
		data    []byte
		body    string
		refusal error
		mine    bool
		broken  bool
	}{
		"an answer":            {Message(5, 0, 7, []byte("body")), "body", nil, true, false},
		"a refusal":            {Message(unix.NLMSG_ERROR, 0, 7, errno(-2)), "", unix.ENOENT, true, false},
		"a late answer":        {Message(5, 0, 6, []byte("body")), "", nil, false, false},
		"an acknowledgement":   {Message(unix.NLMSG_ERROR, 0, 7, errno(0)), "", nil, false, true},
		"an error of no bytes": {Message(unix.NLMSG_ERROR, 0, 7, nil), "", nil, false, true},
		"nothing":              {nil, "", nil, false, true},
		"less than it says":    {short[:len(short)-1], "", nil, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			body, refusal, mine, err := oneAnswer(c.data, 7)
			if string(body) != c.body || !errors.Is(refusal, c.refusal) || mine != c.mine || (err != nil) != c.broken {
				t.Errorf("got %q, refusal %v, mine %t, error %v", body, refusal, mine, err)
			}
		})
	}
}

// TestEveryRequestIsAnsweredInItsOrder asks for commits to nf_tables: without
// CAP_NET_ADMIN the kernel refuses each request.
func TestEveryRequestIsAnsweredInItsOrder(t *testing.T) {
	c, err := Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	requests := make([][]byte, 3*inFlight+1)
	for i := range requests {
		requests[i] = NFGenMsg(unix.AF_UNSPEC, 0)
	}
	next := 0
	err = c.AskEach(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, requests, func(i int, body []byte, refusal error) {
		if i != next || (len(body) == 0) == (refusal == nil) {
			t.Errorf("answer %d, want %d: %x, %v", i, next, body, refusal)
		}
		next++
	})
	if err != nil || next != len(requests) {
		t.Errorf("%d answers to %d requests, error %v", next, len(requests), err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.AskEach(0, requests, func(int, []byte, error) {}); err == nil {
		t.Error("a closed connection answers")
	}
}

func FuzzOneAnswer(f *testing.F) {
	f.Add(Message(5, 0, 7, []byte("body")))
	f.Add(Message(unix.NLMSG_ERROR, 0, 7, []byte{254, 255, 255, 255}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if body, refusal, mine, err := oneAnswer(data, 7); err != nil && (body != nil || refusal != nil || mine) {
			t.Errorf("an answer with an error: %x, %v, %t", body, refusal, mine)
		}
	})
}

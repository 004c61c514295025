// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// Description is what assignments of many subjects share, decoded and
// validated once. It is never written to, and safe for concurrent use.
type Description struct {
	// hash identifies the content: equal contents have equal hashes.
	hash [sha256.Size]byte
	// count is how many expectations there are, expectations those before the
	// first that cannot be judged: all, unless malformed says why not.
	count        int
	expectations []expectation
	malformed    *unmet
	// whys is how many there are.
	whys int
	// own has, per family, the first expectation that leaves out the subject's
	// own address, or -1.
	own [families]int
}

// end is the end of a flow at which the subject's own address was left out.
type end uint8

const (
	neither end = iota
	source
	destination
)

// expectation is one flow and the answer that this node must give.
type expectation struct {
	// flow has the unspecified address of the other end's family at own.
	flow flow.Flow
	own  end
	want flow.Answer
	// advisory and witness are set for an Allowed only.
	advisory bool
	external bool
	witness  bool
	why      uint32
}

// ParseDescription decodes the content of a Describe. The error says what is
// malformed. What cannot be judged in what it says, such as a flow without
// addresses, is no error: it is reported for each subject.
func ParseDescription(content []byte) (*Description, error) {
	var m hubv1.Description
	if err := proto.Unmarshal(content, &m); err != nil {
		return nil, fmt.Errorf("description of %d bytes: %w", len(content), err)
	}
	d := &Description{
		hash:         sha256.Sum256(content),
		count:        len(m.GetExpectations()),
		expectations: make([]expectation, 0, len(m.GetExpectations())),
		whys:         len(m.GetWhys()),
		own:          [families]int{-1, -1},
	}
	for i, of := range m.GetExpectations() {
		e, err := d.expectation(of)
		if err != nil {
			d.malformed = malformedAt(i, err)
			break
		}
		if f := familyOf(e.flow); e.own != neither && d.own[f] < 0 {
			d.own[f] = i
		}
		d.expectations = append(d.expectations, e)
	}
	return d, nil
}

// malformedAt says that the expectation of that index cannot be judged.
func malformedAt(index int, err error) *unmet {
	return &unmet{index: index, reason: printable(fmt.Sprintf("%sexpectation %d: %v", hubv1.ReasonMalformed, index, err))}
}

// expectation returns what m says, or why it cannot be judged. A Denied is
// required whatever its advisory says.
func (d *Description) expectation(m *hubv1.Expectation) (expectation, error) {
	f, own, err := flowOf(m.GetFlow())
	if err != nil {
		return expectation{}, err
	}
	want, err := m.GetWant().Value()
	if err != nil {
		return expectation{}, err
	}
	// A description without whys names no reasons; its indexes are all 0.
	if why := int64(m.GetWhy()); why >= int64(d.whys) && (why > 0 || d.whys > 0) {
		return expectation{}, fmt.Errorf("why %d: want an index into %d whys", why, d.whys)
	}
	if m.GetWitness() && want != flow.Allowed {
		return expectation{}, errors.New("witness of a Denied: want that of an Allowed")
	}
	return expectation{
		flow: f, own: own, want: want,
		advisory: m.GetAdvisory() && want == flow.Allowed,
		external: m.GetExternal(),
		witness:  m.GetWitness(),
		why:      m.GetWhy(),
	}, nil
}

// flowOf returns the flow of a description, with the unspecified address at
// the end that was left out.
func flowOf(m *hubv1.Flow) (f flow.Flow, own end, err error) {
	src, dst := m.GetSrc(), m.GetDst()
	switch {
	case m == nil:
	case len(src) == 0 && len(dst) == 0:
		return flow.Flow{}, neither, errors.New("flow source and destination are both left out: want at most one, the subject's own")
	case len(src) == 0:
		own, src = source, unspecified(dst)
	case len(dst) == 0:
		own, dst = destination, unspecified(src)
	}
	if own != neither {
		m = &hubv1.Flow{Protocol: m.GetProtocol(), Src: src, Dst: dst, Port: m.GetPort()}
	}
	f, err = m.Value()
	return f, own, err
}

// unspecified returns the unspecified address of the other end's family.
func unspecified(other []byte) []byte {
	if len(other) == 16 {
		return make([]byte, 16)
	}
	return make([]byte, 4)
}

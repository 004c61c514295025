// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ipset

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
)

// description is what a set is.
type description struct {
	// kind is the type's name, such as "hash:ip,port", and fields what it says
	// of the elements: "ip", "port".
	kind   string
	fields []string
	family uint8
	// members are the sets of a list:set, those that have not timed out.
	members []string
	// err, if not empty, says why the others are not known.
	err string
}

func (d description) isList() bool { return d.kind == "list:set" }

// answer returns the description as what was asked for.
func (d description) answer() Answer {
	if d.err != "" {
		return Answer{Text: d.err}
	}
	text := fmt.Sprintf("%s, family %d", d.kind, d.family)
	if d.isList() {
		// A name can have any byte but NUL.
		text += ": " + strings.Join(d.members, "\x00")
	}
	return Answer{Text: text}
}

// describe asks for a set's type and family, which pins nothing, and lists it
// if it is a list:set.
//
// A list:set has to be listed, as TEST of an address in it answers "not in"
// without looking, and nothing else names its members; and it has to be listed
// in every look that asks it, as nothing tells when they change. In contrast
// to other sets that is in nobody's way: the kernel pins the set that is
// listed and not those that it names (ip_set_dump_do), and lets go of it when
// the last member is in the answer. That is still within the call that asks,
// during which no other command of ipset runs, unless the members fill a
// datagram: several hundred. Such a list is not waited for but an error.
func describe(c Conn, name string) description {
	d, err := header(c, name)
	if err == nil && d.isList() {
		d.members, err = list(c, name)
	}
	if err != nil {
		return description{err: err.Error()}
	}
	return d
}

func header(c Conn, name string) (description, error) {
	d := description{}
	err := c.Ask(subsysIPSet|ipsetHeader, 0, setRequest(nil, name), func(body []byte) (err error) {
		d, err = described(body)
		return err
	})
	if err != nil {
		return d, fmt.Errorf("header of set %s: %w", name, err)
	}
	return d, nil
}

// described reads the answer to HEADER.
func described(body []byte) (description, error) {
	d := description{}
	if len(body) < nlconn.NFGenMsgLen {
		return d, errors.New("answer without header")
	}
	err := nlconn.Attributes(body[nlconn.NFGenMsgLen:], func(kind uint16, value []byte) {
		switch kind {
		case ipsetAttrTypeName:
			d.kind = nlconn.Text(value)
		case ipsetAttrFamily:
			if len(value) > 0 {
				d.family = value[0]
			}
		}
	})
	if _, fields, ok := strings.Cut(d.kind, ":"); ok {
		d.fields = strings.Split(fields, ",")
	}
	return d, err
}

// errLongList means that a list:set has more members than are told at once, so
// that reading them would keep it pinned between two datagrams, and they would
// not be of one moment.
var errLongList = errors.New("more members than fit into one answer")

// list returns the names of the members of a list:set.
func list(c Conn, name string) ([]string, error) {
	var members []string
	answers := 0
	err := c.Ask(subsysIPSet|ipsetList, unix.NLM_F_DUMP, setRequest(nil, name), func(body []byte) error {
		if answers++; answers > 1 {
			return errLongList
		}
		var err error
		members, err = listed(body)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("members of set %s: %w", name, err)
	}
	return members, nil
}

// listed reads one answer to LIST of a list:set.
func listed(body []byte) ([]string, error) {
	if len(body) < nlconn.NFGenMsgLen {
		return nil, errors.New("answer without header")
	}
	var members []string
	var problem error
	kind := ""
	err := nlconn.Attributes(body[nlconn.NFGenMsgLen:], func(attr uint16, value []byte) {
		switch attr {
		case ipsetAttrTypeName:
			kind = nlconn.Text(value)
		case ipsetAttrADT:
			err := nlconn.Attributes(value, func(_ uint16, element []byte) {
				name, err := memberName(element)
				members, problem = append(members, name), errors.Join(problem, err)
			})
			problem = errors.Join(problem, err)
		}
	})
	if err == nil && kind != "list:set" {
		err = fmt.Errorf("a set of type %q, want a list:set", kind)
	}
	return members, errors.Join(err, problem)
}

// memberName reads one element of a list:set.
func memberName(element []byte) (string, error) {
	name := ""
	err := nlconn.Attributes(element, func(kind uint16, value []byte) {
		if kind == ipsetAttrName {
			name = nlconn.Text(value)
		}
	})
	if err == nil && name == "" {
		err = errors.New("a member without a name")
	}
	return name, err
}

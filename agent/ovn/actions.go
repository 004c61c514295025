// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"fmt"
	"slices"
	"strings"
)

// effect is what a list of datapath actions does to a packet.
type effect struct {
	// drop: the list says so, and nothing else.
	drop bool
	// outputs counts the ports that the packet is sent to, tunnels included.
	outputs int
	// recirculations are the ids with which it comes again.
	recirculations []string
	// controllers counts the copies for ovn-controller.
	controllers int
	// source and destination: it leaves with another address or port than it
	// came with.
	source, destination bool
}

// deepest bounds how deep actions may be nested: a clone within a clone is
// more than OVN makes.
const deepest = 4

// effectOf reads datapath actions as Open vSwitch prints them. The error names
// the first that is not understood.
func effectOf(actions string) (effect, error) {
	var e effect
	err := e.read(actions, deepest)
	return e, err
}

func (e *effect) read(actions string, depth int) error {
	if depth == 0 {
		return fmt.Errorf("the datapath's actions are nested too deep: %q", actions)
	}
	all, err := split(actions)
	if err != nil {
		return err
	}
	if slices.Equal(all, []string{"drop"}) {
		e.drop = true
		return nil
	}
	for i, a := range all {
		if err := e.action(a, depth); err != nil {
			return err
		}
		// A header is pushed for the output that follows it.
		if strings.HasPrefix(a, "tnl_push(") && (i+1 == len(all) || !isPort(all[i+1])) {
			return fmt.Errorf("the datapath pushes a tunnel header for no port: %q", actions)
		}
	}
	return nil
}

// action reads a single one.
func (e *effect) action(a string, depth int) error {
	name, arguments, ok := call(a)
	switch {
	case isPort(a):
		e.outputs++
	case a == "ct_clear" || a == "pop_vlan" || a == "ct":
	case !ok:
		return fmt.Errorf("the datapath's action %q is not understood", a)
	case name == "recirc":
		e.recirculations = append(e.recirculations, arguments)
	case name == "clone":
		return e.read(arguments, depth-1)
	case name == "ct":
		return e.track(arguments)
	case name == "set":
		return e.set(arguments)
	case isCopy(a):
		e.controllers++
	case name == "tnl_push" || name == "push_vlan" || name == "hash":
	default:
		return fmt.Errorf("the datapath's action %q is not understood", a)
	}
	return nil
}

// isCopy reports whether an action sends a copy to ovn-controller, and may do so
// as often as a meter allows.
func isCopy(a string) bool {
	name, arguments, _ := call(a)
	all, err := split(arguments)
	if err != nil || len(all) != 2 {
		return false
	}
	inner, what, ok := call(all[1])
	switch {
	case !ok:
	case name == "userspace":
		// The other argument is a socket's number, which only the kernel's
		// datapath has.
		return inner == "controller"
	case name == "sample" && inner == "actions":
		metered, err := split(what)
		return err == nil && len(metered) == 2 && strings.HasPrefix(metered[0], "meter(") &&
			strings.HasPrefix(metered[1], "userspace(") && isCopy(metered[1])
	}
	return false
}

// track reads the arguments of connection tracking.
func (e *effect) track(arguments string) error {
	all, err := split(arguments)
	if err != nil {
		return err
	}
	for _, a := range all {
		name, value, _ := strings.Cut(a, "=")
		inner, rewriting, called := call(a)
		switch {
		case called && inner == "nat":
			// "nat(src)" leaves the source as it is, "nat(src=10.0.0.1)" does not.
			e.source = e.source || strings.Contains(rewriting, "src=")
			e.destination = e.destination || strings.Contains(rewriting, "dst=")
		case a == "commit" || a == "force_commit" || a == "nat":
		case value != "" && slices.Contains([]string{"zone", "mark", "label", "timeout"}, name):
		default:
			return fmt.Errorf("the argument %q of connection tracking is not understood", a)
		}
	}
	return nil
}

// set reads what a header is set to.
func (e *effect) set(arguments string) error {
	header, values, ok := call(arguments)
	if !ok {
		return fmt.Errorf("the datapath's action %q is not understood", "set("+arguments+")")
	}
	switch header {
	case "eth", "arp", "nd", "tunnel", "skb_mark", "skb_priority":
		return nil
	case "ipv4", "ipv6", "tcp", "udp", "sctp":
		all, err := split(values)
		if err != nil {
			return err
		}
		for _, v := range all {
			e.source = e.source || strings.HasPrefix(v, "src=")
			e.destination = e.destination || strings.HasPrefix(v, "dst=")
		}
		return nil
	}
	return fmt.Errorf("that the datapath sets %q is not understood", header)
}

// split splits a list at the commas that are in no parentheses.
func split(list string) ([]string, error) {
	var all []string
	depth, from := 0, 0
	for i := range len(list) {
		switch list[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth < 0 {
				return nil, fmt.Errorf("unbalanced parentheses in %q", list)
			}
		case ',':
			if depth == 0 {
				all, from = append(all, list[from:i]), i+1
			}
		}
	}
	all = append(all, list[from:])
	if depth != 0 || slices.Contains(all, "") {
		return nil, fmt.Errorf("unbalanced parentheses or an empty element in %q", list)
	}
	return all, nil
}

// call takes "name(arguments)" apart.
func call(text string) (name, arguments string, ok bool) {
	name, rest, ok := strings.Cut(text, "(")
	if !ok || name == "" || !strings.HasSuffix(rest, ")") {
		return "", "", false
	}
	arguments = strings.TrimSuffix(rest, ")")
	// The parenthesis that ends it is the one that began it.
	if _, err := split(arguments); err != nil && arguments != "" {
		return "", "", false
	}
	return name, arguments, true
}

// isPort reports whether an action sends to a port of the datapath.
func isPort(a string) bool {
	return a != "" && len(a) <= 10 && strings.Trim(a, "0123456789") == ""
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import "time"

// maxPeers is how many Pods of its namespace an opening is looked at with, in
// each part that a Pod can play: the newest, which are what gates are about.
const maxPeers = 3

// surroundings are who else there is when a Pod is looked at.
type surroundings struct {
	// intent is that of the Pod's namespace.
	intent Intent
	// peers are the other Pods of the namespace, the oldest address first.
	peers []Life
	// strangers are Pods that no policy concerns.
	strangers []Life
	// outsider is an address outside of the cluster.
	outsider Party
}

// plan returns the flows that the opening of a Pod's gate says something about,
// with what they are to be.
func plan(self Life, s surroundings) []Look {
	looks := intrusions(self, s)
	var servers, others []Life
	for _, p := range s.peers {
		// The younger waits for the older.
		told := p.Order < self.Order || p.Open()
		switch {
		case p.Pod.UID == self.Pod.UID || !p.Gone.IsZero() || !p.IP().IsValid() || !told:
		case p.RoleOf() == Server:
			servers = append(servers, p)
		default:
			others = append(others, p)
		}
	}
	if self.RoleOf() == Server {
		for _, p := range newest(others) {
			looks = append(looks, visits(p, self, s.intent)...)
		}
		return looks
	}
	for _, p := range newest(servers) {
		for _, port := range []uint16{servedPort, otherPort} {
			l := Look{From: self.Party(), To: p.Party(), Port: port, Want: s.intent.Allows(self.RoleOf(), Server, port)}
			// Refused by the server's own isolation: that is its gate's affair.
			if l.Want || !s.intent.Out(self.RoleOf(), Server, port) {
				looks = append(looks, l)
			}
		}
	}
	if p, ok := elsewhere(self, s.strangers); ok {
		looks = append(looks, Look{
			From: self.Party(), To: p.Party(), Port: servedPort,
			Want: s.intent.Allows(self.RoleOf(), Stranger, servedPort),
		})
	}
	return looks
}

// intrusions are what strangers try.
func intrusions(self Life, s surroundings) []Look {
	isolated := s.intent.Isolated(self.RoleOf())
	var looks []Look
	try := func(from Party) {
		looks = append(looks, Look{From: from, To: self.Party(), Port: servedPort, Want: !isolated})
	}
	if p, ok := elsewhere(self, s.strangers); ok {
		try(p.Party())
	}
	if isolated {
		for _, p := range s.strangers {
			if p.Pod.Spec.NodeName == self.Pod.Spec.NodeName {
				try(p.Party())
				break
			}
		}
		try(s.outsider)
	}
	return looks
}

// visits are what a Pod of the namespace tries at a server.
func visits(from, self Life, intent Intent) []Look {
	var looks []Look
	for _, port := range []uint16{servedPort, otherPort} {
		l := Look{From: from.Party(), To: self.Party(), Port: port, Want: intent.Allows(from.RoleOf(), Server, port)}
		// Refused by the visitor's own confinement: that is its gate's affair.
		if l.Want || !intent.In(from.RoleOf(), Server, port) {
			looks = append(looks, l)
		}
	}
	return looks
}

// elsewhere returns a stranger on another node: not always the same one.
func elsewhere(self Life, strangers []Life) (Life, bool) {
	var all []Life
	for _, p := range strangers {
		if p.Pod.Spec.NodeName != self.Pod.Spec.NodeName {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return Life{}, false
	}
	return all[self.Order%len(all)], true
}

func newest(all []Life) []Life {
	return all[max(len(all)-maxPeers, 0):]
}

// rounds are when an opening is looked at, from the instant at which it was
// seen.
func rounds() []time.Duration {
	return []time.Duration{
		0, 500 * time.Millisecond, 1200 * time.Millisecond, 2500 * time.Millisecond,
		5 * time.Second, 8 * time.Second, 12 * time.Second, 18 * time.Second, 25 * time.Second,
	}
}

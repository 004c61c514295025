// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"crypto/x509"
	"slices"
	"time"
)

// Keys of the Secret policygate-ca.
const (
	keyCert     = "ca.crt"
	keyKey      = "ca.key"
	keyPrevious = "previous.crt"
	// keyPublished holds when ca.crt was first seen in every bundle, RFC 3339.
	keyPublished = "published"
	// keyRotated holds the value of AnnotationRotate when ca.crt was made.
	keyRotated = "rotated"
)

// Keys of the Secret policygate-tls, those of the type kubernetes.io/tls.
const (
	keyTLSCert = "tls.crt"
	keyTLSKey  = "tls.key"
)

// material is what the Secrets hold, as far as it can be read.
type material struct {
	// ca is the authority; nil if there is none that can sign.
	ca *pair
	// caProblem says why ca is nil.
	caProblem string
	// published is when every bundle held ca; zero if that is not known.
	published time.Time
	// rotated is the request by which ca was made, or that was there already.
	rotated string
	// previous are former authorities that are still trusted.
	previous []*x509.Certificate
	// leaf is the serving certificate; nil if there is none to be used.
	leaf *pair
	// leafProblem says why leaf is nil.
	leafProblem string
}

// readMaterial reads the data of the two Secrets and the published bundle,
// which says what is trusted where the Secret of the authority was lost.
func readMaterial(ca, leaf map[string][]byte, bundle string) material {
	var m material
	var err error
	if m.leaf, err = parsePair(leaf[keyTLSCert], leaf[keyTLSKey]); err != nil {
		m.leaf, m.leafProblem = nil, err.Error()
	}
	m.previous = parseBundle(ca[keyPrevious])
	m.rotated = string(ca[keyRotated])
	m.ca, err = parsePair(ca[keyCert], ca[keyKey])
	if err == nil && m.ca.cert.IsCA {
		// Unparsable is not known to be published, and is published again.
		if at, err := time.Parse(time.RFC3339, string(ca[keyPublished])); err == nil {
			m.published = at
		}
		return m
	}
	m.ca, m.caProblem = nil, "its certificate is not an authority's"
	if err != nil {
		m.caProblem = err.Error()
	}
	// What the replicas serve now stays trusted until they serve another.
	m.previous = slices.DeleteFunc(append(m.previous, parseBundle([]byte(bundle))...),
		func(c *x509.Certificate) bool { return m.leaf == nil || !signed(c, m.leaf.cert) })
	m.previous = slices.CompactFunc(m.previous, (*x509.Certificate).Equal)
	return m
}

// authorityDue returns why a new authority is to be made, or "". Requested is
// the value of AnnotationRotate, "" if there is none; it has to wait while a
// former authority is still trusted, so that repeated requests do not make the
// bundle grow.
func (m material) authorityDue(now time.Time, requested string) string {
	if m.ca == nil {
		return m.caProblem
	}
	if why := invalid(m.ca.cert, now); why != "" {
		return why
	}
	if !now.Before(renewal(m.ca.cert)) {
		return "two thirds of its life are over"
	}
	if requested != "" && requested != m.rotated && len(m.previous) == 0 {
		return "annotation " + AnnotationRotate + " has another value than when it was made"
	}
	return ""
}

// withAuthority returns m with a new authority in place of its own, which
// stays trusted, and with what was requested done.
func (m material) withAuthority(ca *pair, requested string) material {
	if m.ca != nil {
		m.previous = append([]*x509.Certificate{m.ca.cert}, m.previous...)
	}
	m.ca, m.caProblem, m.published, m.rotated = ca, "", time.Time{}, requested
	return m
}

// prune returns m without the former authorities that no replica needs any
// more: the expired ones, and all once what the present one has signed was
// there to be served for overlap.
func (m material) prune(now time.Time, overlap time.Duration) material {
	served := m.ca != nil && m.leaf != nil && signed(m.ca.cert, m.leaf.cert) &&
		!now.Before(issued(m.leaf.cert).Add(overlap))
	var kept []*x509.Certificate
	for _, c := range m.previous {
		if !served && now.Before(c.NotAfter) {
			kept = append(kept, c)
		}
	}
	m.previous = kept
	return m
}

// trusted returns the bundle, the present authority first.
func (m material) trusted() []*x509.Certificate {
	return append([]*x509.Certificate{m.ca.cert}, m.previous...)
}

// leafDue returns why a new serving certificate is to be signed by the present
// authority, or "". The present authority must be there and published.
func (m material) leafDue(now time.Time, names []string, overlap time.Duration) string {
	if m.leaf == nil {
		return m.leafProblem
	}
	leaf := m.leaf.cert
	if why := invalid(leaf, now); why != "" {
		return why
	}
	for _, name := range names {
		if err := leaf.VerifyHostname(name); err != nil {
			return "it is not for the name " + name
		}
	}
	known := func(c *x509.Certificate) bool { return signed(c, leaf) }
	switch trust := m.published.Add(overlap); {
	case !slices.ContainsFunc(m.trusted(), known):
		return "no authority that is trusted has signed it"
	case known(m.ca.cert):
		if !now.Before(renewal(leaf)) {
			return "two thirds of its life are over"
		}
	case !now.Before(trust):
		return "the authority that signed it has been replaced"
	case leaf.NotAfter.Before(trust):
		return "it expires before every client trusts the new authority"
	}
	return ""
}

// next returns how long nothing is due, if nothing changes. All parts of m
// must be there.
func (m material) next(now time.Time, overlap time.Duration) time.Duration {
	due := []time.Time{renewal(m.ca.cert)}
	for _, c := range m.previous {
		due = append(due, c.NotAfter)
	}
	if signed(m.ca.cert, m.leaf.cert) {
		due = append(due, renewal(m.leaf.cert))
		if len(m.previous) > 0 {
			due = append(due, issued(m.leaf.cert).Add(overlap))
		}
	} else {
		due = append(due, m.published.Add(overlap))
	}
	// What is due already has just been done.
	return max(slices.MinFunc(due, time.Time.Compare).Sub(now), time.Second)
}

// signed returns whether authority has signed c.
func signed(authority, c *x509.Certificate) bool {
	return c.CheckSignatureFrom(authority) == nil
}

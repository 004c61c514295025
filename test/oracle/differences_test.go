// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package oracle

// correction is a set of ways in which cyclonus is told something else than
// the objects say, so that it answers as expect does.
type correction uint16

const (
	notInMatchesAbsent correction = 1 << iota
	emptyValueNeedsKey
	policyTypesDefault
	leadingZerosAreDecimal
	everyNameOfPort
	hostNetworkIsOutside
	finishedHasNoAddress
	terminatingIsNoPeer
	unknownNamespaceMatchesNothing
)

// everyCorrection is what the table has, so that nothing is corrected that it
// does not name.
func everyCorrection() correction {
	var out correction
	for _, d := range differences() {
		out |= d.correct
	}
	return out
}

// side is who does what the API's documentation says.
type side string

const (
	expectFollows side = "expect"
	// neitherFollows: the documentation does not say.
	neitherFollows side = "not documented"
)

// difference is one way in which cyclonus and expect are known to differ.
type difference struct {
	name    string
	correct correction
	follows side
	reason  string
}

func differences() []difference {
	return []difference{
		{
			name: "NotIn and an absent key", correct: notInMatchesAbsent, follows: expectFollows,
			reason: "cyclonus takes NotIn to need the key. The API: `notin` selects objects with no label of that key as well " +
				"(concepts/overview/working-with-objects/labels; labels.Requirement.Matches)",
		},
		{
			name: "matchLabels with an empty value", correct: emptyValueNeedsKey, follows: expectFollows,
			reason: "cyclonus reads an absent label as an empty one. The API: {key: value} in matchLabels is `key In [value]`, " +
				"which needs the key (metav1.LabelSelector)",
		},
		{
			name: "policyTypes that are not given", correct: policyTypesDefault, follows: expectFollows,
			reason: "cyclonus panics. The API: they default to Ingress, and Egress if there are egress rules " +
				"(NetworkPolicySpec.policyTypes); the API server writes them, but expect must not depend on it",
		},
		{
			name: "a CIDR with leading zeros", correct: leadingZerosAreDecimal, follows: expectFollows,
			reason: "cyclonus panics, as net.ParseCIDR has refused them since Go 1.17. The API server admitted them in ipBlocks, " +
				"as decimal, and still takes updates of such objects (k8s.io/utils/net.ParseCIDRSloppy)",
		},
		{
			name: "a port with two names", correct: everyNameOfPort, follows: expectFollows,
			reason: "cyclonus is asked for one name of a port. The API: containers of one Pod may name the same number " +
				"differently, and a policy may use any of the names (ContainerPort.name, NetworkPolicyPort.port)",
		},
		{
			name: "a Pod on the host's network", correct: hostNetworkIsOutside, follows: neitherFollows,
			reason: "to cyclonus it is a Pod as any other. The documentation calls it undefined, and has an engine treat it as its " +
				"node's address where it cannot tell them apart: so does expect, and asks nothing of it",
		},
		{
			name: "a Pod that is finished", correct: finishedHasNoAddress, follows: neitherFollows,
			reason: "to cyclonus it is a Pod as any other. Its address is free for another Pod (PodPhase: all its containers have " +
				"terminated), so expect takes the address for that of whoever has it now",
		},
		{
			name: "a Pod that is being deleted", correct: terminatingIsNoPeer, follows: neitherFollows,
			reason: "to cyclonus it is a Pod as any other. How long a selector means it is not documented, and engines differ: " +
				"expect asks for no flow from or to it",
		},
		{
			name: "a namespace that is not known", correct: unknownNamespaceMatchesNothing, follows: neitherFollows,
			reason: "to cyclonus its labels are empty. In the API no Pod is without its namespace; a replica may see the Pod first, " +
				"and until it sees the namespace no namespaceSelector matches the Pod",
		},
	}
}

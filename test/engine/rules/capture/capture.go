// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package capture reads recorded kernel state of kube-router and the objects
// it was made from, and brings the state into a form in which two recordings
// of the same objects are equal: chains are named by what they stand for
// instead of by a hash that changes at every sync, and rules whose order is
// random are sorted. It judges nothing.
package capture

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Objects are what a recording was made from.
type Objects struct {
	Nodes      []*corev1.Node
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	Policies   []*networkingv1.NetworkPolicy
}

// ParseObjects reads a stream of YAML documents. An object without a UID gets
// its namespace and name as one. A kind other than the four is an error.
func ParseObjects(data []byte) (Objects, error) {
	var objects Objects
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for n := 1; ; n++ {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return Objects{}, fmt.Errorf("document %d: %w", n, err)
		}
		if err := objects.add(document); err != nil {
			return Objects{}, fmt.Errorf("document %d: %w", n, err)
		}
	}
}

func (o *Objects) add(document []byte) error {
	var head struct {
		Kind     string `json:"kind"`
		Metadata struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal(document, &head); err != nil {
		return fmt.Errorf("parse: %w", err)
	}
	uid := types.UID(head.Metadata.Namespace + "/" + head.Metadata.Name)
	switch head.Kind {
	case "Node":
		node := &corev1.Node{}
		o.Nodes = append(o.Nodes, node)
		return yaml.UnmarshalStrict(document, node)
	case "Namespace":
		namespace := &corev1.Namespace{}
		o.Namespaces = append(o.Namespaces, namespace)
		return yaml.UnmarshalStrict(document, namespace)
	case "Pod":
		pod := &corev1.Pod{}
		o.Pods = append(o.Pods, pod)
		err := yaml.UnmarshalStrict(document, pod)
		if pod.UID == "" {
			pod.UID = uid
		}
		return err
	case "NetworkPolicy":
		policy := &networkingv1.NetworkPolicy{}
		o.Policies = append(o.Policies, policy)
		return yaml.UnmarshalStrict(document, policy)
	default:
		return fmt.Errorf("kind %q, want Node, Namespace, Pod or NetworkPolicy", head.Kind)
	}
}

// NodeAddresses returns the addresses of the named node, nil if there is none.
func (o Objects) NodeAddresses(name string) []string {
	var addresses []string
	for _, node := range o.Nodes {
		if node.Name != name {
			continue
		}
		for _, a := range node.Status.Addresses {
			addresses = append(addresses, a.Address)
		}
	}
	return addresses
}

// Sets reads ipset save text into type, family and sorted members by set name.
// Members are without their timeout; hash seeds and sizes are left out.
func Sets(save string) (map[string][]string, error) {
	sets := map[string][]string{}
	for line := range strings.Lines(save) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
		case fields[0] == "create" && len(fields) > 4:
			sets[fields[1]] = []string{fields[2] + " " + fields[4]}
		case fields[0] == "add" && len(fields) > 2 && sets[fields[1]] != nil:
			member := strings.ReplaceAll(strings.Join(fields[2:], " "), " timeout 0", "")
			sets[fields[1]] = append(sets[fields[1]], member)
		default:
			return nil, fmt.Errorf("ipset save: line %q is neither create nor add of a created set", strings.TrimSpace(line))
		}
	}
	for _, lines := range sets {
		slices.Sort(lines[1:])
	}
	return sets, nil
}

// Filter reads iptables-save text of one filter table into rules by chain,
// named by what it stands for.
func Filter(save string) (map[string][]string, error) {
	chains := map[string][]string{}
	for line := range strings.Lines(save) {
		line = strings.TrimSpace(line)
		if name, isChain := strings.CutPrefix(line, ":"); isChain {
			name, _, _ = strings.Cut(name, " ")
			chains[name] = []string{}
			continue
		}
		rule, isRule := strings.CutPrefix(line, "-A ")
		if !isRule {
			continue
		}
		name, rule, _ := strings.Cut(rule, " ")
		if _, ok := chains[name]; !ok {
			return nil, fmt.Errorf("rule in chain %q, which is not declared", name)
		}
		chains[name] = append(chains[name], rule)
	}
	return rename(chains)
}

// rename gives chains of Pods and policies the names of these, taken from the
// comments of the rules that jump to them or, where nothing does, that they
// hold.
func rename(chains map[string][]string) (map[string][]string, error) {
	names := map[string]string{}
	for name, rules := range chains {
		for _, rule := range rules {
			comment, target := comment(rule), target(rule)
			object, _, _ := strings.Cut(comment, " ")
			switch {
			case strings.HasPrefix(target, "KUBE-POD-FW-"):
				names[target] = "pod " + object
			case strings.HasPrefix(target, "KUBE-NWPLCY-") && strings.HasSuffix(comment, " policy"):
				names[target] = "policy " + object
			case hashed(name) && names[name] == "" && strings.HasPrefix(name, "KUBE-NWPLCY-"):
				names[name] = "policy " + object
			}
		}
	}
	renamed := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(chains)) {
		rules := slices.Clone(chains[name])
		for i, rule := range rules {
			if to := names[target(rule)]; to != "" {
				rules[i] = strings.ReplaceAll(rule, target(rule), "<"+to+">")
			}
		}
		as := name
		if to := names[name]; to != "" {
			as = to
		} else if hashed(name) {
			as = "unreferenced and empty"
		}
		if _, twice := renamed[as]; twice {
			return nil, fmt.Errorf("two chains are %q", as)
		}
		renamed[as] = sortRandom(rules)
	}
	return renamed, nil
}

// hashed tells whether a chain's name is that of a Pod or a policy.
func hashed(name string) bool {
	switch name {
	case "KUBE-NWPLCY-COMMON", "KUBE-NWPLCY-DEFAULT", "KUBE-NWPLCY-TAIL":
		return false
	}
	return strings.HasPrefix(name, "KUBE-NWPLCY-") || strings.HasPrefix(name, "KUBE-POD-FW-")
}

// sortRandom sorts runs of jumps to Pods, in a top chain, and to policies, in
// a Pod's chain, by their target. Jumps to one target keep their order.
func sortRandom(rules []string) []string {
	random := func(rule string) bool { return strings.HasPrefix(target(rule), "<") }
	for start := 0; start < len(rules); start++ {
		end := start
		for end < len(rules) && random(rules[end]) {
			end++
		}
		slices.SortStableFunc(rules[start:end], func(a, b string) int {
			return strings.Compare(target(a), target(b))
		})
		start = end
	}
	return rules
}

func comment(rule string) string {
	_, rest, _ := strings.Cut(rule, `--comment "`)
	text, _, _ := strings.Cut(rest, `"`)
	return text
}

func target(rule string) string {
	_, rest, _ := strings.Cut(rule, "-j ")
	if strings.HasPrefix(rest, "<") {
		return rest
	}
	name, _, _ := strings.Cut(rest, " ")
	return name
}

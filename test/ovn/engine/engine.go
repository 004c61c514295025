// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/test/ovn/fixture"
)

// Northbound makes transactions in the northbound database.
type Northbound interface {
	Transact(ctx context.Context, operations ...fixture.Operation) ([]fixture.Result, error)
}

// Part is what a step of a pass is about.
type Part string

// The parts of a pass, in their order.
const (
	PartPortGroup   Part = "port group"
	PartPorts       Part = "ports"
	PartAddressSet  Part = "address set"
	PartIngressACLs Part = "ingress ACLs"
	PartEgressACLs  Part = "egress ACLs"
	PartGateway     Part = "gateway ACLs"
	PartDelete      Part = "delete"
	PartNode        Part = "node"
)

// Step is one write of a pass.
type Step struct {
	// Policy is empty for PartNode.
	Policy types.NamespacedName
	Part   Part
	// Object is the name of the row: of the port group, but for PartAddressSet
	// that of the set.
	Object string
}

// Options configure an Engine.
type Options struct {
	Shape Shape
	// Lag is how long to wait before a step; nil is no time. It is called from
	// the goroutine that makes the pass, and may block.
	Lag func(Step) time.Duration
	// Tiers writes the ACLs' tier, a column that OVN has from 23.06 on.
	Tiers bool
}

// Engine writes policies. Passes are made one after the other.
type Engine struct {
	northbound Northbound
	options    Options

	pass sync.Mutex // held during a pass

	mu     sync.Mutex // guards frozen
	frozen chan struct{}
}

// New returns an engine that has not written anything.
func New(northbound Northbound, options Options) *Engine {
	return &Engine{northbound: northbound, options: options}
}

// Freeze holds the engine before its next step, as a queue that does not move.
func (e *Engine) Freeze() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.frozen == nil {
		e.frozen = make(chan struct{})
	}
}

// Thaw ends a Freeze.
func (e *Engine) Thaw() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.frozen != nil {
		close(e.frozen)
		e.frozen = nil
	}
}

// before waits until a step may be made.
func (e *Engine) before(ctx context.Context, step Step) error {
	if e.options.Lag != nil {
		if lag := e.options.Lag(step); lag > 0 {
			select {
			case <-time.After(lag):
			case <-ctx.Done():
			}
		}
	}
	for ctx.Err() == nil {
		e.mu.Lock()
		frozen := e.frozen
		e.mu.Unlock()
		if frozen == nil {
			return nil
		}
		select {
		case <-frozen:
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("%s of %s %s: %w", step.Part, step.Policy, step.Object, context.Cause(ctx))
}

// Sync plans a cluster and applies the plan.
func (e *Engine) Sync(ctx context.Context, cluster Cluster) error {
	objects, err := Plan(cluster, e.options.Shape)
	if err != nil {
		return err
	}
	return e.Apply(ctx, objects)
}

// Apply makes one pass: each policy of the objects is written, one after the
// other, then the policies that they do not have are taken away. When it
// returns an error, anything may have been written.
func (e *Engine) Apply(ctx context.Context, objects Objects) error {
	e.pass.Lock()
	defer e.pass.Unlock()
	known := map[string]bool{}
	for _, p := range objects.Policies {
		known[p.PortGroup.ExternalIDs[npKey]] = true
		if err := e.write(ctx, p); err != nil {
			return err
		}
	}
	groups, err := e.rows(ctx, "Port_Group", []any{}, "name", "external_ids")
	if err != nil {
		return err
	}
	for _, g := range groups {
		keys := texts(g["external_ids"])
		np := keys[npKey]
		if np == "" || known[np] || keys[nodeKey] != "" { // the latter is a node's, or a subnet's there
			continue
		}
		namespace, name, _ := strings.Cut(np, "/")
		if err := e.remove(ctx, types.NamespacedName{Namespace: namespace, Name: name}, g["name"].(string), np); err != nil {
			return err
		}
	}
	for _, n := range objects.Nodes {
		if err := e.writeNode(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// Write writes one policy, as kube-ovn-controller does for each event that may
// concern it.
func (e *Engine) Write(ctx context.Context, policy Policy) error {
	e.pass.Lock()
	defer e.pass.Unlock()
	return e.write(ctx, policy)
}

func (e *Engine) write(ctx context.Context, p Policy) error {
	group := p.PortGroup.Name
	if err := e.before(ctx, Step{p.Key, PartPortGroup, group}); err != nil {
		return err
	}
	if err := e.create(ctx, "Port_Group", group, p.PortGroup.ExternalIDs); err != nil {
		return err
	}
	if err := e.before(ctx, Step{p.Key, PartPorts, group}); err != nil {
		return err
	}
	if err := e.setPorts(ctx, p.PortGroup); err != nil {
		return err
	}
	np := p.PortGroup.ExternalIDs[npKey]
	for _, d := range []struct {
		name, direction string
		part            Part
		Direction
	}{
		{"ingress", toLport, PartIngressACLs, p.Ingress},
		{"egress", fromLport, PartEgressACLs, p.Egress},
	} {
		for _, s := range d.AddressSets {
			if err := e.before(ctx, Step{p.Key, PartAddressSet, s.Name}); err != nil {
				return err
			}
			if err := e.setAddresses(ctx, s); err != nil {
				return err
			}
		}
		if err := e.before(ctx, Step{p.Key, d.part, group}); err != nil {
			return err
		}
		if err := e.replaceACLs(ctx, group, d.direction, d.ACLs); err != nil {
			return err
		}
		if err := e.removeSets(ctx, np+"/"+d.name, d.Direction); err != nil {
			return err
		}
	}
	if len(p.Gateway) == 0 {
		return nil
	}
	if err := e.before(ctx, Step{p.Key, PartGateway, group}); err != nil {
		return err
	}
	_, err := e.northbound.Transact(ctx, e.insertACLs(group, p.Gateway)...)
	return err
}

// remove takes a policy away: port group with ACLs, then the address sets.
func (e *Engine) remove(ctx context.Context, key types.NamespacedName, group, np string) error {
	if err := e.before(ctx, Step{key, PartDelete, group}); err != nil {
		return err
	}
	if _, err := e.northbound.Transact(ctx, fixture.Operation{"op": "delete", "table": "Port_Group", "where": fixture.NameIs(group)}); err != nil {
		return err
	}
	for _, d := range []string{"ingress", "egress"} {
		if err := e.removeSets(ctx, np+"/"+d, Direction{}); err != nil {
			return err
		}
	}
	return nil
}

// writeNode adds the ACLs that a node's port group does not have, or takes all
// away if there should be none.
func (e *Engine) writeNode(ctx context.Context, n NodeGroup) error {
	if err := e.before(ctx, Step{Part: PartNode, Object: n.Name}); err != nil {
		return err
	}
	if len(n.ACLs) == 0 {
		return errors.Join(e.replaceACLs(ctx, n.Name, toLport, nil), e.replaceACLs(ctx, n.Name, fromLport, nil))
	}
	rows, err := e.rows(ctx, "ACL", []any{[]any{"external_ids", "includes", fixture.Map(map[string]string{parentKey: n.Name})}}, "match", "direction")
	if err != nil {
		return err
	}
	missing := slices.DeleteFunc(slices.Clone(n.ACLs), func(a ACL) bool {
		return slices.ContainsFunc(rows, func(r map[string]any) bool { return r["match"] == a.Match && r["direction"] == a.Direction })
	})
	if len(missing) == 0 {
		return nil
	}
	_, err = e.northbound.Transact(ctx, e.insertACLs(n.Name, missing)...)
	return err
}

// rows selects columns of the rows that meet a condition.
func (e *Engine) rows(ctx context.Context, table string, where []any, columns ...string) ([]map[string]any, error) {
	results, err := e.northbound.Transact(ctx, fixture.Operation{"op": "select", "table": table, "where": where, "columns": columns})
	if err != nil {
		return nil, err
	}
	return results[0].Rows, nil
}

// create inserts a row of a name unless there is one.
func (e *Engine) create(ctx context.Context, table, name string, ids map[string]string) error {
	rows, err := e.rows(ctx, table, fixture.NameIs(name), "name")
	if err != nil || len(rows) > 0 {
		return err
	}
	_, err = e.northbound.Transact(ctx, fixture.Operation{"op": "insert", "table": table,
		"row": map[string]any{"name": name, "external_ids": fixture.Map(ids)}})
	return err
}

func (e *Engine) setPorts(ctx context.Context, group PortGroup) error {
	var uuids []string
	for ports := range slices.Chunk(group.Ports, 100) {
		var selects []fixture.Operation
		for _, port := range ports {
			selects = append(selects, fixture.Operation{"op": "select", "table": "Logical_Switch_Port", "where": fixture.NameIs(port), "columns": []string{"_uuid"}})
		}
		results, err := e.northbound.Transact(ctx, selects...)
		if err != nil {
			return err
		}
		for _, r := range results {
			uuids = append(uuids, uuidsOf(r.Rows)...)
		}
	}
	_, err := e.northbound.Transact(ctx, fixture.Operation{"op": "update", "table": "Port_Group", "where": fixture.NameIs(group.Name),
		"row": map[string]any{"ports": fixture.UUIDs(uuids...)}})
	return err
}

func (e *Engine) setAddresses(ctx context.Context, set AddressSet) error {
	if err := e.create(ctx, "Address_Set", set.Name, set.ExternalIDs); err != nil {
		return err
	}
	_, err := e.northbound.Transact(ctx, fixture.Operation{"op": "update", "table": "Address_Set", "where": fixture.NameIs(set.Name),
		"row": map[string]any{"addresses": fixture.Set(set.Addresses...)}})
	return err
}

// replaceACLs takes all ACLs of a direction from a port group and adds the
// given ones, in one transaction. Their rows are new each time.
func (e *Engine) replaceACLs(ctx context.Context, group, direction string, acls []ACL) error {
	old, err := e.rows(ctx, "ACL", []any{
		[]any{"direction", "==", direction},
		[]any{"external_ids", "includes", fixture.Map(map[string]string{parentKey: group})},
	}, "_uuid")
	if err != nil {
		return err
	}
	operations := e.insertACLs(group, acls)
	if len(old) > 0 {
		operations = append([]fixture.Operation{{"op": "mutate", "table": "Port_Group", "where": fixture.NameIs(group),
			"mutations": []any{[]any{"acls", "delete", fixture.UUIDs(uuidsOf(old)...)}}}}, operations...)
	}
	if len(operations) == 0 {
		return nil
	}
	_, err = e.northbound.Transact(ctx, operations...)
	return err
}

// insertACLs returns what adds ACLs to a port group.
func (e *Engine) insertACLs(group string, acls []ACL) []fixture.Operation {
	var operations []fixture.Operation
	var names [][]string
	for i, a := range acls {
		name := "acl" + strconv.Itoa(i)
		names = append(names, []string{"named-uuid", name})
		row := map[string]any{"direction": a.Direction, "priority": a.Priority, "match": a.Match, "action": a.Action,
			"external_ids": fixture.Map(a.ExternalIDs), "options": fixture.Map(a.Options)}
		if a.Name != "" {
			row["name"] = a.Name
		}
		if e.options.Tiers {
			row["tier"] = netpolTier
		}
		operations = append(operations, fixture.Operation{"op": "insert", "table": "ACL", "uuid-name": name, "row": row})
	}
	if len(names) > 0 {
		operations = append(operations, fixture.Operation{"op": "mutate", "table": "Port_Group", "where": fixture.NameIs(group),
			"mutations": []any{[]any{"acls", "insert", []any{"set", names}}}})
	}
	return operations
}

// removeSets deletes the address sets of a direction that it has no rules for.
func (e *Engine) removeSets(ctx context.Context, np string, d Direction) error {
	sets, err := e.rows(ctx, "Address_Set", []any{[]any{"external_ids", "includes", fixture.Map(map[string]string{npKey: np})}}, "name")
	if err != nil {
		return err
	}
	var operations []fixture.Operation
	for _, s := range sets {
		name := s["name"].(string)
		last := name[strings.LastIndex(name, ".")+1:]
		if rule, err := strconv.Atoi(last); d.Isolated && (err != nil || rule < d.Rules) {
			continue
		}
		operations = append(operations, fixture.Operation{"op": "delete", "table": "Address_Set", "where": fixture.NameIs(name)})
	}
	if len(operations) == 0 {
		return nil
	}
	_, err = e.northbound.Transact(ctx, operations...)
	return err
}

// uuidsOf returns the UUIDs of rows.
func uuidsOf(rows []map[string]any) []string {
	var uuids []string
	for _, r := range rows {
		uuids = append(uuids, r["_uuid"].([]any)[1].(string))
	}
	return uuids
}

// texts reads a map of strings.
func texts(column any) map[string]string {
	m := map[string]string{}
	for _, pair := range column.([]any)[1].([]any) {
		m[pair.([]any)[0].(string)] = pair.([]any)[1].(string)
	}
	return m
}

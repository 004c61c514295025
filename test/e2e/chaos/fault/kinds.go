// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import "time"

// Kinds returns all kinds of faults, each with another name.
func Kinds() []Kind {
	const (
		// longFreeze is more than what a peer waits for a sign of life.
		longFreeze = 5 * time.Second
		// longCut is more than what watches and sessions take to notice.
		longCut = 10 * time.Second
	)
	return []Kind{
		{Name: "manager killed", Begin: killed(managers())},
		{Name: "manager frozen", Begin: frozen(managers()), Least: longFreeze},
		{Name: "all managers killed", Begin: allKilled(managers())},
		{Name: "agent killed", Begin: killed(agents())},
		{Name: "agent frozen", Begin: frozen(agents()), Least: longFreeze},
		{Name: "engine killed", Begin: engineKilled},
		{Name: "engine killed in a sync", Begin: engineKilledInSync},
		{Name: "engine frozen", Begin: engineFrozen},
		{Name: "API server killed", Begin: apiServerKilled},
		{Name: "API server frozen", Begin: apiServerFrozen},
		{Name: "two nodes cut from each other", Begin: pairCut},
		{Name: "node cut off", Begin: nodeCut, Least: longCut},
		{Name: "node rebooted", Begin: nodeRebooted},
		{Name: "sandbox killed", Begin: sandboxKilled},
		{Name: "addresses reused", Begin: addressesReused},
	}
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"math/rand/v2"

	"github.com/policygate/policygate/test/e2e/testbed"
)

// apiServer is the target of faults of it: there is one.
const apiServer = "API server"

// apiServerKilled kills the API server, which nobody starts again but End.
func apiServerKilled(ctx context.Context, bed *testbed.Testbed, _ *rand.Rand) (*Fault, error) {
	if err := bed.Cluster.StopAPIServer(ctx); err != nil {
		return nil, err
	}
	return &Fault{Target: apiServer, End: func(ctx context.Context) error {
		if !bed.Cluster.APIServer().Exited() {
			return nil // another fault started it
		}
		ctx, cancel := mending(ctx)
		defer cancel()
		return bed.Cluster.StartAPIServer(ctx)
	}}, nil
}

// apiServerFrozen freezes the API server: connections to it are made by the
// kernel, and requests hang.
func apiServerFrozen(_ context.Context, bed *testbed.Testbed, _ *rand.Rand) (*Fault, error) {
	process := bed.Cluster.APIServer()
	if err := process.Freeze(); err != nil {
		return nil, err
	}
	return &Fault{
		Target: apiServer,
		End:    func(context.Context) error { return unlessDone(process.Thaw()) },
	}, nil
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/northbound"
	"github.com/policygate/policygate/test/ovn/fixture"
)

// TestBumpIsAcknowledged wants the number that is to be awaited to come back from
// a node.
func TestBumpIsAcknowledged(t *testing.T) {
	w := newWorld(t, 1, fixture.Options{})
	w.awaitVersion("there")
	b := northbound.NewBumper(northbound.Increments(w.client), clock.RealClock{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	number, err := b.Cover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(w.must(w.Nbctl(t.Context(), "get", "NB_Global", ".", "nb_cfg"))); got != fmt.Sprint(number) {
		t.Errorf("nb_cfg is %s, and %d is to be awaited", got, number)
	}
	acknowledged := int64(0)
	for acknowledged < number && t.Context().Err() == nil {
		text := strings.Trim(w.must(w.Nodes()[0].Vsctl(t.Context(), "--if-exists", "get", "bridge", "br-int", "external_ids:ovn-nb-cfg")), "\"\n")
		acknowledged, _ = strconv.ParseInt(text, 10, 64)
	}
	if acknowledged < number {
		t.Errorf("the node acknowledged %d, not %d", acknowledged, number)
	}
}

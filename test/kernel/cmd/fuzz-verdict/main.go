// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command fuzz-verdict compares verdicts on random rules with what the kernel
// does, and exits with 1 if any of them is wrong.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"

	"github.com/policygate/policygate/test/kernel/differential"
	"github.com/policygate/policygate/test/kernel/rootless"
)

func main() {
	packets := flag.Int("n", 200_000, "how many packets to send")
	seed := flag.Uint64("seed", 0, "the first ruleset's seed, 0 for a random one")
	nodes := flag.Int("nodes", 0, "how many nodes to try at once, 0 for one per processor")
	flag.Parse()
	os.Exit(rootless.Root(func() int { return run(*packets, *seed, *nodes) }))
}

func run(packets int, seed uint64, nodes int) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if seed == 0 {
		seed = uint64(rand.Uint32())
	}
	fmt.Printf("SEED=%d\n", seed)
	report, err := differential.Run(ctx, differential.Options{
		Packets: packets, Seed: seed, Nodes: nodes,
		Failed: func(d differential.Disagreement) { fmt.Printf("\n%s\n", d) },
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	fmt.Println(report)
	if err != nil || report.Disagreements > 0 {
		return 1
	}
	return 0
}

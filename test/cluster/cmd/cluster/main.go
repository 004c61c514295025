// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command cluster builds, starts and stops clusters of package cluster.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/policygate/policygate/test/cluster"
)

const usage = `Real Kubernetes clusters on this machine, for tests.

  cluster build  [--out DIR]                    build Kubernetes (minutes the first time)
  cluster up     [--name NAME] [--nodes N] ...  start a cluster that stays, and print its kubeconfig
  cluster down   [--name NAME]                  stop it
  cluster status                                list clusters

"cluster up" builds first what is not up to date, and as root on Debian and Ubuntu installs
the packages that are missing. "cluster COMMAND --help" lists a command's flags.
`

func main() {
	os.Exit(run())
}

// run is main, so that deferred functions run before the process exits.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		return 2
	}
	verb, known := map[string]func(context.Context, []string) error{
		"build": build, "up": up, "down": down, "status": status,
	}[os.Args[1]]
	if !known {
		fmt.Fprint(os.Stderr, usage)
		return 2
	}
	err := verb(ctx, os.Args[2:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
		return 1
	}
	return 0
}

// commonFlags adds the flags that name a cluster.
func commonFlags(flags *flag.FlagSet, o *cluster.Options) {
	flags.StringVar(&o.Name, "name", "policygate", "the cluster's name; several can run at once")
	flags.StringVar(&o.Dir, "dir", "", "directory for the clusters' files and logs (default policygate-cluster in the temporary directory)")
}

func build(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	out := flags.String("out", "", "directory for the executables (default build/kube in the repository)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	kube, err := buildTo(ctx, *out)
	if err != nil {
		return err
	}
	fmt.Println(kube)
	return nil
}

// buildTo builds to out, or to the repository's build/kube if that is empty.
func buildTo(ctx context.Context, out string) (string, error) {
	if out == "" {
		var err error
		if out, err = cluster.DefaultBuildDir(ctx); err != nil {
			return "", err
		}
	}
	fmt.Fprintf(os.Stderr, "go build of Kubernetes to %s: 6 minutes on 2 CPUs the first time, then seconds\n", out)
	return cluster.Build(ctx, out, os.Stderr)
}

func up(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	o := cluster.Options{Keep: true, Progress: os.Stderr}
	commonFlags(flags, &o)
	flags.IntVar(&o.Nodes, "nodes", 2, "number of nodes")
	flags.BoolVar(&o.DualStack, "dual-stack", false, "IPv6 beside IPv4, for nodes, Pods and Services")
	flags.BoolVar(&o.NoKubeProxy, "no-kube-proxy", false, "leave out kube-proxy, for policy engines that proxy Services")
	flags.StringVar(&o.IPTables, "iptables", cluster.IPTablesNFT, "what the nodes' iptables commands write: nft or legacy")
	flags.StringVar(&o.KubeBinary, "kube", "", "an executable that \"cluster build\" made; empty: build it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := cluster.InstallPackages(ctx, os.Stderr); err != nil {
		return err
	}
	if o.KubeBinary == "" {
		var err error
		if o.KubeBinary, err = buildTo(ctx, ""); err != nil {
			return err
		}
	}
	c, err := cluster.Start(ctx, o)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "logs in %s; kubectl is %s\n", c.Logs(), filepath.Join(filepath.Dir(o.KubeBinary), "bin", "kubectl"))
	fmt.Printf("export KUBECONFIG=%s\n", c.Kubeconfig())
	return nil
}

func down(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("down", flag.ContinueOnError)
	var o cluster.Options
	commonFlags(flags, &o)
	if err := flags.Parse(args); err != nil {
		return err
	}
	return cluster.Remove(ctx, o.Name, o.Dir)
}

func status(_ context.Context, args []string) error {
	flags := flag.NewFlagSet("status", flag.ContinueOnError)
	if err := flags.Parse(args); err != nil {
		return err
	}
	all, err := cluster.List()
	if err != nil {
		return err
	}
	for _, s := range all {
		fmt.Printf("%s\tdir=%s\tnodes=%d\tslot=%d\t%s\n", s.Name, s.Dir, s.Nodes, s.Slot, s.Condition)
	}
	return nil
}

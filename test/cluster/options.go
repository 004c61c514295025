// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// The values of Options.IPTables.
const (
	// IPTablesNFT makes a node's iptables commands those that write nf_tables.
	IPTablesNFT = "nft"
	// IPTablesLegacy makes them those that write the legacy xtables.
	IPTablesLegacy = "legacy"
)

// Options says what Start starts. The zero value of a field means its default.
type Options struct {
	// Name tells clusters of one machine apart. It is part of the names of network
	// namespaces and cgroups: 1 to 20 lower case letters, digits and hyphens. Default
	// "policygate".
	Name string
	// Nodes is the number of nodes, 1 to 32. Default 2.
	Nodes int
	// LateNodes of the nodes, the last ones, are off until StartNode. Start does not make
	// their Node objects either: their kubelets do. Less than Nodes; default 0.
	LateNodes int
	// Dir is the directory that holds the cluster's files, in a subdirectory called Name.
	// It must not be below /run, /var/run, /var/lib or /var/log, which a node has of its
	// own. Default: "policygate-cluster" in the directory for temporary files.
	Dir string
	// KubeBinary is the executable that Build makes, with "pause" beside it. Required.
	KubeBinary string
	// DualStack gives nodes, Pods and Services an IPv6 address beside the IPv4 one.
	DualStack bool
	// NoKubeProxy leaves out kube-proxy, for policy engines that proxy Services themselves.
	// Pods then reach the API server at Cluster.APIServerAddr only.
	NoKubeProxy bool
	// IPTables is what the iptables commands of a node are, and so what kube-proxy and the
	// commands that Node.Command runs use: IPTablesNFT (default) or IPTablesLegacy.
	IPTables string
	// Keep says that the cluster outlives the process that starts it: Cleanup leaves it
	// alone until Stop.
	Keep bool
	// Progress receives one line per step, with the seconds since the start. Nil: none.
	Progress io.Writer `json:"-"`
	// APIServerArgs is appended to kube-apiserver's arguments, so that it can override them.
	APIServerArgs []string
	// ControllerManagerArgs is appended to kube-controller-manager's arguments.
	ControllerManagerArgs []string
	// KubeletArgs is appended to every kubelet's arguments.
	KubeletArgs []string
}

var validName = regexp.MustCompile("^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$")

// privateDirs is the directories that each node has of its own.
var privateDirs = []string{"/run", "/var/run", "/var/lib", "/var/log"}

// withDefaults returns o with defaults filled in and paths absolute.
func (o Options) withDefaults() (Options, error) {
	if o.Name == "" {
		o.Name = "policygate"
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.IPTables == "" {
		o.IPTables = IPTablesNFT
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	var err error
	if o.Dir, err = absDir(o.Dir); err != nil {
		return o, err
	}
	if o.KubeBinary != "" {
		if o.KubeBinary, err = realPath(o.KubeBinary); err != nil {
			return o, fmt.Errorf("KubeBinary: %w (make it with \"go run ./cmd/cluster build\")", err)
		}
	}
	return o, nil
}

// validate reports everything that is wrong with o, which has its defaults.
func (o Options) validate() error {
	var errs []error
	if !validName.MatchString(o.Name) {
		errs = append(errs, fmt.Errorf("name %q is not 1 to 20 lower case letters, digits and hyphens", o.Name))
	}
	if o.Nodes < 1 || o.Nodes > maxNodes {
		errs = append(errs, fmt.Errorf("%d nodes are not between 1 and %d", o.Nodes, maxNodes))
	}
	if o.LateNodes < 0 || o.LateNodes >= o.Nodes {
		errs = append(errs, fmt.Errorf("%d late nodes of %d: want at least one node that is not late", o.LateNodes, o.Nodes))
	}
	if o.IPTables != IPTablesNFT && o.IPTables != IPTablesLegacy {
		errs = append(errs, fmt.Errorf("iptables %q is neither %q nor %q", o.IPTables, IPTablesNFT, IPTablesLegacy))
	}
	if o.KubeBinary == "" {
		errs = append(errs, errors.New("no KubeBinary given"))
	}
	for _, path := range []string{o.Dir, o.KubeBinary} {
		for _, private := range privateDirs {
			if isBelow(path, private) {
				errs = append(errs, fmt.Errorf("%s is below %s, of which each node has its own", path, private))
			}
		}
	}
	return errors.Join(errs...)
}

// absDir returns dir, or its default if empty, as an absolute path.
func absDir(dir string) (string, error) {
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "policygate-cluster")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("resolve directory: %w", err)
	}
	return dir, nil
}

// realPath returns path absolute and with symbolic links followed. It must exist.
func realPath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

// isBelow says whether path is dir or below it; both are absolute and clean.
func isBelow(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

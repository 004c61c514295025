// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command rbac writes the roles of Policy Gate's ServiceAccounts from the
// kubebuilder:rbac markers that stand beside the code that needs each right.
// controller-gen reads the same markers; it drops what is said above them, and
// here that becomes the rule's comment, so a marker without it is an error.
//
//	go run ./hack/rbac          writes them
//	go run ./hack/rbac -check   fails if they are not up to date
//
// The roles of people (config/rbac/plugin_roles.yaml, view_role.yaml) are
// written by hand: no code of Policy Gate runs with them.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/policygate/policygate/hack/settle"
)

// namespace is where Policy Gate's ServiceAccounts are.
const namespace = "policygate-system"

// role is one that is generated, by the name that markers call it by.
type role struct {
	name string
	// account is the ServiceAccount that it is bound to.
	account string
	// file is where it is written, below the repository's root.
	file string
}

// generated returns all roles, in the order in which a file has them.
func generated() []role {
	return []role{
		{name: "policygate-agent", account: "policygate-agent", file: "config/rbac/agent_role.yaml"},
		{name: "policygate-manager", account: "policygate-manager", file: "config/rbac/manager_role.yaml"},
		{name: "policygate-tracer", account: "policygate-tracer", file: "config/rbac/question_roles.yaml"},
		{name: "policygate-explainer", account: "policygate-explainer", file: "config/rbac/question_roles.yaml"},
		{name: "policygate-doctor", account: "policygate-doctor", file: "config/rbac/question_roles.yaml"},
		// Rights that only a component of config gives.
		{name: "policygate-northbound", account: "policygate-northbound", file: "config/kube-ovn/role.yaml"},
		{name: "policygate-northbound-services", account: "policygate-northbound", file: "config/kube-ovn/services/role.yaml"},
		{name: "policygate-manager-services", account: "policygate-manager", file: "config/services/role.yaml"},
		{name: "policygate-manager-startup-taint", account: "policygate-manager", file: "config/startup-taint/role.yaml"},
	}
}

func main() {
	os.Exit(run(os.Args[1:], os.Stderr))
}

// run is main with an exit status: 2 for a command line that is not usable.
func run(args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("rbac", flag.ContinueOnError)
	flags.SetOutput(stderr)
	check := flags.Bool("check", false, "write nothing, and fail if a file is not up to date")
	root := flags.String("root", ".", "the repository")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if err := generate(*root, *check); err != nil {
		_, _ = fmt.Fprintln(stderr, "rbac:", err)
		return 1
	}
	return 0
}

// generate writes the roles, or checks them.
func generate(root string, check bool) error {
	rules, err := readTree(root)
	if err != nil {
		return err
	}
	files, err := write(generated(), rules)
	if err != nil {
		return err
	}
	var errs []error
	for name, content := range files {
		errs = append(errs, settle.File(filepath.Join(root, name), content, check, "manifests"))
	}
	return errors.Join(errs...)
}

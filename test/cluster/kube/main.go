// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command kube is etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet,
// kube-proxy and kubectl in one executable: they share nearly all of their code, so that one
// link and one file of 140 MB take the place of seven of 60 to 100 MB.
//
// It runs the component that the base name of its argv[0] names, so that a directory of
// symbolic links serves as a release's bin directory (and as KUBEBUILDER_ASSETS), and
// otherwise the one that its first argument names.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	os.Exit(run())
}

// run starts the component that os.Args selects and returns the exit status. Components read
// os.Args themselves, so run rewrites it to what each would have seen as an executable of its
// own.
func run() int {
	name, args := selectComponent(os.Args)
	start, known := components[name]
	if !known {
		fmt.Fprintf(os.Stderr, "kube: no component %q; there are %s\n", name, strings.Join(componentNames(), ", "))
		return 2
	}
	os.Args = args
	return start()
}

// selectComponent returns the name of the component that argv asks for, and the argv that it
// should see. The name is empty if argv names none.
func selectComponent(argv []string) (name string, args []string) {
	if len(argv) == 0 {
		return "", nil
	}
	if base := filepath.Base(argv[0]); components[base] != nil {
		return base, argv
	}
	if len(argv) == 1 {
		return "", nil
	}
	return argv[1], argv[1:]
}

// componentNames returns the names of all the components, sorted.
func componentNames() []string {
	names := make([]string, 0, len(components))
	for name := range components {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// commands is what a cluster runs of the machine it is on.
var commands = []string{
	"containerd", "containerd-shim-runc-v2", "ctr", "runc",
	"iptables-nft", "iptables-legacy", "nft", "ipset", "ip", "conntrack",
	"nsenter", "unshare", "mount", "umount",
}

// packages is the Debian and Ubuntu packages that have them, and the CNI plugins.
var packages = []string{
	"containerd", "runc", "containernetworking-plugins", "iptables", "nftables", "ipset", "iproute2", "conntrack", "util-linux", "mount",
}

// MissingCommands returns what a cluster needs and this machine does not have: commands, and
// "CNI plugins". Nil if nothing is missing.
func MissingCommands() []string {
	var missing []string
	for _, name := range commands {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if _, err := cniPluginDir(); err != nil {
		missing = append(missing, "CNI plugins")
	}
	return missing
}

// InstallPackages installs the Debian or Ubuntu packages that MissingCommands come from. It
// does nothing if none is missing, and fails if apt-get or root is. It says on progress, which
// may be nil, what it runs.
func InstallPackages(ctx context.Context, progress io.Writer) error {
	missing := MissingCommands()
	if len(missing) == 0 {
		return nil
	}
	what := strings.Join(missing, ", ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("install %s: %w", what, err)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("install %s: this needs root", what)
	}
	if progress == nil {
		progress = io.Discard
	}
	// Lists may be absent (a slim image) or old: they are fetched if the first try fails.
	install := append([]string{"install", "-y", "--no-install-recommends"}, packages...)
	first := aptGet(ctx, progress, install)
	if first == nil {
		return nil
	}
	if err := aptGet(ctx, progress, []string{"update"}); err != nil {
		return fmt.Errorf("install %s: %w", what, errors.Join(first, err))
	}
	if err := aptGet(ctx, progress, install); err != nil {
		return fmt.Errorf("install %s: %w", what, err)
	}
	return nil
}

func aptGet(ctx context.Context, progress io.Writer, args []string) error {
	_, _ = fmt.Fprintf(progress, "apt-get %s\n", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", args[0], err, output)
	}
	return nil
}

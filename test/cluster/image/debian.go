// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// Rootfs returns a directory with the root file system that the given Debian packages and all
// they depend on unpack to, of the release that this machine runs. It is kept in cacheDir, so
// that the next call for the same packages returns at once; it must not be changed. It needs
// apt-get, dpkg-deb, tar and root (for the files' owners).
//
// Essential packages count as there in Debian and are no dependency of others: an image that
// needs a shell or coreutils names dash or coreutils.
//
// Packages are unpacked, not installed: their maintainer scripts do not run. There are no
// users but root and nobody, no alternatives (iptables-nft is there, iptables is not, see
// Spec.Symlinks), and nothing that a package makes when it is configured. /tmp and the cache
// of the dynamic linker are there.
func Rootfs(ctx context.Context, cacheDir string, packages ...string) (string, error) {
	dir, err := rootfs(ctx, cacheDir, packages)
	if err != nil {
		return "", fmt.Errorf("make root file system of %s: %w", strings.Join(packages, ", "), err)
	}
	return dir, nil
}

func rootfs(ctx context.Context, cacheDir string, packages []string) (string, error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	cacheDir, err = filepath.Abs(cacheDir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return "", err
	}
	dir := filepath.Join(cacheDir, "rootfs-"+cacheKey(string(release), packages))
	unlock, err := lockDir(cacheDir)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	// Made aside and renamed, so that what has the name is whole.
	unfinished := dir + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return "", err
	}
	archives := filepath.Join(unfinished, "archives")
	if err := download(ctx, archives, packages); err != nil {
		return "", err
	}
	root := filepath.Join(unfinished, "root")
	if err := unpack(ctx, archives, root); err != nil {
		return "", err
	}
	if err := os.Rename(root, dir); err != nil {
		return "", err
	}
	return dir, os.RemoveAll(unfinished)
}

// cacheKey tells root file systems apart: by release, architecture and packages.
func cacheKey(release string, packages []string) string {
	sorted := slices.Compact(slices.Sorted(slices.Values(packages)))
	sum := sha256.Sum256([]byte(release + runtime.GOARCH + "\n" + strings.Join(sorted, " ")))
	return hex.EncodeToString(sum[:8])
}

// lockDir keeps other processes out of a directory until unlock is called.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return func() { d.Close() }, nil
}

// download fetches packages and all that they need into dir, as if nothing were installed.
func download(ctx context.Context, dir string, packages []string) error {
	// apt wants this subdirectory of its cache.
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		return err
	}
	status := filepath.Join(dir, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return err
	}
	install := append([]string{
		"-o", "Dir::State::status=" + status,
		"-o", "Dir::Cache::archives=" + dir,
		"-o", "Debug::NoLocking=1",
		// The directory need not be readable for apt's unprivileged user.
		"-o", "APT::Sandbox::User=root",
		"-y", "--no-install-recommends", "--download-only", "install",
	}, packages...)
	first := run(ctx, "apt-get", install...)
	if first == nil {
		return nil
	}
	// The package lists may be absent or name versions that are gone.
	if err := run(ctx, "apt-get", "update"); err != nil {
		return errors.Join(first, err)
	}
	return run(ctx, "apt-get", install...)
}

// unpack unpacks all packages in archives to root, and adds what their scripts would.
func unpack(ctx context.Context, archives, root string) error {
	// A merged /usr. Packages of older releases still bring files in /bin and /lib.
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", dir), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+dir, filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	packages, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil {
		return err
	}
	if len(packages) == 0 {
		return errors.New("apt-get downloaded nothing")
	}
	for _, file := range packages {
		const script = "dpkg-deb --fsys-tarfile \"$0\" | tar --extract --preserve-permissions --same-owner --numeric-owner --keep-directory-symlink --directory \"$1\""
		if err := run(ctx, "/bin/bash", "-o", "pipefail", "-c", script, file, root); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(file), err)
		}
	}
	if err := complete(root); err != nil {
		return err
	}
	return run(ctx, "ldconfig", "-r", root)
}

// complete adds the files that every program expects.
func complete(root string) error {
	for name, content := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"etc/group":  "root:x:0:\nnogroup:x:65534:\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	for _, dir := range []string{"tmp", "var/tmp"} {
		path := filepath.Join(root, dir)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, os.ModeSticky|0o777); err != nil {
			return err
		}
	}
	return nil
}

// run runs a command; the error has what it printed.
func run(ctx context.Context, name string, args ...string) error {
	if output, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, output)
	}
	return nil
}

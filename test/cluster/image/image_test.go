// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestWriteIsDeterministic(t *testing.T) {
	dir := t.TempDir()
	spec := testSpec(t, dir)
	first, second := filepath.Join(dir, "1.tar"), filepath.Join(dir, "2.tar")
	if err := Write(t.Context(), first, spec); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(spec.Files["/app/run"], later, later); err != nil {
		t.Fatal(err)
	}
	if err := Write(t.Context(), second, spec); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readFile(t, first), readFile(t, second)) {
		t.Error("the same content gave two different images")
	}
	left, err := filepath.Glob(filepath.Join(dir, ".image-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}

func TestWriteContent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "image.tar")
	if err := Write(t.Context(), path, testSpec(t, dir)); err != nil {
		t.Fatal(err)
	}
	entries := readTar(t, readFile(t, path))
	var manifests []manifest
	if err := json.Unmarshal(entries["manifest.json"].content, &manifests); err != nil {
		t.Fatal(err)
	}
	if len(manifests) != 1 || !slices.Equal(manifests[0].RepoTags, []string{"example.com/test:1"}) || len(manifests[0].Layers) != 2 {
		t.Fatalf("manifest is %+v", manifests)
	}
	var c config
	if err := json.Unmarshal(entries[manifests[0].Config].content, &c); err != nil {
		t.Fatal(err)
	}
	for i, name := range manifests[0].Layers {
		sum := sha256.Sum256(entries[name].content)
		if want := "sha256:" + hex.EncodeToString(sum[:]); c.RootFS.DiffIDs[i] != want {
			t.Errorf("diffID of layer %d is %s, want %s", i, c.RootFS.DiffIDs[i], want)
		}
	}
	if c.Config.User != "65532:65532" || !slices.Contains(c.Config.Env, "A=b") || !slices.Contains(c.Config.Env, defaultPath) {
		t.Errorf("configuration is %+v", c.Config)
	}

	rootfs := readTar(t, entries[manifests[0].Layers[0]].content)
	if got := rootfs["etc/motd"]; string(got.content) != "hi\n" || got.header.Mode != 0o640 {
		t.Errorf("etc/motd is %+v", got)
	}
	if got := rootfs["bin"]; got.header == nil || got.header.Linkname != "usr/bin" {
		t.Errorf("bin is %+v", got)
	}
	files := readTar(t, entries[manifests[0].Layers[1]].content)
	if got := files["app/run"]; string(got.content) != "program" || got.header.Mode != 0o755 || got.header.Uid != 0 {
		t.Errorf("app/run is %+v", got)
	}
	if got := files["app/alias"]; got.header == nil || got.header.Linkname != "run" {
		t.Errorf("app/alias is %+v", got)
	}
	if got := files["app/"]; got.header == nil || got.header.Typeflag != tar.TypeDir {
		t.Errorf("the directory above is %+v", got)
	}
}

func TestWriteRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	writeFile(t, file, "x", 0o644)
	for name, tc := range map[string]struct {
		spec Spec
		want string
	}{
		"nothing":            {Spec{}, "no content"},
		"relative path":      {Spec{Files: map[string]string{"a": file}}, "no clean absolute path"},
		"path with dots":     {Spec{Files: map[string]string{"/a/../b": file}}, "no clean absolute path"},
		"absent file":        {Spec{Files: map[string]string{"/a": file + "-absent"}}, "no such file"},
		"directory":          {Spec{Files: map[string]string{"/a": dir}}, "no regular file"},
		"two for one path":   {Spec{Files: map[string]string{"/a": file}, Symlinks: map[string]string{"/a": "b"}}, "both"},
		"absent root system": {Spec{Rootfs: file + "-absent"}, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "image.tar")
			err := Write(t.Context(), path, tc.spec)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want one with %q", err, tc.want)
			}
			if _, err := os.Stat(path); err == nil {
				t.Error("there is an archive nevertheless")
			}
		})
	}
}

func TestCacheKey(t *testing.T) {
	base := cacheKey("12", []string{"a", "b"})
	if got := cacheKey("12", []string{"b", "a", "a"}); got != base {
		t.Error("order and repetition of packages change the key")
	}
	if cacheKey("13", []string{"a", "b"}) == base || cacheKey("12", []string{"a"}) == base {
		t.Error("another release or list has the same key")
	}
}

// testSpec returns a specification with a file, a link and a root file system.
func testSpec(t *testing.T, dir string) Spec {
	t.Helper()
	rootfs := filepath.Join(dir, "rootfs")
	for _, sub := range []string{"etc", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(rootfs, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(rootfs, "etc/motd"), "hi\n", 0o640)
	if err := os.Symlink("usr/bin", filepath.Join(rootfs, "bin")); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "program")
	writeFile(t, program, "program", 0o700)
	return Spec{
		Ref: "example.com/test:1", Entrypoint: []string{"/app/run"}, Env: []string{"A=b"}, User: "65532:65532",
		Files: map[string]string{"/app/run": program}, Symlinks: map[string]string{"/app/alias": "run"}, Rootfs: rootfs,
	}
}

type entry struct {
	header  *tar.Header
	content []byte
}

func readTar(t *testing.T, archive []byte) map[string]entry {
	t.Helper()
	entries := map[string]entry{}
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		entries[header.Name] = entry{header, content}
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// writeFile writes a file with exactly this mode.
func writeFile(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, []byte(content), mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

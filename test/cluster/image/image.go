// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package image makes container images without a container engine: from static executables
// and from Debian packages.
//
// An image is a docker-archive: a tar of a manifest, a configuration and one or two layers.
// What goes in decides what comes out, to the byte: times are zero, entries are sorted.
package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// Spec says what an image consists of.
type Spec struct {
	// Ref is the image's name with a tag, such as "policygate.io/test/agent:dev". A name
	// whose first part has no dot is below docker.io to container runtimes.
	Ref string
	// Entrypoint is the command that a container runs.
	Entrypoint []string
	// Env is its environment, as NAME=VALUE. A PATH with the usual directories is added
	// unless there is one.
	Env []string
	// User is the user and group that it runs as, numeric: "65532:65532". Empty: root.
	User string
	// Files maps absolute paths in the image to files of this machine, whose symbolic links
	// are followed. They belong to root, and keep only the permission to be executed.
	Files map[string]string
	// Symlinks maps absolute paths in the image to what the symbolic links there hold.
	Symlinks map[string]string
	// Rootfs is a directory whose content goes below Files and Symlinks, in a layer of its
	// own, so that nodes unpack it once for all the images that share it. Empty: none.
	Rootfs string
}

// defaultPath is what Docker gives an image without a PATH.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// layer is a finished layer on disk.
type layer struct {
	path string
	size int64
	// digest is the layer's SHA-256 in hex; the layer is not compressed, so that it is its
	// diffID as well.
	digest string
}

// Write writes the image to a docker-archive at tarPath, which appears only when it is whole.
func Write(ctx context.Context, tarPath string, spec Spec) error {
	if err := write(ctx, tarPath, spec); err != nil {
		return fmt.Errorf("write image %s: %w", spec.Ref, err)
	}
	return nil
}

func write(ctx context.Context, tarPath string, spec Spec) (err error) {
	work, err := os.MkdirTemp(filepath.Dir(tarPath), ".image-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	var layers []layer
	if spec.Rootfs != "" {
		rootfs, err := writeLayer(ctx, filepath.Join(work, "rootfs"), func(w *tar.Writer) error {
			return addTree(ctx, w, spec.Rootfs)
		})
		if err != nil {
			return err
		}
		layers = append(layers, rootfs)
	}
	if len(spec.Files)+len(spec.Symlinks) > 0 {
		files, err := writeLayer(ctx, filepath.Join(work, "files"), func(w *tar.Writer) error {
			return addFiles(w, spec.Files, spec.Symlinks)
		})
		if err != nil {
			return err
		}
		layers = append(layers, files)
	}
	if len(layers) == 0 {
		return errors.New("it has no content")
	}
	archive := filepath.Join(work, "archive")
	if err := writeArchive(archive, spec, layers); err != nil {
		return err
	}
	return os.Rename(archive, tarPath)
}

// writeLayer writes a layer with the content that add adds.
func writeLayer(ctx context.Context, path string, add func(*tar.Writer) error) (layer, error) {
	f, err := os.Create(path)
	if err != nil {
		return layer{}, err
	}
	defer f.Close()
	hash := sha256.New()
	w := tar.NewWriter(io.MultiWriter(f, hash))
	if err := errors.Join(add(w), ctx.Err()); err != nil {
		return layer{}, err
	}
	if err := w.Close(); err != nil {
		return layer{}, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return layer{}, err
	}
	return layer{path: path, size: size, digest: hex.EncodeToString(hash.Sum(nil))}, f.Close()
}

// config is the part of an image's configuration that runtimes need.
type config struct {
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	Created      time.Time `json:"created"`
	Config       struct {
		Entrypoint []string `json:",omitempty"`
		Env        []string
		User       string `json:",omitempty"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// manifest is an entry of a docker-archive's manifest.json.
type manifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// writeArchive writes the docker-archive of finished layers.
func writeArchive(path string, spec Spec, layers []layer) error {
	image := config{Architecture: runtime.GOARCH, OS: "linux", Created: time.Unix(0, 0).UTC()}
	image.Config.Entrypoint = spec.Entrypoint
	image.Config.Env = withPath(spec.Env)
	image.Config.User = spec.User
	image.RootFS.Type = "layers"
	entry := manifest{RepoTags: []string{spec.Ref}}
	for _, l := range layers {
		image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, "sha256:"+l.digest)
		entry.Layers = append(entry.Layers, l.digest+".tar")
	}
	imageJSON, err := json.Marshal(image)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(imageJSON)
	entry.Config = hex.EncodeToString(digest[:]) + ".json"
	manifestJSON, err := json.Marshal([]manifest{entry})
	if err != nil {
		return err
	}

	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, l := range layers {
		if err := addFile(w, l.digest+".tar", l.path, 0o644); err != nil {
			return err
		}
	}
	if err := errors.Join(addBytes(w, entry.Config, imageJSON), addBytes(w, "manifest.json", manifestJSON)); err != nil {
		return err
	}
	return errors.Join(w.Close(), f.Close())
}

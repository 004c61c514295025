// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// withPath returns env with a PATH.
func withPath(env []string) []string {
	for _, variable := range env {
		if strings.HasPrefix(variable, "PATH=") {
			return env
		}
	}
	return append([]string{defaultPath}, env...)
}

// addFiles adds files and symbolic links at absolute paths, and the directories above them.
func addFiles(w *tar.Writer, files, symlinks map[string]string) error {
	names := slices.Sorted(maps.Keys(files))
	for name := range symlinks {
		if _, both := files[name]; both {
			return fmt.Errorf("%s is both a file and a symbolic link", name)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	made := map[string]bool{"/": true}
	for _, name := range names {
		if !path.IsAbs(name) || path.Clean(name) != name || name == "/" {
			return fmt.Errorf("%q is no clean absolute path", name)
		}
		if err := addParents(w, name, made); err != nil {
			return err
		}
		if target, ok := symlinks[name]; ok {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name[1:], Linkname: target, Mode: 0o777, ModTime: time.Unix(0, 0)}); err != nil {
				return err
			}
			continue
		}
		info, err := os.Stat(files[name])
		if err != nil {
			return err
		}
		mode := int64(0o644)
		if info.Mode()&0o111 != 0 {
			mode = 0o755
		}
		if err := addFile(w, name[1:], files[name], mode); err != nil {
			return err
		}
	}
	return nil
}

// addParents adds the directories above name that are not in made.
func addParents(w *tar.Writer, name string, made map[string]bool) error {
	dir := path.Dir(name)
	if made[dir] {
		return nil
	}
	if err := addParents(w, dir, made); err != nil {
		return err
	}
	made[dir] = true
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir[1:] + "/", Mode: 0o755, ModTime: time.Unix(0, 0)})
}

// addFile adds the regular file at source, owned by root.
func addFile(w *tar.Writer, name, source string, mode int64) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", source)
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: mode, ModTime: time.Unix(0, 0)}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

// addBytes adds a regular file with the given content.
func addBytes(w *tar.Writer, name string, content []byte) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o644, ModTime: time.Unix(0, 0)}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// addTree adds everything below root, in the order of names, with owners and modes. Files with
// several links are added once for each.
func addTree(ctx context.Context, w *tar.Writer, root string) error {
	return filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if file == root {
			return ctx.Err()
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		link := ""
		switch kind := info.Mode().Type(); {
		case kind.IsRegular():
		case kind.IsDir():
			name += "/"
		case kind == fs.ModeSymlink:
			if link, err = os.Readlink(file); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s is neither a file, a directory nor a symbolic link", file)
		}
		header, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		// Names of owners, times and device numbers are the machine's, not the content's.
		header.Name, header.Uname, header.Gname = name, "", ""
		header.ModTime, header.AccessTime, header.ChangeTime = time.Unix(0, 0), time.Time{}, time.Time{}
		header.Format = tar.FormatPAX
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			header.Uid, header.Gid = int(stat.Uid), int(stat.Gid)
		}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package procfile reads small files of /proc again and again. To open one
// costs twenty times as much as to read it, so they stay open.
package procfile

import (
	"errors"
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"
)

// closed is the number of no file.
const closed = -1

// File is a file of /proc. It is safe for concurrent use.
type File struct {
	path string

	mu sync.Mutex // guards the following fields
	fd int
	// content is where the file is read to.
	content []byte
}

// New returns a file that is opened when it is first read. A file below /proc
// that differs between namespaces stays the one of the thread that read it
// first.
func New(path string) *File { return &File{path: path, fd: closed} }

// Read returns what the file holds now. One that is not there is looked for
// anew each time, and so is one that went away, as it does when its module is
// unloaded. The error is a *fs.PathError.
func (f *File) Read() (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd != closed {
		if err := f.read(); err == nil {
			return string(f.content), nil
		}
		_ = unix.Close(f.fd)
		f.fd = closed
	}
	fd, err := retry(func() (int, error) { return unix.Open(f.path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: f.path, Err: err}
	}
	f.fd = fd
	if err := f.read(); err != nil {
		return "", &fs.PathError{Op: "read", Path: f.path, Err: err}
	}
	return string(f.content), nil
}

// read reads all of the file that is open into content.
func (f *File) read() error {
	if f.content == nil {
		// A switch or the names of a few tables.
		f.content = make([]byte, 512)
	}
	f.content = f.content[:0]
	for {
		n, err := retry(func() (int, error) {
			return unix.Pread(f.fd, f.content[len(f.content):cap(f.content)], int64(len(f.content)))
		})
		if n <= 0 || err != nil {
			return err
		}
		f.content = f.content[:len(f.content)+n]
		if len(f.content) == cap(f.content) {
			f.content = append(f.content, 0)[:len(f.content)]
		}
	}
}

// Close closes the file. A later Read opens it again.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	fd := f.fd
	f.fd = closed
	if fd == closed {
		return nil
	}
	return unix.Close(fd)
}

// retry calls again what a signal interrupted.
func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

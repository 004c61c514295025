// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package notice

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lockFile tells when a file is closed.
type lockFile struct {
	path string
	file *os.File
}

// openLock begins to watch the file of that path.
func openLock(path string) (*lockFile, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open inotify: %w", err)
	}
	// iptables takes a lock on the file and closes it when it has written.
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_CLOSE|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", path, err), unix.Close(fd))
	}
	return &lockFile{path: path, file: os.NewFile(uintptr(fd), "inotify")}, nil
}

// Wait returns Lock after the file was closed. It fails if the file is no
// longer at its path, and after Close.
func (l *lockFile) Wait() (string, error) {
	// struct inotify_event without a name, as the watch is of a file.
	buf := make([]byte, 32*unix.SizeofInotifyEvent)
	n, err := l.file.Read(buf)
	if err != nil {
		return "", fmt.Errorf("read inotify: %w", err)
	}
	for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
		if binary.NativeEndian.Uint32(b[4:])&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED) != 0 {
			return "", fmt.Errorf("%s was removed", l.path)
		}
		name := binary.NativeEndian.Uint32(b[12:])
		b = b[min(uint64(unix.SizeofInotifyEvent)+uint64(name), uint64(len(b))):]
	}
	return Lock, nil
}

// Close ends the watch and a Wait.
func (l *lockFile) Close() error { return l.file.Close() }

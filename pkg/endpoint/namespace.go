// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/link"
)

// inodeOf returns the number of an open namespace. It may come back for another namespace once this one is gone; the cookie never does.
func inodeOf(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat network namespace: %w", err)
	}
	return st.Ino, nil
}

// openNamespace opens a namespace by the path that the runtime gave, or, when that path leads elsewhere by now (the agent may live in
// another mount namespace), by a process in it.
func openNamespace(path string, inode, cookie uint64) (*os.File, error) {
	if f, err := tryNamespace(path, inode, cookie); err == nil {
		return f, nil
	}
	all, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	for _, p := range all {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		name := "/proc/" + p.Name() + "/ns/net"
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil || st.Ino != inode {
			continue
		}
		if f, err := tryNamespace(name, inode, cookie); err == nil {
			return f, nil
		}
	}
	return nil, fmt.Errorf("open namespace %d: neither %q nor a process leads to it", cookie, path)
}

func tryNamespace(path string, inode, cookie uint64) (*os.File, error) {
	if path == "" {
		return nil, os.ErrNotExist
	}
	// Without O_NONBLOCK and O_NOCTTY a path that became something else could hold us up.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	got, err := inodeOf(f)
	if err == nil && got != inode {
		err = fmt.Errorf("open namespace %s: another namespace by now", path)
	}
	if err == nil {
		var c uint64
		if c, err = link.NamespaceCookie(int(f.Fd())); err == nil && c != cookie {
			err = fmt.Errorf("open namespace %s: another namespace by now", path)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

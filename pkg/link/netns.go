// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// InNamespace runs f on a thread that is in the network namespace of the open file descriptor, and waits for it. f must not start
// goroutines that count on the namespace. A thread that cannot be brought back is thrown away with its goroutine, so no other work ever
// runs in a foreign namespace.
func InNamespace(fd int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		back, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer back.Close()
		if err := netns.Set(netns.NsHandle(fd)); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace fd %d: %w", fd, err)
			return
		}
		result := f()
		if err := netns.Set(back); err != nil {
			// Still locked: the runtime ends the thread when this goroutine returns.
			done <- errors.Join(result, fmt.Errorf("leave network namespace: %w", err))
			return
		}
		runtime.UnlockOSThread()
		done <- result
	}()
	return <-done
}

// Do runs f on a thread in the handle's namespace; see InNamespace.
func (h *Handle) Do(f func() error) error { return InNamespace(int(h.ns), f) }

// Descriptor returns the handle's namespace as a file descriptor that stays the handle's and is valid until Close.
func (h *Handle) Descriptor() int { return int(h.ns) }

// NewNamespace makes an empty network namespace without a name. It lives as long as the file, or a process in it, does.
func NewNamespace() (*os.File, error) {
	var file *os.File
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, in the new namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		var err error
		file, err = os.Open("/proc/thread-self/ns/net")
		done <- err
	}()
	if err := <-done; err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	return file, nil
}

// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
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

// SPDX-License-Identifier: Apache-2.0

// Package link makes and removes the kernel's network objects: links, addresses, routes, neighbours, filters and sysctls. It is the
// only importer of netlink and knows nothing of Kubernetes.
package link

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Handle is a set of netlink sockets in one network namespace. It may be used by several goroutines at once.
type Handle struct {
	nl *netlink.Handle
	ns netns.NsHandle // own descriptor, for what netlink cannot do: sysctls and subscriptions
}

// Open returns a handle in the namespace of the calling thread.
func Open() (*Handle, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	return openOwned(ns)
}

// OpenAt returns a handle in the namespace that the open file descriptor names. The descriptor stays the caller's.
func OpenAt(fd int) (*Handle, error) {
	ns, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open netlink in namespace fd %d: %w", fd, err)
	}
	return openOwned(netns.NsHandle(ns))
}

func openOwned(ns netns.NsHandle) (*Handle, error) {
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink: %w", err), ns.Close())
	}
	return &Handle{nl: nl, ns: ns}, nil
}

// Close releases the sockets.
func (h *Handle) Close() {
	h.nl.Close()
	_ = h.ns.Close()
}

// retry runs a dump again while the kernel says that the table changed under it (EINTR): the partial result is worthless.
func retry[T any](dump func() (T, error)) (T, error) {
	for i := 0; ; i++ {
		v, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || i == 20 {
			return v, err
		}
	}
}

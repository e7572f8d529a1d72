// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// StaleSocket is a connected UDP socket whose backend does not serve any more (bpf/lib/stale.h).
type StaleSocket struct {
	Local     netip.AddrPort
	Remote    netip.AddrPort // of the backend
	Cookie    uint64         // of the socket
	Ifindex   uint32         // device that the socket is bound to; 0: none
	V6        bool           // an IPv6 socket; its addresses may be IPv4 all the same
	Destroyed bool           // by the kernel's iterator; otherwise the caller has to
}

// String returns "udp local -> remote".
func (s StaleSocket) String() string { return fmt.Sprintf("udp %s -> %s", s.Local, s.Remote) }

// StaleSockets runs the two iterators of bpf/lib/stale.h. What they look at is pinned, so sockets of an agent before this one are found as
// well. Methods may be called by several goroutines.
type StaleSockets struct {
	spaces  *link.Iter
	sockets *link.Iter
}

// StaleSockets returns the iterators over stale sockets; the caller closes them.
func (o *Objects) StaleSockets() (*StaleSockets, error) {
	spaces, err := o.program("stale_spaces")
	if err != nil {
		return nil, err
	}
	sockets, err := o.program("stale_sockets")
	if err != nil {
		return nil, err
	}
	return newStaleSockets(spaces, sockets, o.maps["sock_peers"])
}

// newStaleSockets binds the iterators stale_spaces and stale_sockets to the map sock_peers. The programs and the map stay the caller's.
func newStaleSockets(spaces, sockets *ebpf.Program, peers *ebpf.Map) (*StaleSockets, error) {
	a, err := link.AttachIter(link.IterOptions{Program: spaces, Map: peers})
	if err != nil {
		return nil, fmt.Errorf("attach iterator stale_spaces: %w", err)
	}
	b, err := link.AttachIter(link.IterOptions{Program: sockets})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach iterator stale_sockets: %w", err), a.Close())
	}
	return &StaleSockets{spaces: a, sockets: b}, nil
}

// Close takes the iterators away.
func (s *StaleSockets) Close() error { return errors.Join(s.spaces.Close(), s.sockets.Close()) }

// Namespaces returns the cookies of the network namespaces that hold stale sockets, each once, in rising order. It looks at every socket
// on the machine that was ever connected to a Service.
func (s *StaleSockets) Namespaces() ([]uint64, error) {
	b, err := readIter(s.spaces)
	if err != nil {
		return nil, fmt.Errorf("read iterator stale_spaces: %w", err)
	}
	if len(b)%8 != 0 {
		return nil, fmt.Errorf("read iterator stale_spaces: %d bytes are not whole cookies", len(b))
	}
	cookies := make([]uint64, 0, len(b)/8)
	for ; len(b) > 0; b = b[8:] {
		cookies = append(cookies, binary.NativeEndian.Uint64(b))
	}
	slices.Sort(cookies)
	return slices.Compact(cookies), nil
}

// Destroy destroys the stale sockets of the calling thread's network namespace (the caller has locked its goroutine to it) and returns them.
// Their owners get ECONNABORTED. Those that are not marked Destroyed are left to the caller: the kernel has no bpf_sock_destroy.
//
// The kernel finds its place in a full bucket by counting, so the sockets that it destroys there make it pass over others (seen on 6.12:
// 1,491 of 1,500): it is asked until it destroys nothing more.
func (s *StaleSockets) Destroy() (all []StaleSocket, err error) {
	for range stalePasses {
		found, err := s.pass()
		all = append(all, found...)
		if err != nil || !slices.ContainsFunc(found, func(f StaleSocket) bool { return f.Destroyed }) {
			return all, err
		}
	}
	return all, nil
}

// stalePasses bounds the work against sockets that become stale as fast as they are destroyed; those are for the next sweep.
const stalePasses = 16

// pass reads the iterator once.
func (s *StaleSockets) pass() ([]StaleSocket, error) {
	const size = int(unsafe.Sizeof(LayoutStaleSocket{}))

	b, err := readIter(s.sockets)
	if err != nil {
		return nil, fmt.Errorf("read iterator stale_sockets: %w", err)
	}
	if len(b)%size != 0 {
		return nil, fmt.Errorf("read iterator stale_sockets: %d bytes are not whole records of %d", len(b), size)
	}
	all := make([]StaleSocket, 0, len(b)/size)
	for ; len(b) > 0; b = b[size:] {
		var r LayoutStaleSocket
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&r)), size), b)
		all = append(all, StaleSocket{
			Local:     netip.AddrPortFrom(r.Local.Addr(), portFrom(r.LocalPort)),
			Remote:    netip.AddrPortFrom(r.Remote.Addr(), portFrom(r.RemotePort)),
			Cookie:    r.Cookie,
			Ifindex:   r.Ifindex,
			V6:        r.Family == unix.AF_INET6,
			Destroyed: r.Destroyed != 0,
		})
	}
	return all, nil
}

// readIter runs an iterator to its end in the calling thread's namespace.
func readIter(it *link.Iter) ([]byte, error) {
	r, err := it.Open()
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience is how long a socket waits for what must come; with -test.short a minute, which is enough for emulation without KVM.
func patience() time.Duration {
	if testing.Short() {
		return time.Minute
	}
	return 5 * time.Second
}

// Socket is a socket whose every system call is visible in the test: nothing resolves, retries or remembers addresses. Errors are the
// kernel's errno.
type Socket struct {
	FD int
	v6 bool
}

func newSocket(t testing.TB, fd int) *Socket {
	t.Helper()
	s := &Socket{FD: fd}
	t.Cleanup(s.Close)
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		t.Fatalf("read domain of socket: %v", err)
	}
	s.v6 = domain == unix.AF_INET6
	s.Wait(t, patience())
	return s
}

// Close closes the socket; a second time does nothing.
func (s *Socket) Close() {
	if s.FD >= 0 {
		unix.Close(s.FD)
	}
	s.FD = -1
}

// Wait sets how long Receive waits before it answers EAGAIN.
func (s *Socket) Wait(t testing.TB, d time.Duration) {
	t.Helper()
	tv := unix.NsecToTimeval(d.Nanoseconds())
	if err := unix.SetsockoptTimeval(s.FD, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatalf("set timeout of socket: %v", err)
	}
}

// sockaddr returns an address in the form of the socket's family: IPv4 on an IPv6 socket is mapped.
func (s *Socket) sockaddr(a netip.AddrPort) unix.Sockaddr {
	if s.v6 {
		return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

// addrPort returns an address as the kernel gave it: IPv4 in its mapped form stays mapped.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// Connect is connect(2).
func (s *Socket) Connect(to netip.AddrPort) error { return unix.Connect(s.FD, s.sockaddr(to)) }

// Disconnect is connect(2) to AF_UNSPEC.
func (s *Socket) Disconnect() error {
	var unspec [16]byte
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(s.FD), uintptr(unsafe.Pointer(&unspec)), uintptr(len(unspec)))
	if errno != 0 {
		return errno
	}
	return nil
}

// Bind is bind(2).
func (s *Socket) Bind(to netip.AddrPort) error { return unix.Bind(s.FD, s.sockaddr(to)) }

// Peer is getpeername(2).
func (s *Socket) Peer() (netip.AddrPort, error) {
	sa, err := unix.Getpeername(s.FD)
	return addrPort(sa), err
}

// Local is getsockname(2).
func (s *Socket) Local() (netip.AddrPort, error) {
	sa, err := unix.Getsockname(s.FD)
	return addrPort(sa), err
}

// Cookie is SO_COOKIE.
func (s *Socket) Cookie() (uint64, error) {
	return unix.GetsockoptUint64(s.FD, unix.SOL_SOCKET, unix.SO_COOKIE)
}

// SendTo is sendto(2).
func (s *Socket) SendTo(b string, to netip.AddrPort) error {
	return unix.Sendto(s.FD, []byte(b), 0, s.sockaddr(to))
}

// Send is send(2) on a connected socket.
func (s *Socket) Send(b string) error {
	_, err := unix.SendmsgN(s.FD, []byte(b), nil, nil, unix.MSG_NOSIGNAL)
	return err
}

// Receive is recvfrom(2) with an address.
func (s *Socket) Receive() (string, netip.AddrPort, error) {
	b := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(s.FD, b, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", netip.AddrPort{}, err
		}
		return string(b[:n]), addrPort(from), nil
	}
}

// Ask sends a datagram and returns the answer and whom it came from.
func (s *Socket) Ask(b string, to netip.AddrPort) (string, netip.AddrPort, error) {
	if err := s.SendTo(b, to); err != nil {
		return "", netip.AddrPort{}, fmt.Errorf("send: %w", err)
	}
	return s.Receive()
}

// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// UDPSocket names one connected UDP socket of a network namespace.
type UDPSocket struct {
	Local, Remote netip.AddrPort
	V6            bool   // an IPv6 socket; its addresses may be IPv4 all the same
	Ifindex       uint32 // device that it is bound to; 0: none
	Cookie        uint64 // of the socket: another one with the same addresses is left alone
}

// DestroyUDP destroys a socket in the calling thread's network namespace by inet_diag; the owner gets ECONNABORTED. One that is gone is no
// error: false. For kernels without bpf_sock_destroy (before Linux 6.5); needs CONFIG_INET_DIAG_DESTROY.
func DestroyUDP(s UDPSocket) (bool, error) {
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddRawData(s.request())
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("destroy socket udp %s -> %s: %w", s.Local, s.Remote, err)
	}
	return true, nil
}

// request returns struct inet_diag_req_v2 of the kernel's uapi.
func (s UDPSocket) request() []byte {
	b := make([]byte, 8, 56)
	b[0], b[1] = unix.AF_INET, unix.IPPROTO_UDP
	if s.V6 {
		b[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0)) // in any state
	b = binary.BigEndian.AppendUint16(b, s.Local.Port())
	b = binary.BigEndian.AppendUint16(b, s.Remote.Port())
	for _, a := range []netip.Addr{s.Local.Addr(), s.Remote.Addr()} {
		var field [16]byte
		if s.V6 {
			field = a.As16()
		} else {
			v4 := a.As4()
			copy(field[:], v4[:])
		}
		b = append(b, field[:]...)
	}
	b = binary.NativeEndian.AppendUint32(b, s.Ifindex)
	b = binary.NativeEndian.AppendUint32(b, uint32(s.Cookie))
	return binary.NativeEndian.AppendUint32(b, uint32(s.Cookie>>32))
}

// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// DeleteLink removes the host side of an attachment's link, and with it the pod's side, in the network namespace of the caller: what the
// binary does itself when there is no agent. An absent link is no error. It says RTM_DELLINK by hand, because the binary carries no
// netlink library.
func DeleteLink(a Attachment) error {
	name := a.LinkName()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval(5e9)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return fmt.Errorf("set netlink timeout: %w", err)
	}
	msg := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg+4, 64)
	binary.NativeEndian.PutUint16(msg[4:], unix.RTM_DELLINK)
	binary.NativeEndian.PutUint16(msg[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	binary.NativeEndian.PutUint16(msg[len(msg)-4:], uint16(4+len(name)+1))
	binary.NativeEndian.PutUint16(msg[len(msg)-2:], unix.IFLA_IFNAME)
	msg = append(append(msg, name...), 0)
	for len(msg)%4 != 0 {
		msg = append(msg, 0)
	}
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	var buf [4096]byte
	for {
		n, _, err := unix.Recvfrom(fd, buf[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("delete link %s: %w", name, err)
		}
		if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
			return fmt.Errorf("delete link %s: answer of %d bytes is no acknowledgement", name, n)
		}
		no := unix.Errno(-int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:])))
		if no != 0 && no != unix.ENODEV {
			return fmt.Errorf("delete link %s: %w", name, no)
		}
		return nil
	}
}

// DelWithoutAgent does a DEL as far as it goes without an agent: a tombstone, and the link removed. Either of them is enough for the next
// agent to free the addresses, so only the failure of both is an error.
func DelWithoutAgent(runDir string, a Attachment) error {
	stone := WriteTombstone(runDir, a)
	link := DeleteLink(a)
	if stone != nil && link != nil {
		return Errorf(CodeIO, "%s", Harmless(errors.Join(stone, link).Error()))
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The three requests of the probes, spelled out: package link is where devices are made, and nothing of ours is imported here.

// addClsact puts the clsact qdisc on a device.
func addClsact(ifindex int32) error {
	return request(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		tcmsg(ifindex, 0xffff0000, 0xfffffff1, 0), // TC_H_CLSACT
		attribute(unix.TCA_KIND, []byte("clsact\x00")))
}

// addFilter puts a direct-action program at the ingress of clsact: handle 1, priority 1, protocol all.
func addFilter(ifindex int32, program int) error {
	all := uint32(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}))
	return request(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		tcmsg(ifindex, 1, 0xfffffff2, 1<<16|all), // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
		attribute(unix.TCA_KIND, []byte("bpf\x00")),
		attribute(unix.TCA_OPTIONS,
			attribute(6, u32(uint32(program))), // TCA_BPF_FD
			attribute(7, []byte("probe\x00")),  // TCA_BPF_NAME
			attribute(8, u32(1))))              // TCA_BPF_FLAGS: TCA_BPF_FLAG_ACT_DIRECT
}

// addVXLAN makes a device that takes and gives tunnel keys with its packets.
func addVXLAN(name string) error {
	return request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		make([]byte, unix.SizeofIfInfomsg),
		attribute(unix.IFLA_IFNAME, []byte(name+"\x00")),
		attribute(unix.IFLA_LINKINFO,
			attribute(unix.IFLA_INFO_KIND, []byte("vxlan\x00")),
			attribute(unix.IFLA_INFO_DATA,
				attribute(unix.IFLA_VXLAN_LEARNING, []byte{0}),
				attribute(unix.IFLA_VXLAN_COLLECT_METADATA, []byte{1}))))
}

// tcmsg is struct tcmsg of linux/rtnetlink.h.
func tcmsg(ifindex int32, handle, parent, info uint32) []byte {
	b := make([]byte, 4, 20)
	for _, v := range []uint32{uint32(ifindex), handle, parent, info} {
		b = append(b, u32(v)...)
	}
	return b
}

func u32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// attribute is struct rtattr with its value, padded to four bytes.
func attribute(kind uint16, value ...[]byte) []byte {
	b := make([]byte, unix.SizeofRtAttr)
	for _, v := range value {
		b = append(b, v...)
	}
	binary.NativeEndian.PutUint16(b, uint16(len(b)))
	binary.NativeEndian.PutUint16(b[2:], kind)
	return append(b, make([]byte, -len(b)&3)...)
}

// request sends one message to the calling thread's namespace and waits for the kernel's answer.
func request(kind, flags uint16, parts ...[]byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer unix.Close(fd)
	b := make([]byte, unix.SizeofNlMsghdr)
	for _, p := range parts {
		b = append(b, p...)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to netlink: %w", err)
	}
	answer := make([]byte, 8192)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return fmt.Errorf("receive from netlink: %w", err)
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errors.New("receive from netlink: answer is no acknowledgement")
	}
	if errno := -int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}

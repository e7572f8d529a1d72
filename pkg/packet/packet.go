// SPDX-License-Identifier: Apache-2.0

// Package packet builds and reads Ethernet frames, for tests, traces and benchmarks. A Packet holds the fields that matter; Bytes fills
// in lengths and checksums, Parse checks them. Ports and lengths are in host byte order.
package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
)

// Protocol numbers (IANA).
const (
	ICMP   = 1
	TCP    = 6
	UDP    = 17
	ICMPv6 = 58
	SCTP   = 132
)

// TCP flags.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// Packet is one frame. The family follows the addresses, which must be of one family.
type Packet struct {
	SrcMAC, DstMAC   net.HardwareAddr // six bytes; nil: zero
	Src, Dst         netip.Addr
	Proto            uint8
	SrcPort, DstPort uint16 // TCP, UDP, SCTP; an echo has its identifier in SrcPort
	TCPFlags         uint8
	ICMPType         uint8
	ICMPCode         uint8
	ICMPRest         uint32 // bytes 4 to 7 of the ICMP header; for an echo made from SrcPort
	TTL              uint8  // 0: 64
	DontFragment     bool   // IPv4
	FragmentID       uint32 // with Fragment
	Fragment         bool
	FragmentOffset   uint16 // bytes, a multiple of 8; not 0: the payload follows the IP header directly
	MoreFragments    bool
	NoChecksum       bool // UDP over IPv4 without checksum
	Payload          []byte
}

func (p Packet) v6() bool { return p.Src.Is6() && !p.Src.Is4In6() || p.Dst.Is6() && !p.Dst.Is4In6() }

func (p Packet) echo() bool {
	if p.Proto == ICMPv6 {
		return p.ICMPType == 128 || p.ICMPType == 129
	}
	return p.Proto == ICMP && (p.ICMPType == 8 || p.ICMPType == 0)
}

// String is one line for a test's failure.
func (p Packet) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s > %s %s:%d > %s:%d proto %d", p.SrcMAC, p.DstMAC, p.Src, p.SrcPort, p.Dst, p.DstPort, p.Proto)
	if p.Proto == TCP {
		fmt.Fprintf(&b, " flags %#x", p.TCPFlags)
	}
	if p.Proto == ICMP || p.Proto == ICMPv6 {
		fmt.Fprintf(&b, " type %d code %d rest %#x", p.ICMPType, p.ICMPCode, p.ICMPRest)
	}
	if p.Fragment {
		fmt.Fprintf(&b, " fragment %d at %d more %t", p.FragmentID, p.FragmentOffset, p.MoreFragments)
	}
	fmt.Fprintf(&b, " %d bytes", len(p.Payload))
	return b.String()
}

// Bytes returns the frame with its lengths and checksums.
func (p Packet) Bytes() []byte {
	frame := make([]byte, 12, 128+len(p.Payload))
	copy(frame, p.DstMAC)
	copy(frame[6:], p.SrcMAC)
	body := p.transport()
	ttl := p.TTL
	if ttl == 0 {
		ttl = 64
	}
	if p.v6() {
		next := p.Proto
		if p.Fragment {
			h := binary.BigEndian.AppendUint16([]byte{next, 0}, p.FragmentOffset|bit(p.MoreFragments, 1))
			body = append(binary.BigEndian.AppendUint32(h, p.FragmentID), body...)
			next = 44
		}
		frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0)
		frame = binary.BigEndian.AppendUint16(frame, uint16(len(body)))
		frame = append(frame, next, ttl)
		src, dst := p.Src.As16(), p.Dst.As16()
		return append(append(append(frame, src[:]...), dst[:]...), body...)
	}
	frame = append(frame, 0x08, 0x00)
	h := []byte{0x45, 0}
	h = binary.BigEndian.AppendUint16(h, uint16(20+len(body)))
	h = binary.BigEndian.AppendUint16(h, uint16(p.FragmentID))
	h = binary.BigEndian.AppendUint16(h, p.FragmentOffset/8|bit(p.MoreFragments, 1<<13)|bit(p.DontFragment, 1<<14))
	h = append(h, ttl, p.Proto, 0, 0)
	src, dst := p.Src.Unmap().As4(), p.Dst.Unmap().As4()
	h = append(append(h, src[:]...), dst[:]...)
	binary.BigEndian.PutUint16(h[10:], ^sum(0, h))
	return append(append(frame, h...), body...)
}

func bit(set bool, value uint16) uint16 {
	if set {
		return value
	}
	return 0
}

// transport returns header and payload of the transport, or the payload alone for a fragment's tail.
func (p Packet) transport() []byte {
	if p.FragmentOffset > 0 {
		return p.Payload
	}
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.SrcPort), p.DstPort)
	var h []byte
	at := -1
	switch p.Proto {
	case TCP:
		h = append(ports, 0, 0, 0, 1, 0, 0, 0, 1, 5<<4, p.TCPFlags, 0xff, 0xff, 0, 0, 0, 0)
		at = 16
	case UDP:
		h = append(binary.BigEndian.AppendUint16(ports, uint16(8+len(p.Payload))), 0, 0)
		if at = 6; p.NoChecksum {
			at = -1
		}
	case SCTP:
		h = append(ports, 0, 0, 0, 1, 0, 0, 0, 0)
	case ICMP, ICMPv6:
		rest := p.ICMPRest
		if p.echo() {
			rest = uint32(p.SrcPort) << 16
		}
		h = binary.BigEndian.AppendUint32([]byte{p.ICMPType, p.ICMPCode, 0, 0}, rest)
		at = 2
	}
	body := append(h, p.Payload...)
	if at >= 0 {
		s := ^p.sum(body)
		if s == 0 && p.Proto == UDP {
			s = 0xffff
		}
		binary.BigEndian.PutUint16(body[at:], s)
	}
	if p.Proto == SCTP {
		binary.LittleEndian.PutUint32(body[8:], sumSCTP(body))
	}
	return body
}

// sumSCTP is the CRC32c of an SCTP packet, its own field taken as 0 (RFC 9260, appendix A).
func sumSCTP(b []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Update(crc32.Checksum(b[:8], table), table, make([]byte, 4)), table, b[12:])
}

// sum is the one's complement sum of the transport with its pseudo header.
func (p Packet) sum(body []byte) uint16 {
	if p.Proto == ICMP {
		return sum(0, body)
	}
	var pseudo []byte
	if p.v6() {
		src, dst := p.Src.As16(), p.Dst.As16()
		pseudo = append(append(pseudo, src[:]...), dst[:]...)
	} else {
		src, dst := p.Src.Unmap().As4(), p.Dst.Unmap().As4()
		pseudo = append(append(pseudo, src[:]...), dst[:]...)
	}
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(body)))
	return sum(uint32(sum(0, append(pseudo, 0, 0, 0, p.Proto))), body)
}

func sum(start uint32, b []byte) uint16 {
	s := start
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// Parse reads a frame. A wrong length or checksum is an error, so that a test which parses a program's output checks them.
func Parse(frame []byte) (Packet, error) {
	if len(frame) < 14 {
		return Packet{}, fmt.Errorf("frame of %d bytes is shorter than its Ethernet header", len(frame))
	}
	p := Packet{DstMAC: net.HardwareAddr(frame[:6]), SrcMAC: net.HardwareAddr(frame[6:12])}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		return p.ipv4(frame[14:])
	case 0x86dd:
		return p.ipv6(frame[14:])
	}
	return p, errors.New("frame is neither IPv4 nor IPv6")
}

func (p Packet) ipv4(b []byte) (Packet, error) {
	if len(b) < 20 || b[0] != 0x45 {
		return p, errors.New("IPv4 header is cut off or has options")
	}
	if n := int(binary.BigEndian.Uint16(b[2:])); n < 20 || n > len(b) {
		return p, fmt.Errorf("IPv4 total length %d does not fit %d bytes", n, len(b))
	} else {
		b = b[:n]
	}
	if sum(0, b[:20]) != 0xffff {
		return p, errors.New("IPv4 header checksum is wrong")
	}
	fragment := binary.BigEndian.Uint16(b[6:])
	p.Src, p.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.TTL, p.Proto = b[8], b[9]
	p.DontFragment = fragment&(1<<14) != 0
	p.MoreFragments = fragment&(1<<13) != 0
	p.FragmentOffset = fragment & 0x1fff * 8
	if p.Fragment = p.MoreFragments || p.FragmentOffset > 0; p.Fragment {
		p.FragmentID = uint32(binary.BigEndian.Uint16(b[4:]))
	}
	return p.body(b[20:])
}

func (p Packet) ipv6(b []byte) (Packet, error) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return p, errors.New("IPv6 header is cut off")
	}
	p.Src, p.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	p.Proto, p.TTL = b[6], b[7]
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n > len(b)-40 {
		return p, fmt.Errorf("IPv6 payload length %d does not fit %d bytes", n, len(b)-40)
	}
	b = b[40 : 40+n]
	if p.Proto == 44 {
		if len(b) < 8 {
			return p, errors.New("IPv6 fragment header is cut off")
		}
		offset := binary.BigEndian.Uint16(b[2:])
		p.Proto, p.Fragment, p.FragmentID = b[0], true, binary.BigEndian.Uint32(b[4:])
		p.FragmentOffset, p.MoreFragments = offset&^7, offset&1 != 0
		b = b[8:]
	}
	return p.body(b)
}

func (p Packet) body(b []byte) (Packet, error) {
	if p.FragmentOffset > 0 {
		p.Payload = b
		return p, nil
	}
	least := map[uint8]int{TCP: 20, UDP: 8, SCTP: 12, ICMP: 8, ICMPv6: 8}[p.Proto]
	if len(b) < least {
		return p, fmt.Errorf("header of protocol %d is cut off at %d bytes", p.Proto, len(b))
	}
	checked := !p.Fragment && (p.Proto == TCP || p.Proto == UDP || p.Proto == ICMP || p.Proto == ICMPv6)
	if p.Proto == UDP && binary.BigEndian.Uint16(b[6:]) == 0 && !p.v6() {
		p.NoChecksum, checked = true, false
	}
	if checked && p.sum(b) != 0xffff {
		return p, fmt.Errorf("checksum of protocol %d is wrong", p.Proto)
	}
	if p.Proto == SCTP && !p.Fragment && binary.LittleEndian.Uint32(b[8:]) != sumSCTP(b) {
		return p, errors.New("checksum of SCTP is wrong")
	}
	switch p.Proto {
	case TCP, UDP, SCTP:
		p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		if p.Proto == TCP {
			p.TCPFlags = b[13]
			least = int(b[12]>>4) * 4
		}
	case ICMP, ICMPv6:
		p.ICMPType, p.ICMPCode, p.ICMPRest = b[0], b[1], binary.BigEndian.Uint32(b[4:])
		if p.echo() {
			p.SrcPort = binary.BigEndian.Uint16(b[4:])
		}
	}
	if least > len(b) {
		return p, fmt.Errorf("TCP header length %d does not fit %d bytes", least, len(b))
	}
	p.Payload = b[least:]
	return p, nil
}

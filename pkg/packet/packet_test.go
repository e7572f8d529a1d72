// SPDX-License-Identifier: Apache-2.0

package packet_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fairlead/fairlead/pkg/packet"
)

func TestRoundTrip(t *testing.T) {
	v4 := [2]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
	v6 := [2]netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")}
	for _, addrs := range [][2]netip.Addr{v4, v6} {
		icmp := uint8(packet.ICMP)
		if addrs[0].Is6() {
			icmp = packet.ICMPv6
		}
		for name, p := range map[string]packet.Packet{
			"tcp":        {Proto: packet.TCP, SrcPort: 1, DstPort: 2, TCPFlags: packet.SYN},
			"udp":        {Proto: packet.UDP, SrcPort: 1, DstPort: 2, Payload: []byte("odd")},
			"sctp":       {Proto: packet.SCTP, SrcPort: 1, DstPort: 2},
			"icmp":       {Proto: icmp, ICMPType: 3, ICMPRest: 1400, Payload: make([]byte, 28)},
			"head":       {Proto: packet.UDP, SrcPort: 1, DstPort: 2, Fragment: true, FragmentID: 7, MoreFragments: true, Payload: make([]byte, 16)},
			"tail":       {Proto: packet.UDP, Fragment: true, FragmentID: 7, FragmentOffset: 24, Payload: make([]byte, 3)},
			"ttl and df": {Proto: packet.TCP, SrcPort: 1, DstPort: 2, TTL: 3, DontFragment: addrs[0].Is4()},
		} {
			p.Src, p.Dst = addrs[0], addrs[1]
			p.SrcMAC, p.DstMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
			got, err := packet.Parse(p.Bytes())
			if err != nil {
				t.Errorf("%s %s: %v", p.Src, name, err)
				continue
			}
			if p.TTL == 0 {
				p.TTL = 64
			}
			if d := cmp.Diff(p, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{})); d != "" {
				t.Errorf("%s %s: built and parsed differ:\n%s", p.Src, name, d)
			}
		}
	}
}

func TestParseRefusesWrongSums(t *testing.T) {
	p := packet.Packet{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Proto: packet.TCP, SrcPort: 1, DstPort: 2}
	for _, at := range []int{14 + 12, 14 + 20, 14 + 20 + 16} { // source address, source port, checksum
		b := p.Bytes()
		b[at] ^= 1
		if _, err := packet.Parse(b); err == nil {
			t.Errorf("byte %d flipped: no error", at)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/fairlead/fairlead/pkg/packet"
)

// What the filters answer (linux/pkt_cls.h).
const (
	pass     = 0
	shot     = 2
	redirect = 7
)

// skBuff is the part of struct __sk_buff that a test run takes.
type skBuff struct {
	_              [9]uint32
	IngressIfindex uint32
	Ifindex        uint32
	_              [37]uint32
}

const loopback = 1 // the device that a test run may always name

var (
	gatewayMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	macA       = net.HardwareAddr{2, 0, 0, 0, 0, 0xa}
	macB       = net.HardwareAddr{2, 0, 0, 0, 0, 0xb}
)

// addresses of one family; every test of this file runs in both.
type addresses struct {
	podA, podB, remote, outside, vip, overlay, node netip.Addr
}

func families() map[string]addresses {
	a := netip.MustParseAddr
	return map[string]addresses{
		"ipv4": {a("10.244.1.2"), a("10.244.1.3"), a("10.244.2.9"), a("192.0.2.7"), a("10.96.0.10"), a("10.244.1.0"), a("10.88.0.11")},
		"ipv6": {a("fd00:1::2"), a("fd00:1::3"), a("fd00:2::9"), a("2001:db8::7"), a("fd00:96::a"), a("fd00:1::"), a("fd00:88::11")},
	}
}

// walk is an agent's objects with two pods and one peer.
type walk struct {
	*testing.T
	o *Objects
	a addresses
}

func newWalk(t *testing.T, a addresses, change func(*Options)) *walk {
	all := families()
	o := Options{
		Dir: testDir(t),
		Config: Config{
			Node4: all["ipv4"].node, Node6: all["ipv6"].node, Overlay4: all["ipv4"].overlay, Overlay6: all["ipv6"].overlay,
			OverlayIfindex: loopback, OverlayMTU: 1450, VNI: 1, GatewayMAC: [6]byte(gatewayMAC), OverlayMAC: [6]byte{2, 0, 0, 0, 0, 2},
		},
		Capacity: small(),
	}
	if change != nil {
		change(&o)
	}
	objects, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { objects.Close() })
	w := &walk{t, objects, a}
	w.behind(macA)
	w.must(objects.Peers().Put(Peer{ID: 3, Incarnation: 9, Node: netip.MustParseAddr("10.88.0.12"), CIDRs: []netip.Prefix{
		netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("fd00:2::/64"),
	}}))
	return w
}

func (w *walk) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// behind puts one of the two pods behind the device of the test run.
func (w *walk) behind(mac net.HardwareAddr) {
	w.Helper()
	all := families()
	a := Endpoint{ID: 1, Incarnation: 5, Addr4: all["ipv4"].podA, Addr6: all["ipv6"].podA, Ifindex: 1001, MAC: [6]byte(macA)}
	b := Endpoint{ID: 2, Incarnation: 6, Addr4: all["ipv4"].podB, Addr6: all["ipv6"].podB, Ifindex: 1002, MAC: [6]byte(macB)}
	w.must(w.o.Endpoints().Put(a))
	w.must(w.o.Endpoints().Put(b))
	if slices.Equal(mac, macA) {
		a.Ifindex = loopback
		w.must(w.o.Endpoints().Put(a))
	} else {
		b.Ifindex = loopback
		w.must(w.o.Endpoints().Put(b))
	}
}

// service puts one service behind the VIP, on port 80 of the protocol.
func (w *walk) service(proto uint8, empty ServiceVerdict, backends ...netip.AddrPort) {
	w.Helper()
	s := w.o.Services()
	ids := make([]uint32, len(backends))
	for i, b := range backends {
		ids[i] = uint32(i + 1)
		w.must(s.PutBackend(Backend{ID: ids[i], Incarnation: 21, Flags: LayoutBackendFlagBACKEND_SERVING | LayoutBackendFlagBACKEND_CLUSTER,
			Addr: b.Addr(), Port: b.Port(), Protocol: proto}))
	}
	w.must(s.WriteSlots(16, ids))
	w.must(s.Flip(1, Service{ID: 1, Incarnation: 20, Cluster: Set{Offset: 16, Length: uint32(len(ids)), Verdict: empty}}))
	w.must(s.PutClusterIP(w.a.vip, 1))
	w.must(s.PutFrontend(Frontend{FrontendKey: FrontendKey{Addr: w.a.vip, Port: 80, Protocol: proto}, Service: 1}))
}

func (w *walk) run(program string, frame []byte) (uint32, []byte) {
	w.Helper()
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+512), Context: skBuff{Ifindex: loopback}}
	action, err := w.o.programs[program].Run(&opts)
	if err != nil {
		w.Fatalf("run %s: %v", program, err)
	}
	return action, opts.DataOut
}

// sends runs a packet and parses what came out, which checks lengths and checksums.
func (w *walk) sends(program string, p packet.Packet, want uint32) packet.Packet {
	w.Helper()
	action, out := w.run(program, p.Bytes())
	if action != want {
		w.Fatalf("%s of %s: action %d, want %d; drops %v", program, p, action, want, w.drops())
	}
	got, err := packet.Parse(out)
	if err != nil {
		w.Fatalf("%s of %s: output: %v", program, p, err)
	}
	return got
}

func (w *walk) drops() map[string]uint64 {
	w.Helper()
	all, err := w.o.Drops()
	w.must(err)
	for reason, n := range all {
		if n == 0 {
			delete(all, reason)
		}
	}
	return all
}

// dropped runs a frame that must be refused, for exactly this reason.
func (w *walk) dropped(program string, frame []byte, reason string) {
	w.Helper()
	before := w.drops()
	action, _ := w.run(program, frame)
	after := w.drops()
	if action != shot || after[reason] != before[reason]+1 {
		w.Errorf("%s: action %d, drops %v after %v, want one more %s", program, action, after, before, reason)
	}
}

func (w *walk) fromA(proto uint8, dst netip.Addr, port uint16) packet.Packet {
	return packet.Packet{SrcMAC: macA, DstMAC: gatewayMAC, Src: w.a.podA, Dst: dst, Proto: proto, SrcPort: 40000, DstPort: port,
		TCPFlags: packet.SYN, Payload: []byte("payload")}
}

func eachFamily(t *testing.T, test func(*walk)) {
	for name, a := range families() {
		t.Run(name, func(t *testing.T) { test(newWalk(t, a, nil)) })
	}
}

var protocols = []uint8{packet.TCP, packet.UDP, packet.SCTP}

func TestFromPodWays(t *testing.T) {
	eachFamily(t, func(w *walk) {
		for _, proto := range protocols {
			out := w.sends("from_pod", w.fromA(proto, w.a.podB, 80), redirect)
			if !slices.Equal(out.DstMAC, macB) || !slices.Equal(out.SrcMAC, gatewayMAC) {
				w.Errorf("to the pod beside: %s, want the link addresses of its veth", out)
			}
			for i := range 2 { // first packet and established
				if out = w.sends("from_pod", w.fromA(proto, w.a.remote, 80), redirect); out.Dst != w.a.remote {
					w.Errorf("packet %d to another node: %s", i, out)
				}
				if out = w.sends("from_pod", w.fromA(proto, w.a.outside, 80), pass); out.Dst != w.a.outside {
					w.Errorf("packet %d to outside: %s", i, out)
				}
			}
		}
		if d := w.drops(); len(d) > 0 {
			w.Errorf("drops: %v", d)
		}
	})
}

func TestFromPodSpoofed(t *testing.T) {
	eachFamily(t, func(w *walk) {
		p := w.fromA(packet.UDP, w.a.podB, 80)
		p.Src = w.a.outside
		w.dropped("from_pod", p.Bytes(), "spoofed-address")
		p = w.fromA(packet.UDP, w.a.podB, 80)
		p.SrcMAC = macB
		w.dropped("from_pod", p.Bytes(), "spoofed-mac")
		w.must(w.o.Endpoints().Delete(1))
		w.dropped("from_pod", w.fromA(packet.UDP, w.a.podB, 80).Bytes(), "endpoint-unknown")
	})
}

func TestFromPodServiceAndReply(t *testing.T) {
	for name, a := range families() {
		for _, proto := range protocols {
			for _, port := range []uint16{80, 8080} {
				t.Run(name, func(t *testing.T) {
					w := newWalk(t, a, nil)
					w.service(proto, 0, netip.AddrPortFrom(a.podB, port))
					for range 2 {
						out := w.sends("from_pod", w.fromA(proto, a.vip, 80), redirect)
						if out.Dst != a.podB || out.DstPort != port || out.Src != a.podA || out.SrcPort != 40000 || !slices.Equal(out.DstMAC, macB) {
							t.Fatalf("to the Service: %s, want it at pod B port %d", out, port)
						}
					}
					w.behind(macB)
					reply := packet.Packet{SrcMAC: macB, DstMAC: gatewayMAC, Src: a.podB, Dst: a.podA, Proto: proto, SrcPort: port, DstPort: 40000,
						TCPFlags: packet.SYN | packet.ACK}
					out := w.sends("from_pod", reply, redirect)
					if out.Src != a.vip || out.SrcPort != 80 || out.Dst != a.podA || out.DstPort != 40000 || !slices.Equal(out.DstMAC, macA) {
						t.Errorf("reply: %s, want it from the Service to pod A", out)
					}
				})
			}
		}
	}
}

// A backend on the node's own network answers through the stack: the reply meets to_pod.
func TestToPodServiceReply(t *testing.T) {
	eachFamily(t, func(w *walk) {
		w.service(packet.TCP, 0, netip.AddrPortFrom(w.a.node, 6443))
		if out := w.sends("from_pod", w.fromA(packet.TCP, w.a.vip, 80), pass); out.Dst != w.a.node || out.DstPort != 6443 {
			w.Fatalf("to the Service: %s", out)
		}
		reply := packet.Packet{Src: w.a.node, Dst: w.a.podA, Proto: packet.TCP, SrcPort: 6443, DstPort: 40000, TCPFlags: packet.SYN | packet.ACK}
		if out := w.sends("to_pod", reply, pass); out.Src != w.a.vip || out.SrcPort != 80 {
			w.Errorf("reply: %s, want it from the Service", out)
		}
	})
}

func TestServiceRefused(t *testing.T) {
	eachFamily(t, func(w *walk) {
		for _, proto := range protocols {
			w.service(proto, LayoutServiceVerdictVERDICT_REFUSE)
			for port, reason := range map[uint16]string{80: "service-refused", 81: "service-port"} {
				sent := w.fromA(proto, w.a.vip, port)
				before := w.drops()[reason]
				out := w.sends("from_pod", sent, redirect)
				typ, code := uint8(3), uint8(3)
				if w.a.vip.Is6() {
					typ, code = 1, 4
				}
				if out.ICMPType != typ || out.ICMPCode != code || out.Dst != w.a.podA || out.Src != w.a.overlay || !slices.Equal(out.DstMAC, macA) {
					w.Errorf("protocol %d port %d: %s, want port unreachable to pod A", proto, port, out)
				}
				if inner := sent.Bytes()[14:]; len(out.Payload) < 28 || !slices.Equal(out.Payload, inner[:len(out.Payload)]) {
					w.Errorf("protocol %d port %d: the answer does not quote the packet", proto, port)
				}
				if w.drops()[reason] != before+1 {
					w.Errorf("protocol %d port %d: drops %v, want one more %s", proto, port, w.drops(), reason)
				}
			}
			w.service(proto, LayoutServiceVerdictVERDICT_DROP)
			w.dropped("from_pod", w.fromA(proto, w.a.vip, 80).Bytes(), "service-no-local")
		}
	})
}

// A pod that reaches itself through its Service sees the node's overlay address, and its answer finds the way back.
func TestServiceHairpin(t *testing.T) {
	eachFamily(t, func(w *walk) {
		w.service(packet.TCP, 0, netip.AddrPortFrom(w.a.podA, 8080))
		out := w.sends("from_pod", w.fromA(packet.TCP, w.a.vip, 80), redirect)
		if out.Dst != w.a.podA || out.DstPort != 8080 || out.Src != w.a.overlay || !slices.Equal(out.DstMAC, macA) {
			w.Fatalf("to itself: %s, want it from the overlay address", out)
		}
		reply := packet.Packet{SrcMAC: macA, DstMAC: gatewayMAC, Src: w.a.podA, Dst: w.a.overlay, Proto: packet.TCP, SrcPort: 8080,
			DstPort: out.SrcPort, TCPFlags: packet.SYN | packet.ACK}
		out = w.sends("from_pod", reply, redirect)
		if out.Src != w.a.vip || out.SrcPort != 80 || out.Dst != w.a.podA || out.DstPort != 40000 {
			w.Errorf("reply: %s, want it from the Service to port 40000", out)
		}
	})
}

func TestTooBig(t *testing.T) {
	eachFamily(t, func(w *walk) {
		p := w.fromA(packet.UDP, w.a.remote, 80)
		p.DontFragment = w.a.remote.Is4()
		header := 28
		if w.a.remote.Is6() {
			header = 48
		}
		p.Payload = make([]byte, 1450-header)
		w.sends("from_pod", p, redirect)
		p.Payload = append(p.Payload, 0)
		out := w.sends("from_pod", p, redirect)
		typ, code := uint8(3), uint8(4)
		if w.a.remote.Is6() {
			typ, code = 2, 0
		}
		if out.ICMPType != typ || out.ICMPCode != code || out.ICMPRest != 1450 || out.Dst != w.a.podA || !slices.Equal(out.DstMAC, macA) {
			w.Errorf("1451 bytes: %s, want too big with 1450 to pod A", out)
		}
		if w.drops()["too-big"] != 1 {
			w.Errorf("drops: %v", w.drops())
		}
		if w.a.remote.Is4() { // may be fragmented: the stack does it
			p.DontFragment = false
			if out := w.sends("from_pod", p, pass); out.Dst != w.a.remote {
				w.Errorf("without DF: %s", out)
			}
		}
	})
}

func TestFragments(t *testing.T) {
	eachFamily(t, func(w *walk) {
		w.service(packet.UDP, 0, netip.AddrPortFrom(w.a.podB, 8080), netip.AddrPortFrom(w.a.remote, 8080))
		head := w.fromA(packet.UDP, w.a.vip, 80)
		head.Fragment, head.FragmentID, head.MoreFragments, head.Payload = true, 77, true, make([]byte, 16)
		tail := w.fromA(packet.UDP, w.a.vip, 0)
		tail.Fragment, tail.FragmentID, tail.FragmentOffset, tail.Payload = true, 77, 24, make([]byte, 9)

		w.dropped("from_pod", tail.Bytes(), "service-fragment")
		first := w.sends("from_pod", head, redirect)
		second := w.sends("from_pod", tail, redirect)
		if first.Dst == w.a.vip || second.Dst != first.Dst || len(second.Payload) != 9 {
			w.Errorf("head %s, tail %s: want both at one backend", first, second)
		}
		// A tail to an ordinary address needs no head.
		tail.Dst, tail.FragmentID = w.a.podB, 78
		w.sends("from_pod", tail, redirect)
	})
}

func TestToPod(t *testing.T) {
	eachFamily(t, func(w *walk) {
		p := packet.Packet{Src: w.a.outside, Dst: w.a.podA, Proto: packet.TCP, SrcPort: 1234, DstPort: 80, TCPFlags: packet.SYN}
		w.sends("to_pod", p, pass)
		p.Dst = w.a.podB
		w.dropped("to_pod", p.Bytes(), "to-pod-address")
		// The answer goes the way that the question came: through the stack, even when a peer claims the address since.
		w.must(w.o.Peers().Put(Peer{ID: 4, Incarnation: 10, Node: netip.MustParseAddr("10.88.0.13"),
			CIDRs: []netip.Prefix{netip.PrefixFrom(w.a.outside, w.a.outside.BitLen())}}))
		answer := w.fromA(packet.TCP, w.a.outside, 1234)
		answer.SrcPort, answer.TCPFlags = 80, packet.SYN|packet.ACK
		w.sends("from_pod", answer, pass)
	})
}

func TestNotIPAndLinkScopePass(t *testing.T) {
	w := newWalk(t, families()["ipv6"], nil)
	arp := make([]byte, 42)
	copy(arp[6:], macA)
	arp[12], arp[13] = 0x08, 0x06
	llc := make([]byte, 60)
	llc[13] = 0x26
	for _, frame := range [][]byte{arp, llc} {
		for _, program := range []string{"from_pod", "to_pod"} {
			if action, _ := w.run(program, frame); action != pass {
				t.Errorf("%s of a frame without IP: action %d", program, action)
			}
		}
	}
	solicit := packet.Packet{SrcMAC: macA, DstMAC: gatewayMAC, Src: netip.MustParseAddr("fe80::1234"), Dst: netip.MustParseAddr("ff02::1:ff00:1"),
		Proto: packet.ICMPv6, ICMPType: 135, TTL: 255, Payload: make([]byte, 16)}
	w.sends("from_pod", solicit, pass)
	solicit.Dst = w.a.podB // a link-local source must not leave its link
	w.dropped("from_pod", solicit.Bytes(), "spoofed-address")
}

func TestMalformed(t *testing.T) {
	w := newWalk(t, families()["ipv4"], nil)
	v4 := w.fromA(packet.TCP, w.a.podB, 80).Bytes()
	six := families()["ipv6"]
	p6 := w.fromA(packet.TCP, six.podB, 80)
	p6.Src = six.podA
	v6 := p6.Bytes()
	edit := func(b []byte, at int, value byte) []byte { b = slices.Clone(b); b[at] = value; return b }
	extension := slices.Concat(v6[:14+6], []byte{0}, v6[14+7:14+40], []byte{6, 255, 0, 0, 0, 0, 0, 0}, make([]byte, 32))
	mapped := slices.Clone(v6)
	copy(mapped[14+8:], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 244, 1, 2})
	// Frames that end inside their IP header are refused by the test run itself (since 6.16).
	for _, c := range []struct {
		reason string
		frame  []byte
	}{
		{"ipv4-header", edit(v4, 14, 0x55)},
		{"ipv4-header", edit(v4, 14, 0x44)},
		{"ipv4-header", edit(edit(v4, 14+2, 0), 14+3, 19)},
		{"ports-short", v4[:14+20+19]},
		{"ipv6-extension", extension},
		{"ipv6-mapped", mapped},
		{"ports-short", v6[:14+40+19]},
	} {
		w.dropped("from_pod", c.frame, c.reason)
	}
}

// A full table cuts nothing that needs no record, and refuses what does.
func TestFullTable(t *testing.T) {
	for name, a := range families() {
		t.Run(name, func(t *testing.T) {
			w := newWalk(t, a, func(o *Options) { o.Capacity["flow_slots"] = 512 })
			w.service(packet.UDP, 0, netip.AddrPortFrom(a.remote, 8080))
			for port := range uint16(600) {
				p := w.fromA(packet.UDP, a.remote, 80)
				p.SrcPort = 1000 + port
				w.sends("from_pod", p, redirect)
			}
			c, err := w.o.Counters()
			w.must(err)
			if c["flow-unrecorded"] == 0 {
				t.Fatalf("counters %v: the table was not full", c)
			}
			w.dropped("from_pod", w.fromA(packet.UDP, a.vip, 80).Bytes(), "flow-full")
		})
	}
}

// A record whose pod or peer is gone decides nothing: the address does.
func TestStaleTarget(t *testing.T) {
	eachFamily(t, func(w *walk) {
		w.sends("from_pod", w.fromA(packet.UDP, w.a.podB, 80), redirect)
		w.must(w.o.Endpoints().Delete(2))
		w.sends("from_pod", w.fromA(packet.UDP, w.a.podB, 80), pass)
		w.sends("from_pod", w.fromA(packet.UDP, w.a.remote, 80), redirect)
		w.must(w.o.Peers().Delete(3))
		w.sends("from_pod", w.fromA(packet.UDP, w.a.remote, 80), pass)
	})
}

// A UDP flow leaves its backend as soon as that stops serving; a TCP connection stays and drains.
func TestServiceBackendStopsServing(t *testing.T) {
	eachFamily(t, func(w *walk) {
		for _, proto := range []uint8{packet.UDP, packet.TCP} {
			w.service(proto, 0, netip.AddrPortFrom(w.a.podB, 8080))
			w.sends("from_pod", w.fromA(proto, w.a.vip, 80), redirect)
			b := Backend{ID: 2, Incarnation: 22, Flags: LayoutBackendFlagBACKEND_SERVING | LayoutBackendFlagBACKEND_CLUSTER,
				Addr: w.a.remote, Port: 8080, Protocol: proto}
			w.must(w.o.Services().PutBackend(b))
			w.must(w.o.Services().WriteSlots(32, []uint32{2}))
			w.must(w.o.Services().Flip(1, Service{ID: 1, Incarnation: 20, Cluster: Set{Offset: 32, Length: 1}}))
			p := w.fromA(proto, w.a.vip, 80)
			p.TCPFlags = packet.ACK
			if out := w.sends("from_pod", p, redirect); out.Dst != w.a.podB {
				w.Errorf("protocol %d: %s, want it at the backend that left the set but serves", proto, out)
			}
			b = Backend{ID: 1, Incarnation: 21, Addr: w.a.podB, Port: 8080, Protocol: proto}
			w.must(w.o.Services().PutBackend(b))
			want := w.a.remote
			if proto == packet.TCP {
				want = w.a.podB
			}
			if out := w.sends("from_pod", p, redirect); out.Dst != want {
				w.Errorf("protocol %d: %s, want it at %s", proto, out, want)
			}
		}
	})
}

// A new connection on the ends of one that is over is a new flow: it chooses anew.
func TestServiceConnectionReused(t *testing.T) {
	eachFamily(t, func(w *walk) {
		w.service(packet.TCP, 0, netip.AddrPortFrom(w.a.podB, 8080))
		p := w.fromA(packet.TCP, w.a.vip, 80)
		w.sends("from_pod", p, redirect)
		w.service(packet.TCP, 0, netip.AddrPortFrom(w.a.remote, 8080))
		if out := w.sends("from_pod", p, redirect); out.Dst != w.a.podB { // a retransmitted SYN keeps its backend
			w.Errorf("SYN again: %s", out)
		}
		p.TCPFlags = packet.RST
		w.sends("from_pod", p, redirect)
		p.TCPFlags = packet.SYN
		if out := w.sends("from_pod", p, redirect); out.Dst != w.a.remote {
			w.Errorf("new connection after RST: %s, want the new backend", out)
		}
	})
}

// A Service leads to a backend that the pod speaks to from the same port already: the new flow gets another source port, and its way back.
func TestServiceMeetsDirectFlow(t *testing.T) {
	eachFamily(t, func(w *walk) {
		for _, proto := range []uint8{packet.TCP, packet.UDP} {
			w.sends("from_pod", w.fromA(proto, w.a.remote, 8080), redirect)
			w.service(proto, 0, netip.AddrPortFrom(w.a.remote, 8080))
			out := w.sends("from_pod", w.fromA(proto, w.a.vip, 80), redirect)
			if out.Dst != w.a.remote || out.Src != w.a.podA || out.SrcPort < 61000 {
				w.Fatalf("protocol %d: %s, want another source port", proto, out)
			}
			// Both ways back, as the stack would deliver them.
			for to, from := range map[uint16]netip.AddrPort{40000: netip.AddrPortFrom(w.a.remote, 8080), out.SrcPort: netip.AddrPortFrom(w.a.vip, 80)} {
				reply := packet.Packet{Src: w.a.remote, Dst: w.a.podA, Proto: proto, SrcPort: 8080, DstPort: to, TCPFlags: packet.SYN | packet.ACK}
				if back := w.sends("to_pod", reply, pass); back.Src != from.Addr() || back.SrcPort != from.Port() || back.DstPort != 40000 {
					w.Errorf("protocol %d, reply to %d: %s, want it from %s to 40000", proto, to, back, from)
				}
			}
		}
		// The other way round: first through the Service, then directly. Both keep their ways back.
		for _, proto := range []uint8{packet.TCP, packet.UDP} {
			w.service(proto, 0, netip.AddrPortFrom(w.a.remote, 8080))
			service, direct := w.fromA(proto, w.a.vip, 80), w.fromA(proto, w.a.remote, 8080)
			service.SrcPort, direct.SrcPort = 40001, 40001
			w.sends("from_pod", service, redirect)
			var ported uint16
			for i := range 3 { // first packet and established
				if out := w.sends("from_pod", service, redirect); out.Dst != w.a.remote || out.SrcPort != 40001 {
					w.Errorf("protocol %d, packet %d to the Service: %s", proto, i, out)
				}
				out := w.sends("from_pod", direct, redirect)
				if out.Dst != w.a.remote || out.DstPort != 8080 || out.SrcPort < 61000 || i > 0 && out.SrcPort != ported {
					w.Fatalf("protocol %d, direct packet %d: %s, want one other source port", proto, i, out)
				}
				ported = out.SrcPort
				service.TCPFlags, direct.TCPFlags = packet.ACK, packet.ACK
			}
			for to, from := range map[uint16]netip.AddrPort{40001: netip.AddrPortFrom(w.a.vip, 80), ported: netip.AddrPortFrom(w.a.remote, 8080)} {
				reply := packet.Packet{Src: w.a.remote, Dst: w.a.podA, Proto: proto, SrcPort: 8080, DstPort: to, TCPFlags: packet.ACK}
				if back := w.sends("to_pod", reply, pass); back.Src != from.Addr() || back.SrcPort != from.Port() || back.DstPort != 40001 {
					w.Errorf("protocol %d, reply to %d: %s, want it from %s to 40001", proto, to, back, from)
				}
			}
		}
	})
}

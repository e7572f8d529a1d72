// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/fairlead/fairlead/pkg/packet"
)

const nodePort = 30080

// next leaves a packet to the kernel and to other programs on the device (TCX_NEXT).
const next = ^uint32(0)

// snats are the second addresses of the own pod CIDR.
var snats = map[bool]netip.Addr{true: netip.MustParseAddr("10.244.1.1"), false: netip.MustParseAddr("fd00:1::1")}

// newNet is a walk whose node has its address accepted for NodePorts and another one that is not.
func newNet(t *testing.T, a addresses) *walk {
	w := newWalk(t, a, func(o *Options) { o.Config.Snat4, o.Config.Snat6 = snats[true], snats[false] })
	w.must(w.o.NodeAddresses().Put(a.node, NodeAddressLocal|NodeAddressNodePort))
	w.must(w.o.NodeAddresses().Put(other(a), NodeAddressLocal))
	return w
}

// other is the node's address that serves no NodePort.
func other(a addresses) netip.Addr { return a.node.Next() }

func eachNet(t *testing.T, test func(*walk)) {
	for name, a := range families() {
		t.Run(name, func(t *testing.T) { test(newNet(t, a)) })
	}
}

// external gives the service of w.service a frontend of another class.
func (w *walk) external(class FrontendClass, addr netip.Addr, port uint16, proto uint8) {
	w.Helper()
	w.must(w.o.Services().PutFrontend(Frontend{FrontendKey: FrontendKey{Addr: addr, Port: port, Protocol: proto}, Service: 1, Class: class}))
}

func (w *walk) any() netip.Addr {
	if w.a.node.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (w *walk) fromOutside(proto uint8, dst netip.Addr, port uint16) packet.Packet {
	return packet.Packet{SrcMAC: macA, DstMAC: gatewayMAC, Src: w.a.outside, Dst: dst, Proto: proto, SrcPort: 50000, DstPort: port,
		TCPFlags: packet.SYN, Payload: []byte("payload")}
}

// forwards runs a packet that must not be refused; where to is the routing's matter.
func (w *walk) forwards(program string, p packet.Packet) packet.Packet {
	w.Helper()
	action, out := w.run(program, p.Bytes())
	if action == shot {
		w.Fatalf("%s of %s: refused; drops %v", program, p, w.drops())
	}
	got, err := packet.Parse(out)
	if err != nil {
		w.Fatalf("%s of %s: output: %v", program, p, err)
	}
	return got
}

// From outside the backend sees an address of the node's pod CIDR, whether it is here or elsewhere, and the client sees the NodePort.
func TestNodePortFromOutside(t *testing.T) {
	eachNet(t, func(w *walk) {
		for _, proto := range []uint8{packet.TCP, packet.UDP, packet.SCTP} {
			port := uint16(nodePort) // SCTP keeps its port
			for _, backend := range []netip.Addr{w.a.podB, w.a.remote} {
				w.service(proto, 0, netip.AddrPortFrom(backend, port))
				w.external(FrontendNodePort, w.any(), nodePort, proto)
				sent := w.fromOutside(proto, w.a.node, nodePort)
				sent.SrcPort += uint16(backend.As16()[15]) // a flow for each backend
				var out packet.Packet
				for range 2 {
					out = w.sends("from_net", sent, redirect)
					if out.Dst != backend || out.DstPort != port || out.Src != snats[backend.Is4()] || out.SrcPort != sent.SrcPort {
						w.Fatalf("protocol %d: %s, want it at %s from %s", proto, out, backend, snats[backend.Is4()])
					}
				}
				if backend != w.a.podB {
					continue
				}
				w.behind(macB)
				reply := packet.Packet{SrcMAC: macB, DstMAC: gatewayMAC, Src: out.Dst, Dst: out.Src, Proto: proto, SrcPort: out.DstPort, DstPort: out.SrcPort,
					TCPFlags: packet.SYN | packet.ACK}
				back := w.forwards("from_pod", reply)
				if back.Src != w.a.node || back.SrcPort != nodePort || back.Dst != w.a.outside || back.DstPort != sent.SrcPort {
					w.Errorf("protocol %d: reply %s, want it from the NodePort to the client", proto, back)
				}
				w.behind(macA)
			}
		}
	})
}

// Under externalTrafficPolicy Local the client's address stays, and without a backend here there is silence; pods and the node are not
// bound by it.
func TestNodePortLocal(t *testing.T) {
	eachNet(t, func(w *walk) {
		w.service(packet.TCP, 0, netip.AddrPortFrom(w.a.podB, 8080))
		w.external(FrontendNodePort, w.any(), nodePort, packet.TCP)
		local := Service{ID: 1, Incarnation: 20, Flags: ServiceExternalLocal, Cluster: Set{Offset: 16, Length: 1}, Local: Set{Offset: 16, Length: 1}}
		w.must(w.o.Services().Flip(1, local))
		out := w.sends("from_net", w.fromOutside(packet.TCP, w.a.node, nodePort), redirect)
		if out.Src != w.a.outside || out.SrcPort != 50000 || out.Dst != w.a.podB || out.DstPort != 8080 {
			w.Errorf("%s, want the client's own address at pod B", out)
		}
		local.Local = Set{Verdict: VerdictDrop}
		w.must(w.o.Services().Flip(1, local))
		again := w.fromOutside(packet.TCP, w.a.node, nodePort)
		again.SrcPort++
		w.dropped("from_net", again.Bytes(), "service-no-local")
		if out := w.sends("from_pod", w.fromA(packet.TCP, w.a.node, nodePort), redirect); out.Dst != w.a.podB || out.Src != w.a.podA {
			w.Errorf("from a pod here: %s, want its own address at pod B", out)
		}
	})
}

// A pod's packet to a NodePort, load balancer or external address gets the node's source unless the policy is Local (services.md 1.4).
func TestExternalFromPod(t *testing.T) {
	eachNet(t, func(w *walk) {
		w.service(packet.UDP, 0, netip.AddrPortFrom(w.a.podB, 8080))
		w.external(FrontendNodePort, w.any(), nodePort, packet.UDP)
		w.external(FrontendLoadBalancer, w.a.outside.Next(), 80, packet.UDP)
		w.external(FrontendExternalIP, w.a.outside.Next().Next(), 80, packet.UDP)
		for i, to := range []netip.AddrPort{
			netip.AddrPortFrom(w.a.node, nodePort), netip.AddrPortFrom(w.a.outside.Next(), 80), netip.AddrPortFrom(w.a.outside.Next().Next(), 80),
		} {
			sent := w.fromA(packet.UDP, to.Addr(), to.Port())
			sent.SrcPort += uint16(i)
			if out := w.sends("from_pod", sent, redirect); out.Dst != w.a.podB || out.DstPort != 8080 || out.Src != snats[out.Src.Is4()] {
				w.Errorf("to %s: %s, want it at pod B from %s", to, out, snats[out.Src.Is4()])
			}
		}
	})
}

// What is not a Service's stays the stack's.
func TestFromNetLeavesAlone(t *testing.T) {
	eachNet(t, func(w *walk) {
		w.service(packet.TCP, 0, netip.AddrPortFrom(w.a.podB, 8080))
		w.external(FrontendNodePort, w.any(), nodePort, packet.TCP)
		established := w.fromOutside(packet.TCP, w.a.node, nodePort)
		established.TCPFlags = packet.SYN | packet.ACK // a reply to somebody who used the NodePort's number
		for name, p := range map[string]packet.Packet{
			"another port": w.fromOutside(packet.TCP, w.a.node, 22), "another protocol": w.fromOutside(packet.UDP, w.a.node, nodePort),
			"an address that serves none": w.fromOutside(packet.TCP, other(w.a), nodePort), "an address of others": w.fromOutside(packet.TCP, w.a.outside.Next(), nodePort),
			"no first packet": established,
		} {
			before := p.String()
			if out := w.sends("from_net", p, next); out.String() != before {
				w.Errorf("%s: %s became %s", name, before, out)
			}
		}
		if d := w.drops(); len(d) > 0 {
			w.Errorf("drops: %v", d)
		}
	})
}

// A backend on the node's own network sees the client; its reply gets the NodePort's name on the way out.
func TestNodePortToOwnNode(t *testing.T) {
	eachNet(t, func(w *walk) {
		w.service(packet.TCP, 0, netip.AddrPortFrom(w.a.node, 6443))
		w.external(FrontendNodePort, w.any(), nodePort, packet.TCP)
		out := w.sends("from_net", w.fromOutside(packet.TCP, w.a.node, nodePort), next)
		if out.Dst != w.a.node || out.DstPort != 6443 || out.Src != w.a.outside {
			w.Fatalf("%s, want it at the node's port 6443", out)
		}
		reply := packet.Packet{Src: w.a.node, Dst: w.a.outside, Proto: packet.TCP, SrcPort: 6443, DstPort: 50000, TCPFlags: packet.SYN | packet.ACK}
		if out := w.sends("to_net", reply, next); out.Src != w.a.node || out.SrcPort != nodePort || out.Dst != w.a.outside {
			w.Errorf("reply: %s, want it from the NodePort", out)
		}
		direct := packet.Packet{Src: w.a.node, Dst: w.a.outside, Proto: packet.TCP, SrcPort: 6443, DstPort: 50001, TCPFlags: packet.SYN | packet.ACK}
		if out := w.sends("to_net", direct, next); out.SrcPort != 6443 {
			w.Errorf("reply to one who asked the node itself: %s, want it unchanged", out)
		}
	})
}

// A backend that is neither here nor a pod sees the node, under a port that the node's own sockets do not take, and answers to it.
func TestNodePortToElsewhere(t *testing.T) {
	eachNet(t, func(w *walk) {
		backend := w.a.outside.Next()
		w.service(packet.TCP, 0, netip.AddrPortFrom(backend, 6443))
		w.external(FrontendNodePort, w.any(), nodePort, packet.TCP)
		out := w.forwards("from_net", w.fromOutside(packet.TCP, w.a.node, nodePort))
		if out.Dst != backend || out.DstPort != 6443 || out.Src != w.a.node || out.SrcPort < 61000 || out.SrcPort > 64999 {
			w.Fatalf("%s, want it at %s from the node, port 61000 to 64999", out, backend)
		}
		reply := packet.Packet{Src: backend, Dst: out.Src, Proto: packet.TCP, SrcPort: 6443, DstPort: out.SrcPort, TCPFlags: packet.SYN | packet.ACK}
		if back := w.forwards("from_net", reply); back.Src != w.a.node || back.SrcPort != nodePort || back.Dst != w.a.outside || back.DstPort != 50000 {
			w.Errorf("reply: %s, want it from the NodePort to the client", back)
		}
	})
}

// --masquerade-all is for ClusterIPs.
func TestMasqueradeAll(t *testing.T) {
	for name, a := range families() {
		t.Run(name, func(t *testing.T) {
			w := newWalk(t, a, func(o *Options) {
				o.Config.Snat4, o.Config.Snat6, o.Config.MasqueradeAll = snats[true], snats[false], true
			})
			w.must(w.o.NodeAddresses().Put(a.node, NodeAddressLocal|NodeAddressNodePort))
			w.service(packet.UDP, 0, netip.AddrPortFrom(a.podB, 8080))
			if out := w.sends("from_pod", w.fromA(packet.UDP, a.vip, 80), redirect); out.Dst != a.podB || out.Src != snats[a.podB.Is4()] {
				w.Errorf("to the ClusterIP: %s, want it from %s", out, snats[a.podB.Is4()])
			}
			w.must(w.o.HostPorts().Put(HostPort{FrontendKey: FrontendKey{Addr: w.any(), Port: 8088, Protocol: packet.UDP}, Endpoint: 2, Incarnation: 6, To: 53}))
			if out := w.sends("from_net", w.fromOutside(packet.UDP, a.node, 8088), redirect); out.Src != a.outside {
				w.Errorf("to the host port: %s, want the client's address", out)
			}
		})
	}
}

func TestLoadBalancerSourceRanges(t *testing.T) {
	eachNet(t, func(w *walk) {
		w.service(packet.TCP, 0, netip.AddrPortFrom(w.a.podB, 80))
		vip := w.a.outside.Next()
		w.external(FrontendLoadBalancer, vip, 80, packet.TCP)
		w.external(FrontendNodePort, w.any(), nodePort, packet.TCP)
		w.must(w.o.Services().Flip(1, Service{ID: 1, Incarnation: 20, Cluster: Set{Offset: 16, Length: 1}, SourceRange: 7}))
		w.dropped("from_net", w.fromOutside(packet.TCP, vip, 80).Bytes(), "service-source")
		w.dropped("from_pod", w.fromA(packet.TCP, vip, 80).Bytes(), "service-source")
		w.sends("from_net", w.fromOutside(packet.TCP, w.a.node, nodePort), redirect) // NodePorts are never filtered
		bits := 24
		if vip.Is6() {
			bits = 64
		}
		w.must(w.o.Services().PutSourceRange(7, netip.PrefixFrom(w.a.outside, bits).Masked()))
		w.must(w.o.Services().PutSourceRange(8, netip.PrefixFrom(w.a.podA, bits).Masked()))
		w.sends("from_net", w.fromOutside(packet.TCP, vip, 80), redirect)
		w.dropped("from_pod", w.fromA(packet.TCP, vip, 80).Bytes(), "service-source")
	})
}

func TestServiceRefusedFromOutside(t *testing.T) {
	eachNet(t, func(w *walk) {
		w.service(packet.TCP, VerdictRefuse)
		w.external(FrontendNodePort, w.any(), nodePort, packet.TCP)
		out := w.sends("from_net", w.fromOutside(packet.TCP, w.a.node, nodePort), redirect)
		if out.Src != w.a.node || out.Dst != w.a.outside || out.ICMPType == 0 || !slices.Equal(out.DstMAC, macA) {
			w.Errorf("%s, want port unreachable from the node to the client", out)
		}
	})
}

func TestServiceUnallocated(t *testing.T) {
	eachNet(t, func(w *walk) {
		w.service(packet.TCP, 0, netip.AddrPortFrom(w.a.podB, 80))
		bits := 16
		if w.a.vip.Is6() {
			bits = 64
		}
		w.must(w.o.Services().PutServiceCIDR(netip.PrefixFrom(w.a.vip, bits).Masked()))
		w.dropped("from_pod", w.fromA(packet.TCP, w.a.vip.Next(), 80).Bytes(), "service-unallocated")
		w.sends("from_pod", w.fromA(packet.TCP, w.a.vip, 80), redirect)
	})
}

// A host port leads to its pod, with the client's address, until the pod is gone.
func TestHostPort(t *testing.T) {
	eachNet(t, func(w *walk) {
		w.must(w.o.HostPorts().Put(HostPort{FrontendKey: FrontendKey{Addr: w.any(), Port: 8088, Protocol: packet.UDP}, Endpoint: 2, Incarnation: 6, To: 53}))
		for _, dst := range []netip.Addr{w.a.node, other(w.a)} {
			out := w.sends("from_net", w.fromOutside(packet.UDP, dst, 8088), redirect)
			if out.Dst != w.a.podB || out.DstPort != 53 || out.Src != w.a.outside {
				w.Errorf("to %s: %s, want it at pod B port 53 from the client", dst, out)
			}
		}
		w.must(w.o.Endpoints().Delete(2))
		if out := w.sends("from_net", w.fromOutside(packet.UDP, w.a.node, 8088), next); out.Dst != w.a.node {
			w.Errorf("after the pod is gone: %s, want it left to the stack", out)
		}
	})
}

// UDP that was sent to a Service's address before the Service came is led there once it does.
func TestFlowBeforeFrontend(t *testing.T) {
	eachNet(t, func(w *walk) {
		if out := w.sends("from_pod", w.fromA(packet.UDP, w.a.vip, 80), pass); out.Dst != w.a.vip {
			w.Fatalf("before: %s", out)
		}
		w.service(packet.UDP, 0, netip.AddrPortFrom(w.a.podB, 80))
		if out := w.sends("from_pod", w.fromA(packet.UDP, w.a.vip, 80), redirect); out.Dst != w.a.podB {
			w.Errorf("after: %s, want it at pod B", out)
		}
	})
}

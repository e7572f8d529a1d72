// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// newNode is a namespace that is the node's own, with a NodePort on one of its addresses and on loopback.
func newNode(t *testing.T, c kind) (*kit, podNet) {
	node := newPodNet(t, 1)
	config := on()
	config.HostCookie, config.Loopback = node.Cookie(t), true
	config.Node4, config.Node6 = node.addr4, node.addr6
	k := newKit(t, config)
	for _, a := range []netip.Addr{node.addr4, node.addr6} {
		if err := k.NodeAddresses().Put(a, NodeAddressLocal|NodeAddressNodePort); err != nil {
			t.Fatal(err)
		}
	}
	k.backend(1, c.of(1, 8000), inBoth)
	k.service(Service{ID: 1, Cluster: k.set(1)}, c.at(80))
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			f := Frontend{FrontendKey: FrontendKey{Addr: any, Port: nodePort, Protocol: proto}, Service: 1, Class: FrontendNodePort}
			if err := k.Services().PutFrontend(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	return k, node
}

// node returns the node's address and its loopback address of a kind's family.
func (c kind) node(n podNet) (own, local netip.Addr) {
	if netip.MustParseAddr(c.vip).Is4() {
		return n.addr4, netip.MustParseAddr("127.0.0.1")
	}
	return n.addr6, netip.MustParseAddr("::1")
}

// NodePorts are led to a backend at the system call, on the node's address and on loopback, TCP and UDP, IPv4 and IPv6.
func TestSockNodePort(t *testing.T) {
	for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		for _, c := range kinds(typ) {
			t.Run(c.name, func(t *testing.T) {
				k, node := newNode(t, c)
				if typ == unix.SOCK_STREAM {
					node.answerTCP(t, c.of(1, 8000))
				} else {
					node.answerUDP(t, c.of(1, 8000))
				}
				own, local := c.node(node)
				for _, at := range []netip.Addr{own, local} {
					to := netip.AddrPortFrom(at, nodePort).String()
					s := k.socket(c, node)
					if err := s.Connect(c.as(to)); err != nil {
						t.Fatalf("connect to %s: %v", to, err)
					}
					if peer, err := s.Peer(); err != nil || peer != c.as(to) {
						t.Errorf("peer of %s: %v, %v", to, peer, err)
					}
					if typ == unix.SOCK_DGRAM {
						if err := s.Send("hello"); err != nil {
							t.Fatal(err)
						}
					}
					if got, _, err := s.Receive(); err != nil || got != c.of(1, 8000) {
						t.Errorf("from %s: %q, %v, want the backend", to, got, err)
					}
				}
				// A pod's loopback is its own.
				pod := k.pod(2, 0)
				s := k.socket(c, pod)
				err := s.Connect(c.as(netip.AddrPortFrom(local, nodePort).String()))
				if typ == unix.SOCK_STREAM && !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("from a pod to its loopback: %v, want ECONNREFUSED", err)
				}
			})
		}
	}
}

// A process of the node cannot take a port that is served already: it would never see a packet.
func TestSockBind(t *testing.T) {
	for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		for _, c := range kinds(typ) {
			t.Run(c.name, func(t *testing.T) {
				k, node := newNode(t, c)
				own, local := c.node(node)
				any := netip.IPv6Unspecified()
				if own.Is4() {
					any = netip.IPv4Unspecified()
				}
				for _, at := range []netip.Addr{own, local, any} {
					s := k.socket(c, node)
					if err := s.Bind(c.as(netip.AddrPortFrom(at, nodePort).String())); !errors.Is(err, unix.EADDRINUSE) {
						t.Errorf("bind to %s: %v, want EADDRINUSE", at, err)
					}
					s.Close()
					s = k.socket(c, node)
					if err := s.Bind(c.as(netip.AddrPortFrom(at, nodePort+1).String())); err != nil {
						t.Errorf("bind to %s at a free port: %v", at, err)
					}
					s.Close()
				}
				pod := k.pod(2, 0)
				s := k.socket(c, pod)
				if err := s.Bind(c.as(netip.AddrPortFrom(any, nodePort).String())); err != nil {
					t.Errorf("bind in a pod: %v", err)
				}
			})
		}
	}
}

// A host port leads the node's own sockets to the pod, and away from it once the pod is gone.
func TestSockHostPort(t *testing.T) {
	for _, c := range kinds(unix.SOCK_DGRAM) {
		t.Run(c.name, func(t *testing.T) {
			k, node := newNode(t, c)
			backend := netip.MustParseAddrPort(c.of(3, 53))
			pod := Endpoint{ID: 7, Incarnation: 2, Ifindex: 7}
			any := netip.IPv6Unspecified()
			if backend.Addr().Is4() {
				pod.Addr4, any = backend.Addr(), netip.IPv4Unspecified()
			} else {
				pod.Addr6 = backend.Addr()
			}
			if err := errors.Join(k.Endpoints().Put(pod), k.HostPorts().Put(HostPort{
				FrontendKey: FrontendKey{Addr: any, Port: 8053, Protocol: unix.IPPROTO_UDP}, Endpoint: 7, Incarnation: 2, To: 53,
			})); err != nil {
				t.Fatal(err)
			}
			node.answerUDP(t, backend.String())
			own, local := c.node(node)
			for _, at := range []netip.Addr{own, local} {
				s := k.socket(c, node)
				to := c.as(netip.AddrPortFrom(at, 8053).String())
				if got, from, err := s.Ask("hello", to); err != nil || got != backend.String() || from != to {
					t.Errorf("ask %s: %q from %s, %v, want the pod under the name that was asked", to, got, from, err)
				}
			}
			if err := k.Endpoints().Delete(7); err != nil {
				t.Fatal(err)
			}
			s := k.socket(c, node)
			if err := s.Connect(c.as(netip.AddrPortFrom(own, 8053).String())); err != nil {
				t.Fatal(err)
			}
			if peer, err := s.Peer(); err != nil || peer.Addr().Unmap() != own {
				t.Errorf("after the pod is gone: %s, %v, want the node itself", peer, err)
			}
		})
	}
}

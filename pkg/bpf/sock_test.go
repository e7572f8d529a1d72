// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Connections spread over all backends, reach nothing else, and show the Service as their peer.
func TestSockConnectTCP(t *testing.T) {
	k := newKit(t, on())
	pod := k.pod(1, 0)
	for i, c := range kinds(unix.SOCK_STREAM) {
		t.Run(c.name, func(t *testing.T) {
			id, port := uint32(1+i), 80+i
			var ids []uint32
			for n := 1; n <= 3; n++ {
				pod.answerTCP(t, c.of(n, 8000+i))
				k.backend(id*10+uint32(n), c.of(n, 8000+i), inBoth)
				ids = append(ids, id*10+uint32(n))
			}
			k.service(Service{ID: id, Cluster: k.set(ids...)}, c.at(port))
			hits := map[string]int{}
			for range 60 {
				s := k.socket(c, pod)
				if err := s.Connect(c.as(c.at(port))); err != nil {
					t.Fatal(err)
				}
				peer, err := s.Peer()
				if err != nil || peer != c.as(c.at(port)) {
					t.Fatalf("getpeername says %v, %v, want the Service %v", peer, err, c.as(c.at(port)))
				}
				who, _, err := s.Receive()
				if err != nil {
					t.Fatal(err)
				}
				hits[who]++
				s.Close()
			}
			// A backend left out of 60 has a probability of 1 in 10^10.
			for n := 1; n <= 3; n++ {
				if hits[c.of(n, 8000+i)] == 0 {
					t.Errorf("backend %d was never chosen: %v", n, hits)
				}
			}
			if len(hits) != 3 {
				t.Errorf("chosen: %v", hits)
			}
		})
	}
}

// A connected UDP socket sees the Service everywhere, and nothing of it after it is disconnected.
func TestSockConnectUDP(t *testing.T) {
	k := newKit(t, on())
	pod := k.pod(1, 0)
	for i, c := range kinds(unix.SOCK_DGRAM) {
		t.Run(c.name, func(t *testing.T) {
			id, port := uint32(1+i), 53+i
			backend, vip := c.as(c.of(1, 8000+i)), c.as(c.at(port))
			pod.answerUDP(t, c.of(1, 8000+i))
			k.backend(id, c.of(1, 8000+i), inBoth)
			k.service(Service{ID: id, Cluster: k.set(id)}, c.at(port))

			s := k.socket(c, pod)
			if err := s.Connect(vip); err != nil {
				t.Fatal(err)
			}
			if err := s.Send("hello"); err != nil {
				t.Fatal(err)
			}
			who, from, err := s.Receive()
			if err != nil || who != c.of(1, 8000+i) || from != vip {
				t.Errorf("answer of %q from %v, %v, want backend %v under the name %v", who, from, err, backend, vip)
			}
			if peer, err := s.Peer(); err != nil || peer != vip {
				t.Errorf("getpeername says %v, %v, want %v", peer, err, vip)
			}

			// The same backend, asked by its own address.
			if err := s.Disconnect(); err != nil {
				t.Fatal(err)
			}
			if _, from, err := s.Ask("hello", backend); err != nil || from != backend {
				t.Errorf("after disconnect: answer from %v, %v, want %v", from, err, backend)
			}
			if err := s.Connect(backend); err != nil {
				t.Fatal(err)
			}
			if peer, err := s.Peer(); err != nil || peer != backend {
				t.Errorf("connected to the backend itself, getpeername says %v, %v, want %v", peer, err, backend)
			}
		})
	}
}

// Without an endpoint the call fails at once with the errno that tells why, and is counted.
func TestSockRefused(t *testing.T) {
	k := newKit(t, on())
	pod := k.pod(1, 0)
	for _, test := range []struct {
		name   string
		make   func(c kind)
		want   syscall.Errno
		reason LayoutDropReason
	}{
		{"no endpoint", func(c kind) { k.service(Service{ID: 1}, c.at(80)) }, unix.ECONNREFUSED, LayoutDropReasonDROP_SOCK_REFUSED},
		{"no local endpoint", func(c kind) {
			k.backend(1, c.of(1, 8000), BackendServing|BackendCluster)
			k.service(Service{ID: 1, Flags: ServiceInternalLocal, Cluster: k.set(1), Local: Set{Verdict: VerdictDrop}}, c.at(80))
		}, unix.EHOSTUNREACH, LayoutDropReasonDROP_SOCK_NO_LOCAL},
		{"slot of a removed backend", func(c kind) {
			if err := k.Services().DeleteBackend(1); err != nil {
				t.Fatal(err)
			}
			k.service(Service{ID: 1, Cluster: k.set(1)}, c.at(80))
		}, unix.ECONNREFUSED, LayoutDropReasonDROP_SOCK_BACKEND},
		{"no endpoint, with affinity", func(c kind) { k.service(Service{ID: 1, AffinitySeconds: 10}, c.at(80)) },
			unix.ECONNREFUSED, LayoutDropReasonDROP_SOCK_REFUSED},
	} {
		for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			for _, c := range kinds(typ) {
				t.Run(fmt.Sprintf("%s/%d/%s", test.name, typ, c.name), func(t *testing.T) {
					test.make(c)
					before := k.drops(test.reason)
					s := k.socket(c, pod)
					calls := uint64(1)
					if err := s.Connect(c.as(c.at(80))); !errors.Is(err, test.want) {
						t.Errorf("connect: %v, want %v", err, test.want)
					}
					if typ == unix.SOCK_DGRAM {
						calls++
						if err := s.SendTo("hello", c.as(c.at(80))); !errors.Is(err, test.want) {
							t.Errorf("sendto: %v, want %v", err, test.want)
						}
					}
					if got := k.drops(test.reason) - before; got != calls {
						t.Errorf("counted %d times, want %d", got, calls)
					}
				})
			}
		}
	}
}

// internalTrafficPolicy Local chooses from the local set only; otherwise from the cluster set only.
func TestSockTrafficPolicy(t *testing.T) {
	k := newKit(t, on())
	pod := k.pod(1, 0)
	c := kinds(unix.SOCK_STREAM)[0]
	for n := uint32(1); n <= 3; n++ {
		pod.answerTCP(t, c.of(int(n), 8000))
	}
	k.backend(1, c.of(1, 8000), BackendServing|BackendCluster)
	k.backend(2, c.of(2, 8000), BackendServing|BackendCluster)
	k.backend(3, c.of(3, 8000), BackendServing|BackendInLocal|BackendLocal)
	cluster, local := k.set(1, 2), k.set(3)
	for _, test := range []struct {
		flags ServiceFlag
		want  map[string]bool
	}{
		{0, map[string]bool{c.of(1, 8000): true, c.of(2, 8000): true}},
		{ServiceExternalLocal, map[string]bool{c.of(1, 8000): true, c.of(2, 8000): true}},
		{ServiceInternalLocal, map[string]bool{c.of(3, 8000): true}},
	} {
		k.service(Service{ID: 1, Flags: test.flags, Cluster: cluster, Local: local}, c.at(80))
		for range 20 {
			if who := k.dial(c, pod, c.at(80)); !test.want[who] {
				t.Errorf("flags %d: chose %s, want one of %v", test.flags, who, test.want)
			}
		}
	}
}

// dial connects a new socket and returns who answered.
func (k *kit) dial(c kind, pod podNet, vip string) string {
	k.t.Helper()
	s := k.socket(c, pod)
	defer s.Close()
	if err := s.Connect(c.as(vip)); err != nil {
		k.t.Fatal(err)
	}
	who, _, err := s.Receive()
	if err != nil {
		k.t.Fatal(err)
	}
	return who
}

// A client stays with its backend over all connections, until its record is too old or the backend leaves the set.
func TestSockAffinity(t *testing.T) {
	k := newKit(t, on())
	pods := []podNet{k.pod(1, 0), k.pod(2, 0)}
	for i, c := range kinds(unix.SOCK_STREAM)[:2] {
		t.Run(c.name, func(t *testing.T) {
			id := uint32(1 + i)
			ids := map[string]uint32{}
			var all []uint32
			for n := 1; n <= 8; n++ {
				for _, pod := range pods {
					pod.answerTCP(t, c.of(n, 8000))
				}
				b := id*10 + uint32(n)
				k.backend(b, c.of(n, 8000), inBoth)
				ids[c.of(n, 8000)] = b
				all = append(all, b)
			}
			// Two addresses of one Service share the record: affinity is by Service port and client.
			s := Service{ID: id, AffinitySeconds: 10800, Cluster: k.set(all...)}
			k.service(s, c.at(80))
			k.service(s, c.at(81))
			for p, pod := range pods {
				client := []netip.Addr{pod.addr4, pod.addr6}[i]
				key := LayoutAffinityKey{Client: addrOf(client), Service: id, Incarnation: id * 100}
				first := k.dial(c, pod, c.at(80))
				for n := range 20 {
					if who := k.dial(c, pod, c.at(80+n%2)); who != first {
						t.Fatalf("client %d went from %s to %s", p, first, who)
					}
				}
				var record LayoutAffinity
				if err := k.maps[LayoutMapAffinities].Lookup(key, &record); err != nil {
					t.Fatalf("record of client %v: %v", client, err)
				}
				if record.Backend != ids[first] || record.Incarnation != ids[first]*10 || record.Service != id {
					t.Errorf("record %+v, want backend %d", record, ids[first])
				}

				// Out of the set, though serving: the record is not followed. The slots still name the backend, so one choice in
				// eight is the same.
				k.backend(ids[first], first, BackendServing)
				second := first
				for range 40 {
					if err := k.maps[LayoutMapAffinities].Put(key, record); err != nil {
						t.Fatal(err)
					}
					if second = k.dial(c, pod, c.at(80)); second != first {
						break
					}
				}
				if second == first {
					t.Fatalf("client %d stayed with %s, which left the set", p, first)
				}
				for range 20 {
					if who := k.dial(c, pod, c.at(80)); who != second {
						t.Fatalf("client %d went from %s to %s", p, second, who)
					}
				}
				k.backend(ids[first], first, inBoth)

				// Too old by one second: a new choice, with a new time.
				if err := k.maps[LayoutMapAffinities].Lookup(key, &record); err != nil {
					t.Fatal(err)
				}
				old := record
				old.Last -= 10801
				moved := false
				for range 40 {
					if err := k.maps[LayoutMapAffinities].Put(key, old); err != nil {
						t.Fatal(err)
					}
					moved = moved || k.dial(c, pod, c.at(80)) != second
				}
				if !moved {
					t.Errorf("an expired record was followed 40 times")
				}
				// Just young enough: followed, and made young again.
				old.Last = record.Last - 10700
				if err := k.maps[LayoutMapAffinities].Put(key, old); err != nil {
					t.Fatal(err)
				}
				if who := k.dial(c, pod, c.at(80)); who != second {
					t.Errorf("a valid record was not followed: %s, want %s", who, second)
				}
				if err := k.maps[LayoutMapAffinities].Lookup(key, &old); err != nil || int32(old.Last-record.Last) < 0 {
					t.Errorf("the record was not made young: %+v, %v", old, err)
				}
			}
		})
	}
}

// What is not the socket path's stays untouched: the address reaches the kernel, which has no route.
func TestSockLeavesAlone(t *testing.T) {
	for _, test := range []struct {
		name     string
		config   Config
		endpoint EndpointFlag
		service  ServiceFlag
		unknown  bool // the namespace is no endpoint
	}{
		{name: "socket path off", config: Config{}},
		{name: "off for the pod", config: on(), endpoint: EndpointSocketLBOff},
		{name: "off for the service", config: on(), service: ServiceSocketOff},
		{name: "unknown namespace", config: on(), unknown: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := newKit(t, test.config)
			var pod podNet
			if test.unknown {
				pod = newPodNet(t, 1)
			} else {
				pod = k.pod(1, test.endpoint)
			}
			for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
				for _, c := range kinds(typ) {
					k.backend(1, c.of(1, 8000), inBoth)
					k.service(Service{ID: 1, Flags: test.service, Cluster: k.set(1)}, c.at(80))
					for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
						f := Frontend{FrontendKey: FrontendKey{Addr: netip.MustParseAddr(c.vip), Port: 80, Protocol: proto}, Service: 1}
						if err := k.Services().PutFrontend(f); err != nil {
							t.Fatal(err)
						}
					}
					s := k.socket(c, pod)
					if err := s.Connect(c.as(c.at(80))); !errors.Is(err, unix.ENETUNREACH) {
						t.Errorf("%s: connect: %v, want ENETUNREACH", c.name, err)
					}
					if typ == unix.SOCK_DGRAM {
						if err := s.SendTo("hello", c.as(c.at(80))); !errors.Is(err, unix.ENETUNREACH) {
							t.Errorf("%s: sendto: %v, want ENETUNREACH", c.name, err)
						}
					}
				}
			}
		})
	}
}

// The node's own processes are served under the node's address.
func TestSockHost(t *testing.T) {
	node := newPodNet(t, 1)
	config := on()
	config.HostCookie = node.Cookie(t)
	config.Node4 = netip.MustParseAddr("192.0.2.1")
	config.Node6 = netip.MustParseAddr("2001:db8::1")
	k := newKit(t, config)
	for i, c := range kinds(unix.SOCK_STREAM)[:2] {
		node.answerTCP(t, c.of(1, 8000))
		id := uint32(1 + i)
		k.backend(id, c.of(1, 8000), inBoth)
		k.service(Service{ID: id, AffinitySeconds: 10, Cluster: k.set(id)}, c.at(80))
		if who := k.dial(c, node, c.at(80)); who != c.of(1, 8000) {
			t.Errorf("%s: answered by %s", c.name, who)
		}
		key := LayoutAffinityKey{Client: addrOf([]netip.Addr{config.Node4, config.Node6}[i]), Service: id, Incarnation: id * 100}
		var record LayoutAffinity
		if err := k.maps[LayoutMapAffinities].Lookup(key, &record); err != nil {
			t.Errorf("%s: the client is not known as the node: %v", c.name, err)
		}
	}
}

// Names survive the agent, also when the next one has the socket path off.
func TestSockNamesSurviveAgent(t *testing.T) {
	k := newKit(t, on())
	pod := k.pod(1, 0)
	c := kinds(unix.SOCK_DGRAM)[0]
	pod.answerUDP(t, c.of(1, 8000))
	k.backend(1, c.of(1, 8000), inBoth)
	k.service(Service{ID: 1, Cluster: k.set(1)}, c.at(53))
	vip := c.as(c.at(53))
	connected, free := k.socket(c, pod), k.socket(c, pod)
	if err := connected.Connect(vip); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		if err := connected.Send("hello"); err != nil {
			t.Fatal(err)
		}
		if _, from, err := connected.Receive(); err != nil || from != vip {
			t.Errorf("%s: connected socket: answer from %v, %v, want %v", when, from, err, vip)
		}
	}
	ask := func(when string) {
		t.Helper()
		if _, from, err := free.Ask("hello", vip); err != nil || from != vip {
			t.Errorf("%s: unconnected socket: answer from %v, %v, want %v", when, from, err, vip)
		}
	}
	check("at first")
	ask("at first")
	k.close()
	check("without an agent")
	ask("without an agent")
	k.open(on())
	check("with the next agent")
	ask("with the next agent")
	k.close()
	k.open(Config{})
	check("with the socket path off")
	if err := free.SendTo("hello", vip); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("with the socket path off: sendto: %v, want ENETUNREACH", err)
	}
}

// While one Service is flipped between two sets and another one's frontend comes and goes, every connection lands in a set of its own
// A frontend that goes and whose place in the map another one takes is not mistaken for that one: a client of the first reaches its

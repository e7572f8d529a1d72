// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"

	"golang.org/x/sys/unix"
)

// One unconnected socket stays with its backend until that does not serve any more.
func TestSockSendStays(t *testing.T) {
	k := newKit(t, on())
	pod := k.pod(1, 0)
	for i, c := range kinds(unix.SOCK_DGRAM) {
		t.Run(c.name, func(t *testing.T) {
			id, vip := uint32(1+i), c.as(c.at(53+i))
			addrs := map[string]uint32{}
			var ids []uint32
			for n := 1; n <= 3; n++ {
				pod.answerUDP(t, c.of(n, 8000+i))
				b := id*10 + uint32(n)
				k.backend(b, c.of(n, 8000+i), inBoth)
				addrs[c.of(n, 8000+i)] = b
				ids = append(ids, b)
			}
			k.service(Service{ID: id, Cluster: k.set(ids...)}, c.at(53+i))
			s := k.socket(c, pod)
			ask := func() string {
				t.Helper()
				who, from, err := s.Ask("hello", vip)
				if err != nil || from != vip {
					t.Fatalf("answer from %v, %v, want %v", from, err, vip)
				}
				return who
			}
			first := ask()
			for range 30 {
				if who := ask(); who != first {
					t.Fatalf("went from %s to %s while both serve", first, who)
				}
			}
			// Out of the set, but serving still: a policy or a hint moved it, and flows stay (kube-proxy does not cut these either).
			k.backend(addrs[first], first, BackendServing)
			var rest []uint32
			for _, b := range ids {
				if b != addrs[first] {
					rest = append(rest, b)
				}
			}
			k.service(Service{ID: id, Cluster: k.set(rest...)}, c.at(53+i))
			if who := ask(); who != first {
				t.Errorf("left serving backend %s for %s", first, who)
			}
			// Not serving: the next datagram goes elsewhere, and a late answer still has its name.
			k.backend(addrs[first], first, 0)
			second := ask()
			if second == first {
				t.Errorf("stayed with %s, which does not serve", first)
			}
			if who := ask(); who != second {
				t.Errorf("went from %s to %s while both serve", second, who)
			}
		})
	}
}

// More Services on one socket than fit into its storage: each stays with its backend and each answer has the right name.
func TestSockSendManyServices(t *testing.T) {
	const services, rounds = 9, 4
	k := newKit(t, on())
	pod := k.pod(1, 0)
	for _, c := range kinds(unix.SOCK_DGRAM) {
		t.Run(c.name, func(t *testing.T) {
			var all []uint32
			for n := uint32(1); n < 10; n++ {
				// One port per kind and backend: sockets of all kinds live side by side.
				k.backend(n, c.of(int(n), 8000), inBoth)
				pod.answerUDP(t, c.of(int(n), 8000))
				all = append(all, n)
			}
			// Each Service has one backend of its own; the tenth has all.
			for id := uint32(1); id <= services; id++ {
				k.service(Service{ID: id, Cluster: k.set(id)}, c.at(1000+int(id)))
			}
			k.service(Service{ID: services + 1, Cluster: k.set(all...)}, c.at(2000))
			s := k.socket(c, pod)
			for range rounds {
				for id := 1; id <= services; id++ {
					vip := c.as(c.at(1000 + id))
					who, from, err := s.Ask("hello", vip)
					if err != nil || from != vip || who != c.of(id, 8000) {
						t.Fatalf("Service %v was answered by %s under the name %v, %v", vip, who, from, err)
					}
				}
			}
			// The tenth has no place in the socket's storage and stays with its backend all the same.
			vip := c.as(c.at(2000))
			first, _, err := s.Ask("hello", vip)
			if err != nil {
				t.Fatal(err)
			}
			for range 30 {
				if who, from, err := s.Ask("hello", vip); err != nil || who != first || from != vip {
					t.Fatalf("went from %s to %s under the name %v, %v", first, who, from, err)
				}
			}
		})
	}
}

// Services that share a backend: an answer has the name of the one that the socket asked last, in its storage and beyond.
func TestSockSendSharedBackend(t *testing.T) {
	const services = 7
	k := newKit(t, on())
	pod := k.pod(1, 0)
	for i, c := range kinds(unix.SOCK_DGRAM)[:2] {
		b := uint32(1 + i)
		pod.answerUDP(t, c.of(1, 8000))
		k.backend(b, c.of(1, 8000), inBoth)
		for n := range services {
			k.service(Service{ID: uint32(1 + i*services + n), Cluster: k.set(b)}, c.at(1000+n))
		}
		s := k.socket(c, pod)
		for _, n := range []int{0, 1, 2, 3, 4, 5, 6, 0, 6, 6, 1, 5, 4, 5, 2, 3, 2, 6, 0, 0, 4} {
			vip := c.as(c.at(1000 + n))
			if _, from, err := s.Ask("hello", vip); err != nil || from != vip {
				t.Errorf("%s: asked %v, answer from %v, %v", c.name, vip, from, err)
			}
		}
	}
}

// A place in the storage whose backend is gone is used again; the answer of the one before still has its name.
func TestSockSendLateAnswer(t *testing.T) {
	k := newKit(t, on())
	pod := k.pod(1, 0)
	c := kinds(unix.SOCK_DGRAM)[0]
	dying := pod.ListenPacket(t, "udp", c.of(1, 8000))
	pod.answerUDP(t, c.of(2, 8000))
	k.backend(1, c.of(1, 8000), inBoth)
	k.backend(2, c.of(2, 8000), inBoth)
	k.service(Service{ID: 1, Cluster: k.set(1)}, c.at(53))
	vip := c.as(c.at(53))
	s := k.socket(c, pod)
	if err := s.SendTo("slow question", vip); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	_, client, err := dying.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	k.service(Service{ID: 1, Cluster: k.set(2)}, c.at(53))
	k.backend(1, c.of(1, 8000), 0)
	if who, _, err := s.Ask("next question", vip); err != nil || who != c.of(2, 8000) {
		t.Fatalf("answered by %s, %v", who, err)
	}
	if _, err := dying.WriteToUDPAddrPort([]byte("late"), client); err != nil {
		t.Fatal(err)
	}
	if who, from, err := s.Receive(); err != nil || who != "late" || from != vip {
		t.Errorf("late answer %q from %v, %v, want it from %v", who, from, err, vip)
	}
}

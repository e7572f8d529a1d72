// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/testnet/sandbox"
)

func (k *kit) stale() *StaleSockets {
	k.t.Helper()
	s, err := k.StaleSockets()
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			k.t.Error(err)
		}
	})
	return s
}

// connected returns a UDP socket that is connected to an address.
func (k *kit) connected(c kind, pod podNet, to string) *sandbox.Socket {
	k.t.Helper()
	s := k.socket(c, pod)
	if err := s.Connect(c.as(to)); err != nil {
		k.t.Fatal(err)
	}
	return s
}

// aborted tells whether a socket was destroyed; one that was not has nothing to receive.
func aborted(t *testing.T, s *sandbox.Socket) bool {
	t.Helper()
	s.Wait(t, time.Millisecond)
	_, _, err := s.Receive()
	if !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.EAGAIN) {
		t.Errorf("receive: %v, want ECONNABORTED or EAGAIN", err)
	}
	return errors.Is(err, unix.ECONNABORTED)
}

// destroy runs the iterator in a pod's namespace.
func destroy(t *testing.T, s *StaleSockets, pod podNet) (found []StaleSocket) {
	t.Helper()
	pod.Do(t, func() (err error) {
		found, err = s.Destroy()
		return err
	})
	return found
}

func (k *kit) wantNamespaces(s *StaleSockets, pods ...podNet) {
	k.t.Helper()
	want := []uint64{}
	for _, p := range pods {
		want = append(want, p.Cookie(k.t))
	}
	slices.Sort(want)
	got, err := s.Namespaces()
	if err != nil {
		k.t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		k.t.Errorf("namespaces with stale sockets (-want +got):\n%s", diff)
	}
}

// dying makes two services per kind: port 53 whose backend 1 will die, and port 54 whose backend 2 lives.
func (k *kit) dying() (die func()) {
	var backends []func()
	for i, c := range kinds(unix.SOCK_DGRAM)[:2] {
		id := uint32(1 + 10*i)
		k.backend(id, c.of(1, 8000), inBoth)
		k.backend(id+1, c.of(2, 8000), inBoth)
		k.service(Service{ID: id, Cluster: k.set(id)}, c.at(53))
		k.service(Service{ID: id + 1, Cluster: k.set(id + 1)}, c.at(54))
		backends = append(backends, func() { k.backend(id, c.of(1, 8000), BackendCluster) })
	}
	return func() {
		for _, f := range backends {
			f()
		}
	}
}

// needsDestroy skips a test of what the iterator destroys itself; where it cannot, TestStaleSocketsForNetlink is what counts.
func needsDestroy(t *testing.T) {
	t.Helper()
	if err := probeDestroy(); err != nil {
		t.Skipf("kernel has no bpf_sock_destroy: %v", err)
	}
}

// Exactly the sockets that are connected by way of a Service to a backend that does not serve are destroyed, one namespace at a time; the
// agent that does it need not be the one under which they connected.
func TestStaleSockets(t *testing.T) {
	needsDestroy(t)
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%t", restart), func(t *testing.T) {
			k := newKit(t, on())
			pods := []podNet{k.pod(1, 0), k.pod(2, 0), k.pod(3, 0)}
			die := k.dying()
			stale, fine := map[int][]*sandbox.Socket{}, map[int][]*sandbox.Socket{}
			for p, pod := range pods {
				pod.answerTCP(t, fmt.Sprintf(backends4+":8000", 1))
				for _, c := range kinds(unix.SOCK_DGRAM) {
					if p < 2 {
						stale[p] = append(stale[p], k.connected(c, pod, c.at(53)))
					}
					fine[p] = append(fine[p], k.connected(c, pod, c.at(54)), k.connected(c, pod, c.of(1, 8000)))
					// Once connected to the Service, now to the same backend without it.
					s := k.connected(c, pod, c.at(53))
					if err := s.Connect(c.as(c.of(1, 8000))); err != nil {
						t.Fatal(err)
					}
					fine[p] = append(fine[p], s)
					// No longer connected.
					s = k.connected(c, pod, c.at(53))
					if err := s.Disconnect(); err != nil {
						t.Fatal(err)
					}
					fine[p] = append(fine[p], s)
					// Never connected: chooses anew by itself.
					s = k.socket(c, pod)
					if err := s.SendTo("hello", c.as(c.at(53))); err != nil {
						t.Fatal(err)
					}
					fine[p] = append(fine[p], s)
				}
				// TCP learns from its peer.
				tcp := kinds(unix.SOCK_STREAM)[0]
				s := k.connected(tcp, pod, tcp.at(53))
				if who, _, err := s.Receive(); err != nil || who == "" {
					t.Fatalf("TCP answer %q, %v", who, err)
				}
			}
			before := k.stale()
			k.wantNamespaces(before)
			for _, pod := range pods {
				if found := destroy(t, before, pod); len(found) != 0 {
					t.Errorf("destroyed %v while all backends serve", found)
				}
			}
			die()
			now := before
			if restart {
				k.close()
				k.open(on())
				now = k.stale()
			}
			k.wantNamespaces(now, pods[0], pods[1])
			for p, pod := range pods {
				found := destroy(t, now, pod)
				if len(found) != len(stale[p]) {
					t.Errorf("pod %d: destroyed %v, want %d sockets", p, found, len(stale[p]))
				}
				for _, f := range found {
					if !f.Destroyed {
						t.Errorf("pod %d: %v is left to netlink, though this kernel has bpf_sock_destroy", p, f)
					}
				}
				if p == 0 {
					k.wantNamespaces(now, pods[1])
				}
			}
			k.wantNamespaces(now)
			for p := range pods {
				for i, s := range stale[p] {
					if !aborted(t, s) {
						t.Errorf("pod %d: stale socket %d still stands", p, i)
					}
				}
				for i, s := range fine[p] {
					if aborted(t, s) {
						t.Errorf("pod %d: socket %d was destroyed", p, i)
					}
				}
			}
		})
	}
}

// While the socket path was off, nobody noted that the socket was connected to somebody else.
func TestStaleSocketsOtherPeer(t *testing.T) {
	k := newKit(t, on())
	pod := k.pod(1, 0)
	die := k.dying()
	c := kinds(unix.SOCK_DGRAM)[0]
	u := k.connected(c, pod, c.at(53))
	k.close()
	k.open(Config{})
	if err := u.Connect(c.as(c.of(2, 8000))); err != nil {
		t.Fatal(err)
	}
	die()
	s := k.stale()
	k.wantNamespaces(s)
	if found := destroy(t, s, pod); len(found) != 0 || aborted(t, u) {
		t.Errorf("destroyed %v", found)
	}
}

// More stale sockets than one read of an iterator holds.
func TestStaleSocketsMany(t *testing.T) {
	needsDestroy(t)
	const sockets = 1500
	k := newKit(t, on())
	pod := k.pod(1, 0)
	die := k.dying()
	c := kinds(unix.SOCK_DGRAM)[0]
	var all []*sandbox.Socket
	for range sockets {
		all = append(all, k.connected(c, pod, c.at(53)))
	}
	die()
	s := k.stale()
	k.wantNamespaces(s, pod)
	started := time.Now()
	if found := destroy(t, s, pod); len(found) != sockets {
		t.Errorf("destroyed %d sockets, want %d", len(found), sockets)
	}
	t.Logf("%d sockets destroyed in %v", sockets, time.Since(started))
	for i, s := range all {
		if !aborted(t, s) {
			t.Fatalf("socket %d still stands", i)
		}
	}
	k.wantNamespaces(s)
}

// Where the kernel cannot destroy by itself, the iterator says all that netlink needs, and touches nothing.
func TestStaleSocketsForNetlink(t *testing.T) {
	k := newKit(t, on())
	pod := k.pod(1, 0)
	die := k.dying()

	spec, err := LoadSweep()
	if err != nil {
		t.Fatal(err)
	}
	for name := range spec.Programs {
		if name != SweepProgStaleSpaces && name != SweepProgStaleSockets {
			delete(spec.Programs, name)
		}
	}
	if err := spec.Variables[SweepVarStaleByNetlink].Set(uint8(1)); err != nil {
		t.Fatal(err)
	}
	kept := map[string]*ebpf.Map{}
	for name, m := range spec.Maps {
		if have, ok := k.maps[name]; ok {
			m.MaxEntries = have.MaxEntries()
			kept[name] = have
		}
	}
	col, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: kept})
	if err != nil {
		t.Fatal(err)
	}
	defer col.Close()
	s, err := newStaleSockets(col.Programs[SweepProgStaleSpaces], col.Programs[SweepProgStaleSockets], k.maps["sock_peers"])
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	var want []StaleSocket
	var sockets []*sandbox.Socket
	for _, c := range kinds(unix.SOCK_DGRAM) {
		u := k.connected(c, pod, c.at(53))
		local, err1 := u.Local()
		cookie, err2 := u.Cookie()
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		want = append(want, StaleSocket{
			Local:  netip.AddrPortFrom(local.Addr().Unmap(), local.Port()),
			Remote: netip.MustParseAddrPort(c.of(1, 8000)),
			Cookie: cookie, V6: c.domain == unix.AF_INET6,
		})
		sockets = append(sockets, u)
	}
	die()
	k.wantNamespaces(s, pod)
	found := destroy(t, s, pod)
	byCookie := func(a, b StaleSocket) int { return int(a.Cookie) - int(b.Cookie) }
	slices.SortFunc(want, byCookie)
	slices.SortFunc(found, byCookie)
	if diff := cmp.Diff(want, found, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("stale sockets (-want +got):\n%s", diff)
	}
	for i, u := range sockets {
		if aborted(t, u) {
			t.Errorf("socket %d was destroyed by the iterator", i)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Service and none fails.
func TestSockFlipUnderLoad(t *testing.T) {
	k := newKit(t, on())
	pod := k.pod(1, 0)
	c := kinds(unix.SOCK_STREAM)[0]
	for n := uint32(1); n <= 5; n++ {
		pod.answerTCP(t, c.of(int(n), 8000))
		k.backend(n, c.of(int(n), 8000), inBoth)
	}
	sets := []Set{k.set(1, 2), k.set(3, 4)}
	k.service(Service{ID: 1, Cluster: sets[0]}, c.at(80))
	k.service(Service{ID: 2, Cluster: k.set(5)}, c.at(81))
	stop := make(chan struct{})
	done := make(chan error, 1)
	var flips atomic.Int64
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			key := FrontendKey{Addr: netip.MustParseAddr(c.vip), Port: 81, Protocol: unix.IPPROTO_TCP}
			err := errors.Join(
				k.Services().Flip(1, Service{ID: 1, Incarnation: 100, Cluster: sets[i%2]}),
				k.Services().DeleteFrontend(key),
				k.Services().PutFrontend(Frontend{FrontendKey: key, Service: 2}))
			if err != nil {
				done <- err
				return
			}
			flips.Add(1)
		}
	}()
	seen := map[string]int{}
	for until := time.Now().Add(2 * time.Second); time.Now().Before(until); {
		seen[k.dial(c, pod, c.at(80))]++
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if seen[c.of(5, 8000)] != 0 || len(seen) != 4 {
		t.Errorf("connections by backend: %v, want the first four", seen)
	}
	t.Logf("%d flips, connections by backend %v", flips.Load(), seen)
}

// Service or none.
func TestSockFrontendReplaced(t *testing.T) {
	k := newKit(t, on())
	pod := k.pod(1, 0)
	c := kinds(unix.SOCK_DGRAM)[0]
	k.backend(1, c.of(1, 8000), inBoth)
	k.service(Service{ID: 1, Cluster: k.set(1)}, c.at(80))
	k.service(Service{ID: 2}, c.at(81)) // refuses
	key := func(port uint16) FrontendKey {
		return FrontendKey{Addr: netip.MustParseAddr(c.vip), Port: port, Protocol: unix.IPPROTO_UDP}
	}
	stop := make(chan struct{})
	done := make(chan error, 1)
	var swaps atomic.Int64
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			err := errors.Join(
				k.Services().DeleteFrontend(key(80)), k.Services().PutFrontend(Frontend{FrontendKey: key(81), Service: 2}),
				k.Services().DeleteFrontend(key(81)), k.Services().PutFrontend(Frontend{FrontendKey: key(80), Service: 1}))
			if err != nil {
				done <- err
				return
			}
			swaps.Add(1)
		}
	}()
	s := k.socket(c, pod)
	var led, left int
	for until := time.Now().Add(2 * time.Second); time.Now().Before(until); {
		switch err := s.Connect(c.as(c.at(80))); {
		case err == nil:
			led++
		case errors.Is(err, unix.ENETUNREACH):
			left++
		default:
			t.Errorf("after %d connects: %v", led+left, err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if led == 0 || left == 0 {
		t.Errorf("%d connects led to the backend, %d left alone: nothing was replaced meanwhile", led, left)
	}
	t.Logf("%d swaps, %d connects led to the backend, %d left alone", swaps.Load(), led, left)
}

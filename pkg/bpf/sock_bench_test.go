// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// What the socket path adds to a system call on UDP, where the call itself does least: the same call without programs, with programs but
// not to a Service, and to a Service. In processor time, so that a busy machine tells the same.
func BenchmarkSock(b *testing.B) {
	c := kinds(unix.SOCK_DGRAM)[0]
	for _, attached := range []bool{false, true} {
		k := newKit(b, on())
		pod := k.pod(1, 0)
		k.backend(1, c.of(1, 8000), inBoth)
		k.service(Service{ID: 1, Cluster: k.set(1)}, c.at(53))
		sink := pod.ListenPacket(b, "udp4", c.of(1, 8000)) // full after a while: the rest is dropped at its queue
		defer sink.Close()
		if !attached {
			if err := Remove(k.dir); err != nil {
				b.Fatal(err)
			}
		}
		for _, to := range []struct{ name, addr string }{{"backend", c.of(1, 8000)}, {"service", c.at(53)}} {
			if !attached && to.name == "service" {
				continue
			}
			name := to.name + "/programs=" + map[bool]string{false: "no", true: "yes"}[attached]
			b.Run("connect/"+name, func(b *testing.B) {
				s := k.group.Socket(b, pod.Namespace, c.domain, c.typ, 0)
				defer processorTime(b)()
				for b.Loop() {
					if err := s.Connect(c.as(to.addr)); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("sendto/"+name, func(b *testing.B) {
				s := k.group.Socket(b, pod.Namespace, c.domain, c.typ, 0)
				defer processorTime(b)()
				for b.Loop() {
					if err := s.SendTo("x", c.as(to.addr)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		k.close()
	}
}

// processorTime reports the time that the benchmark's thread was on a processor, from this call to that of the result.
func processorTime(b *testing.B) (end func()) {
	runtime.LockOSThread()
	used := func() int64 {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() {
		b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op")
		runtime.UnlockOSThread()
	}
}

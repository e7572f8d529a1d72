// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// Packets that a node's own stack sends to another node's overlay address take the route, the next hop, the device's egress program and
// the tunnel, in both inner families over both outer ones, and come back.
func TestHostsTalkThroughOverlay(t *testing.T) {
	for _, c := range []struct {
		name, ipA, ipB string
		mtu            int
	}{
		{"over IPv4", "192.0.2.1", "192.0.2.2", 1450},
		{"over IPv6", "2001:db8::1", "2001:db8::2", 1430},
	} {
		t.Run(c.name, func(t *testing.T) {
			length := map[bool]string{true: "/24", false: "/64"}[netip.MustParseAddr(c.ipA).Is4()]
			a, b := newHost(t, Config{Name: "a"}), newHost(t, Config{Name: "b"})
			wire(t, 1500, a, []string{c.ipA + length}, b, []string{c.ipB + length})
			nodes := map[string]*cluster.Node{
				"a": nodeOf("a", "10.244.1.0/24 fd00:1::/64", c.ipA),
				"b": nodeOf("b", "10.244.2.0/24 fd00:2::/64", c.ipB),
			}
			for _, h := range []*host{a, b} {
				h.start(nodes[h.name])
				h.apply(nodes)
				<-h.node.Synced()
				if h.self.MTU != c.mtu {
					t.Errorf("MTU %d, want %d", h.self.MTU, c.mtu)
				}
			}
			talk(t, a, "10.244.1.0", b, "10.244.2.0", c.mtu)
			talk(t, b, "fd00:2::", a, "fd00:1::", c.mtu)
			checkNeighbours(t, a)
			if t.Failed() {
				drops, err := a.objects.Drops()
				t.Logf("drops of a: %v, %v", drops, err)
				drops, err = b.objects.Drops()
				t.Logf("drops of b: %v, %v", drops, err)
			}
		})
	}
}

// talk echoes a megabyte over TCP between two hosts and checks the addresses and the path MTU that both ends see.
func talk(t *testing.T, a *host, from string, b *host, to string, mtu int) {
	t.Helper()
	server := b.ns.Listen(t, "tcp", net.JoinHostPort(to, "0"))
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	var conn net.Conn
	a.ns.Do(t, func() (err error) {
		conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(context.Background(), "tcp", server.Addr().String())
		return err
	})
	defer conn.Close()
	if got := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != netip.MustParseAddr(from) {
		t.Errorf("source %s, want %s", got, from)
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = conn.Write(sent) }()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("echo of %d bytes from %s to %s: %v", len(sent), from, to, err)
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if strings.Contains(to, ":") {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	var path int
	if err := errors.Join(raw.Control(func(fd uintptr) { path, err = unix.GetsockoptInt(int(fd), level, option) }), err); err != nil || path != mtu {
		t.Errorf("path MTU %d (%v), want %d", path, err, mtu)
	}
}

// checkNeighbours looks whether the one permanent next hop is the only neighbour that talking left behind.
func checkNeighbours(t *testing.T, h *host) {
	t.Helper()
	var table []byte
	h.ns.Do(t, func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/arp")
		return err
	})
	found := 0
	for _, line := range strings.Split(string(table), "\n") {
		f := strings.Fields(line)
		if len(f) == 6 && f[5] == Device {
			found++
			if f[0] != nextHop4.String() || f[2] != "0x6" {
				t.Errorf("neighbour %s", line)
			}
		}
	}
	if found != 1 {
		t.Errorf("%d neighbours on %s, want the next hop alone:\n%s", found, Device, table)
	}
}

// Hosts that switch IPv6 off by default, and forwarding too, still get what their pods need.
func TestSettingsOfTheHost(t *testing.T) {
	a, b := newHost(t, Config{Name: "a"}), newHost(t, Config{Name: "b"})
	wire(t, 1500, a, []string{"192.0.2.1/24", "2001:db8::1/64"}, b, []string{"192.0.2.2/24"})
	for value, names := range map[string][][]string{
		"1": {{"ipv6", "conf", "default", "disable_ipv6"}, {"ipv4", "conf", "all", "rp_filter"}, {"ipv4", "conf", "eth0", "rp_filter"}},
		"0": {{"ipv4", "ip_forward"}, {"ipv6", "conf", "all", "forwarding"}},
	} {
		for _, name := range names {
			if _, err := a.nl.SetSysctl(value, name...); err != nil {
				t.Fatal(err)
			}
		}
	}
	a.start(nodeOf("a", "10.244.1.0/24 fd00:1::/64", "192.0.2.1"))
	for _, c := range []struct {
		want string
		name []string
	}{
		{"1", []string{"ipv4", "ip_forward"}},
		{"1", []string{"ipv6", "conf", "all", "forwarding"}},
		{"2", []string{"ipv6", "conf", "eth0", "accept_ra"}}, // else forwarding takes the uplink's default route away
		{"0", []string{"ipv6", "conf", Device, "disable_ipv6"}},
		{"2", []string{"ipv4", "conf", Device, "rp_filter"}},
		{"1", []string{"ipv4", "conf", "eth0", "rp_filter"}}, // not ours
	} {
		if got, err := a.nl.Sysctl(c.name...); err != nil || got != c.want {
			t.Errorf("%s is %s, %v, want %s", strings.Join(c.name, "."), got, err, c.want)
		}
	}
	on, err := a.nl.Addresses(a.self.OverlayIndex)
	if err != nil || len(on) != 2 {
		t.Errorf("overlay addresses %v, %v, want one per family", on, err)
	}
}

func TestAbsentPodIsUnreachable(t *testing.T) {
	a, b := newHost(t, Config{Name: "a"}), newHost(t, Config{Name: "b"})
	wire(t, 1500, a, []string{"192.0.2.1/24"}, b, []string{"192.0.2.2/24"})
	a.start(nodeOf("a", "10.244.1.0/24 fd00:1::/64", "192.0.2.1"))
	for _, to := range []string{"10.244.1.77:9", "[fd00:1::77]:9"} {
		a.ns.Do(t, func() error {
			conn, err := net.DialTimeout("tcp", to, 5*time.Second)
			if err == nil {
				conn.Close()
			}
			if !errors.Is(err, syscall.EHOSTUNREACH) {
				t.Errorf("dial %s: %v, want host unreachable at once", to, err)
			}
			return nil
		})
	}
}

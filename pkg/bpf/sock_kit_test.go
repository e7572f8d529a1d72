// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/testnet/sandbox"
)

// podNet is a pod's network namespace in which the backends live too, on loopback. There is no default route: what the socket path leaves
// alone ends as ENETUNREACH.
type podNet struct {
	*sandbox.Namespace
	addr4, addr6 netip.Addr
}

// kit is an agent's objects with the socket programs attached to a cgroup of their own.
type kit struct {
	*Objects
	t     testing.TB
	group *sandbox.Group
	dir   string
	slots uint32 // handed out
}

const (
	backends4 = "10.1.0.%d"
	backends6 = "fd01::%d"
)

// newPodNet makes the namespace of the pod with a number, and of backends 1 to 9.
func newPodNet(t testing.TB, pod int) podNet {
	t.Helper()
	p := podNet{
		addr4: netip.AddrFrom4([4]byte{10, 1, 1, byte(pod)}),
		addr6: netip.MustParseAddr(fmt.Sprintf("fd01::1:%d", pod)),
	}
	addrs := []string{p.addr4.String(), p.addr6.String()}
	for i := 1; i < 10; i++ {
		addrs = append(addrs, fmt.Sprintf(backends4, i), fmt.Sprintf(backends6, i))
	}
	p.Namespace = sandbox.NewNamespace(t, addrs...)
	return p
}

func newKit(t testing.TB, config Config) *kit {
	t.Helper()
	k := &kit{t: t, group: sandbox.NewGroup(t), dir: testDir(t)}
	k.open(config)
	return k
}

// open opens the kit's directory and attaches the programs, as a starting agent does.
func (k *kit) open(config Config) {
	k.t.Helper()
	ob := mustOpen(k.t, Options{Dir: k.dir, Capacity: small(), Config: config})
	k.Objects = ob
	k.t.Cleanup(func() {
		if k.Objects == ob {
			k.close()
		}
	})
	if err := k.AttachSock(k.group.Path); err != nil {
		k.t.Fatal(err)
	}
}

// close ends the agent; what is pinned stays.
func (k *kit) close() {
	k.t.Helper()
	if err := k.Objects.Close(); err != nil {
		k.t.Error(err)
	}
	k.Objects = nil
}

// on is the configuration of most tests.
func on() Config { return Config{SocketLB: true} }

// pod makes a namespace known as an endpoint.
func (k *kit) pod(number int, flags EndpointFlag) podNet {
	k.t.Helper()
	p := newPodNet(k.t, number)
	err := k.Endpoints().Put(Endpoint{ID: uint32(number), Incarnation: 1, Flags: flags, Addr4: p.addr4, Addr6: p.addr6,
		Cookie: p.Cookie(k.t), Ifindex: uint32(number)})
	if err != nil {
		k.t.Fatal(err)
	}
	return p
}

// backend writes a backend; its incarnation is ten times its id.
func (k *kit) backend(id uint32, addr string, flags BackendFlag) {
	k.t.Helper()
	ap := netip.MustParseAddrPort(addr)
	if err := k.Services().PutBackend(Backend{ID: id, Incarnation: id * 10, Flags: flags, Addr: ap.Addr(), Port: ap.Port()}); err != nil {
		k.t.Fatal(err)
	}
}

// set writes backend ids into fresh slots.
func (k *kit) set(ids ...uint32) Set {
	k.t.Helper()
	s := Set{Offset: k.slots, Length: uint32(len(ids))}
	if err := k.Services().WriteSlots(s.Offset, ids); err != nil {
		k.t.Fatal(err)
	}
	k.slots += s.Length
	return s
}

// service makes a service with a frontend for TCP and one for UDP.
func (k *kit) service(s Service, vip string) {
	k.t.Helper()
	s.Incarnation = s.ID * 100
	if err := k.Services().Flip(s.ID, s); err != nil {
		k.t.Fatal(err)
	}
	ap := netip.MustParseAddrPort(vip)
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		f := Frontend{FrontendKey: FrontendKey{Addr: ap.Addr(), Port: ap.Port(), Protocol: proto}, Service: s.ID}
		if err := k.Services().PutFrontend(f); err != nil {
			k.t.Fatal(err)
		}
	}
}

// drops returns how often a reason was counted, over all CPUs.
func (k *kit) drops(reason LayoutDropReason) (sum uint64) {
	k.t.Helper()
	var n []uint64
	if err := k.maps[LayoutMapDrops].Lookup(reason, &n); err != nil {
		k.t.Fatal(err)
	}
	for _, v := range n {
		sum += v
	}
	return sum
}

const inBoth = BackendServing | BackendCluster | BackendInLocal

// answerUDP answers every datagram to addr with the address itself.
func (p podNet) answerUDP(t *testing.T, addr string) *net.UDPConn {
	t.Helper()
	conn := p.ListenPacket(t, "udp", addr)
	go func() {
		b := make([]byte, 2048)
		for {
			_, from, err := conn.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, err = conn.WriteToUDPAddrPort([]byte(addr), from)
			}
			if err != nil && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, net.ErrClosed) {
				t.Errorf("backend %s: %v", addr, err)
			}
		}
	}()
	return conn
}

// answerTCP tells every client that connects to addr the address itself, and closes.
func (p podNet) answerTCP(t *testing.T, addr string) {
	t.Helper()
	l := p.Listen(t, "tcp", addr)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, addr) // a client that is gone already is no error
			_ = c.Close()
		}
	}()
}

// kind is a kind of socket and the addresses that go with it.
type kind struct {
	name        string
	domain, typ int
	vip         string                      // address of every service
	backend     string                      // addresses of backends, with a place for the number
	as          func(string) netip.AddrPort // "address:port" as the socket shows it
}

// kinds are TCP and UDP over IPv4, IPv6, and IPv4 on an IPv6 socket.
func kinds(typ int) []kind {
	plain := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	mapped := func(s string) netip.AddrPort {
		ap := netip.MustParseAddrPort(s)
		return netip.AddrPortFrom(netip.AddrFrom16(ap.Addr().As16()), ap.Port())
	}
	return []kind{
		{name: "v4", domain: unix.AF_INET, typ: typ, vip: "10.96.0.1", backend: backends4, as: plain},
		{name: "v6", domain: unix.AF_INET6, typ: typ, vip: "fd96::1", backend: backends6, as: plain},
		{name: "mapped", domain: unix.AF_INET6, typ: typ, vip: "10.96.0.1", backend: backends4, as: mapped},
	}
}

// at returns the service address of the kind at a port.
func (c kind) at(port int) string { return net.JoinHostPort(c.vip, fmt.Sprint(port)) }

// of returns backend n's address at a port.
func (c kind) of(n, port int) string {
	return net.JoinHostPort(fmt.Sprintf(c.backend, n), fmt.Sprint(port))
}

// socket makes a socket of the kind.
func (k *kit) socket(c kind, p podNet) *sandbox.Socket {
	k.t.Helper()
	return k.group.Socket(k.t, p.Namespace, c.domain, c.typ, 0)
}

// SPDX-License-Identifier: Apache-2.0

package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/flow"
	"github.com/fairlead/fairlead/pkg/testnet/sandbox"
)

func TestMain(m *testing.M) {
	if sandbox.Helper() {
		return
	}
	m.Run()
}

// pods are the network namespaces by cookie, and errors in their place.
type pods struct {
	spaces map[uint64]*sandbox.Namespace
	broken map[uint64]error
}

func (p pods) OpenNamespace(cookie uint64) (*os.File, error) {
	if err := p.broken[cookie]; err != nil {
		return nil, err
	}
	if ns := p.spaces[cookie]; ns != nil {
		return ns.Reopen()
	}
	return nil, fmt.Errorf("open namespace %d: %w", cookie, fs.ErrNotExist)
}

const (
	service = "10.96.0.1"
	first   = "10.1.0.1:8000"
	second  = "10.1.0.2:8000"
)

// agent is what an agent has in the kernel for one Service with one backend.
type agent struct {
	*bpf.Objects
	t     *testing.T
	group *sandbox.Group
	dir   string
}

const dirs = "/sys/fs/bpf/fairlead-flow-test-"

func newAgent(t *testing.T) *agent {
	t.Helper()
	old, _ := filepath.Glob(dirs + "*")
	for _, dir := range old {
		pid, _, _ := strings.Cut(strings.TrimPrefix(dir, dirs), "-")
		if n, err := strconv.Atoi(pid); err == nil && !errors.Is(unix.Kill(n, 0), unix.ESRCH) {
			continue
		}
		if err := bpf.Remove(dir); err != nil {
			t.Error(err)
		}
	}
	a := &agent{t: t, group: sandbox.NewGroup(t), dir: fmt.Sprintf("%s%d-%s", dirs, os.Getpid(), strings.ReplaceAll(t.Name(), "/", "_"))}
	t.Cleanup(func() {
		a.stop()
		if err := bpf.Remove(a.dir); err != nil {
			t.Error(err)
		}
	})
	a.start()
	a.setBackend(1, first, bpf.BackendServing|bpf.BackendCluster)
	a.setService(1)
	key := bpf.FrontendKey{Addr: netip.MustParseAddr(service), Port: 53, Protocol: unix.IPPROTO_UDP}
	if err := a.Services().PutFrontend(bpf.Frontend{FrontendKey: key, Service: 1}); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *agent) start() {
	a.t.Helper()
	ob, err := bpf.Open(bpf.Options{Dir: a.dir, Config: bpf.Config{SocketLB: true}, Capacity: map[string]uint32{
		"backends": 64, "slots": 64, "services": 64, "frontends": 64, "affinities": 64, "cluster_ips": 64, "ids": 64,
	}})
	if err != nil {
		a.t.Fatal(err)
	}
	a.Objects = ob
	if err := a.AttachSock(a.group.Path); err != nil {
		a.t.Fatal(err)
	}
}

// stop ends the agent; what is pinned stays.
func (a *agent) stop() {
	a.t.Helper()
	if a.Objects == nil {
		return
	}
	if err := a.Close(); err != nil {
		a.t.Error(err)
	}
	a.Objects = nil
}

func (a *agent) setBackend(id uint32, addr string, flags bpf.BackendFlag) {
	a.t.Helper()
	ap := netip.MustParseAddrPort(addr)
	err := a.Services().PutBackend(bpf.Backend{ID: id, Incarnation: id, Flags: flags, Addr: ap.Addr(), Port: ap.Port(), Protocol: unix.IPPROTO_UDP})
	if err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) setService(backend uint32) {
	a.t.Helper()
	err := errors.Join(
		a.Services().WriteSlots(backend, []uint32{backend}),
		a.Services().Flip(1, bpf.Service{ID: 1, Incarnation: 1, Cluster: bpf.Set{Offset: backend, Length: 1}}))
	if err != nil {
		a.t.Fatal(err)
	}
}

// pod makes a namespace that is an endpoint.
func (a *agent) pod(id uint32) *sandbox.Namespace {
	a.t.Helper()
	addr := netip.AddrFrom4([4]byte{10, 1, 1, byte(id)})
	ns := sandbox.NewNamespace(a.t, addr.String(), "10.1.0.1", "10.1.0.2")
	if err := a.Endpoints().Put(bpf.Endpoint{ID: id, Incarnation: 1, Addr4: addr, Cookie: ns.Cookie(a.t), Ifindex: id}); err != nil {
		a.t.Fatal(err)
	}
	return ns
}

func (a *agent) connect(ns *sandbox.Namespace) *sandbox.Socket {
	a.t.Helper()
	s := a.group.Socket(a.t, ns, unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err := s.Connect(netip.MustParseAddrPort(service + ":53")); err != nil {
		a.t.Fatal(err)
	}
	return s
}

func (a *agent) sockets(namespaces flow.Namespaces) *flow.Sockets {
	a.t.Helper()
	stale, err := a.StaleSockets()
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() {
		if err := stale.Close(); err != nil {
			a.t.Error(err)
		}
	})
	return flow.NewSockets(stale, namespaces, slog.New(slog.DiscardHandler))
}

func wantAborted(t *testing.T, s *sandbox.Socket, want bool) {
	t.Helper()
	s.Wait(t, time.Millisecond)
	_, _, err := s.Receive()
	if got := errors.Is(err, unix.ECONNABORTED); got != want || !got && !errors.Is(err, unix.EAGAIN) {
		t.Errorf("receive: %v, want destroyed to be %t", err, want)
	}
}

// One sweep destroys the stale sockets of every namespace, and their owners reach the new backend by connecting again. With a restart the
// agent that sweeps knows only what is pinned.
func TestSweepEveryNamespace(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%t", restart), func(t *testing.T) {
			a := newAgent(t)
			known := pods{spaces: map[uint64]*sandbox.Namespace{}}
			var sockets []*sandbox.Socket
			for id := uint32(1); id <= 2; id++ {
				ns := a.pod(id)
				known.spaces[ns.Cookie(t)] = ns
				sockets = append(sockets, a.connect(ns), a.connect(ns))
			}
			if n, err := a.sockets(known).Sweep(t.Context()); n != 0 || err != nil {
				t.Fatalf("destroyed %d, %v while the backend serves", n, err)
			}
			a.setBackend(2, second, bpf.BackendServing|bpf.BackendCluster)
			a.setService(2)
			if err := a.Services().DeleteBackend(1); err != nil {
				t.Fatal(err)
			}
			if restart {
				a.stop()
				a.start()
			}
			sweeper := a.sockets(known)
			if n, err := sweeper.Sweep(t.Context()); n != len(sockets) || err != nil {
				t.Errorf("destroyed %d, %v, want %d", n, err, len(sockets))
			}
			for _, s := range sockets {
				wantAborted(t, s, true)
				if err := s.Connect(netip.MustParseAddrPort(service + ":53")); err != nil {
					t.Errorf("connect again: %v", err)
				}
			}
			if n, err := sweeper.Sweep(t.Context()); n != 0 || err != nil {
				t.Errorf("second sweep destroyed %d, %v", n, err)
			}
		})
	}
}

// A namespace that cannot be entered is named in the error and left for the next sweep; the others are swept. One that is gone is no error.
func TestSweepBrokenNamespace(t *testing.T) {
	a := newAgent(t)
	known := pods{spaces: map[uint64]*sandbox.Namespace{}, broken: map[uint64]error{}}
	var spaces []*sandbox.Namespace
	var sockets []*sandbox.Socket
	for id := uint32(1); id <= 4; id++ {
		ns := a.pod(id)
		known.spaces[ns.Cookie(t)] = ns
		spaces = append(spaces, ns)
		sockets = append(sockets, a.connect(ns))
	}
	a.setBackend(1, first, 0)
	broken := errors.New("no such luck")
	known.broken[spaces[1].Cookie(t)] = broken
	delete(known.spaces, spaces[2].Cookie(t))
	sweeper := a.sockets(known)
	n, err := sweeper.Sweep(t.Context())
	if n != 2 || !errors.Is(err, broken) || !strings.Contains(err.Error(), fmt.Sprint(spaces[1].Cookie(t))) {
		t.Errorf("destroyed %d, %v, want 2 and an error about namespace %d", n, err, spaces[1].Cookie(t))
	}
	for i, want := range []bool{true, false, false, true} {
		wantAborted(t, sockets[i], want)
	}
	clear(known.broken)
	if n, err := sweeper.Sweep(t.Context()); n != 1 || err != nil {
		t.Errorf("next sweep destroyed %d, %v, want 1", n, err)
	}
	wantAborted(t, sockets[1], true)
}

// A file that is no network namespace: the error says so and no thread is left elsewhere.
func TestSweepWrongFile(t *testing.T) {
	a := newAgent(t)
	ns := a.pod(1)
	s := a.connect(ns)
	a.setBackend(1, first, 0)
	n, err := a.sockets(wrongFile{}).Sweep(t.Context())
	if n != 0 || !errors.Is(err, unix.EINVAL) {
		t.Errorf("destroyed %d, %v, want EINVAL", n, err)
	}
	wantAborted(t, s, false)
}

type wrongFile struct{}

func (wrongFile) OpenNamespace(uint64) (*os.File, error) { return os.Open(os.DevNull) }

func TestSweepCancelled(t *testing.T) {
	a := newAgent(t)
	ns := a.pod(1)
	s := a.connect(ns)
	a.setBackend(1, first, 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	known := pods{spaces: map[uint64]*sandbox.Namespace{ns.Cookie(t): ns}}
	if n, err := a.sockets(known).Sweep(ctx); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("destroyed %d, %v, want context.Canceled", n, err)
	}
	wantAborted(t, s, false)
}

// listed is what the iterator says on a kernel without bpf_sock_destroy.
type listed struct {
	cookie  uint64
	sockets []bpf.StaleSocket
}

func (l listed) Namespaces() ([]uint64, error)       { return []uint64{l.cookie}, nil }
func (l listed) Destroy() ([]bpf.StaleSocket, error) { return l.sockets, nil }

// What the kernel's iterator cannot destroy goes by netlink: exactly the socket that is meant, not another one between the same addresses.
func TestSweepByNetlink(t *testing.T) {
	ns := sandbox.NewNamespace(t, "10.1.0.1", "10.1.1.1", "fd01::1", "fd01::1:1")
	group := sandbox.NewGroup(t)
	list := listed{cookie: ns.Cookie(t)}
	var all []*sandbox.Socket
	for _, c := range []struct {
		domain     int
		local, far string
	}{
		{unix.AF_INET, "10.1.1.1", "10.1.0.1:8000"},
		{unix.AF_INET6, "fd01::1:1", "[fd01::1]:8000"},
		{unix.AF_INET6, "::ffff:10.1.1.1", "[::ffff:10.1.0.1]:8001"},
	} {
		for range 2 {
			s := group.Socket(t, ns, c.domain, unix.SOCK_DGRAM, 0)
			err := errors.Join(
				s.Bind(netip.AddrPortFrom(netip.MustParseAddr(c.local), 0)),
				s.Connect(netip.MustParseAddrPort(c.far)))
			if err != nil {
				t.Fatal(err)
			}
			local, err1 := s.Local()
			cookie, err2 := s.Cookie()
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			far := netip.MustParseAddrPort(c.far)
			list.sockets = append(list.sockets, bpf.StaleSocket{
				Local:  netip.AddrPortFrom(local.Addr().Unmap(), local.Port()),
				Remote: netip.AddrPortFrom(far.Addr().Unmap(), far.Port()),
				Cookie: cookie, V6: c.domain == unix.AF_INET6,
			})
			all = append(all, s)
		}
	}
	known := pods{spaces: map[uint64]*sandbox.Namespace{list.cookie: ns}}
	// Every second one has another socket's cookie: it stands for one that was closed while its port went to another socket.
	for i := 1; i < len(list.sockets); i += 2 {
		list.sockets[i].Cookie += 1000
	}
	n, err := flow.NewSockets(list, known, slog.New(slog.DiscardHandler)).Sweep(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range all {
		wantAborted(t, s, i%2 == 0)
	}
	if n != len(all)/2 {
		t.Errorf("destroyed %d, want %d", n, len(all)/2)
	}
}

// SPDX-License-Identifier: Apache-2.0

// Package sandbox gives a test network namespaces and a cgroup of its own, and sockets that belong to both. A socket belongs to the cgroup
// of the process and the namespace of the thread that made it, whoever uses it later, so a helper process in the cgroup makes them
// and passes them to the test.
package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/link"
)

// helperEnv marks the process that makes sockets.
const helperEnv = "FAIRLEAD_SANDBOX_HELPER"

// prefix begins the name of each cgroup, followed by the number of the process that owns it.
const prefix = "fairlead-test-"

// Helper serves a test when this process is its helper, and then returns true. A package with tests that use a Group calls it first in its
// TestMain and returns at once when it is true.
func Helper() bool {
	if os.Getenv(helperEnv) == "" {
		return false
	}
	runtime.LockOSThread() // the thread changes its namespace with every request
	if err := serve(3); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox helper:", err)
	}
	return true
}

// serve answers requests {domain, type, protocol} with a namespace attached by a socket, or by an errno.
func serve(conn int) error {
	var req [12]byte
	for {
		n, ns, err := receive(conn, req[:])
		if err != nil || n == 0 {
			return err
		}
		var answer [4]byte
		fd, err := socketIn(ns, int(binary.NativeEndian.Uint32(req[0:])), int(binary.NativeEndian.Uint32(req[4:])), int(binary.NativeEndian.Uint32(req[8:])))
		unix.Close(ns)
		var rights []byte
		if err == nil {
			rights = unix.UnixRights(fd)
		} else {
			var errno syscall.Errno
			errors.As(err, &errno)
			binary.NativeEndian.PutUint32(answer[:], uint32(errno))
		}
		err = unix.Sendmsg(conn, answer[:], rights, nil, 0)
		if rights != nil {
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

func socketIn(ns, domain, typ, protocol int) (int, error) {
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return -1, err
	}
	return unix.Socket(domain, typ|unix.SOCK_CLOEXEC, protocol)
}

// receive reads one message and the descriptor that came with it, -1 without.
func receive(conn int, b []byte) (n, fd int, err error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(conn, b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, -1, fmt.Errorf("receive: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) == 0 {
		return n, -1, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return n, -1, err
	}
	return n, fds[0], nil
}

// Group is a cgroup v2 directory with one process in it, the helper.
type Group struct {
	Path string

	mu   sync.Mutex
	conn int
}

// NewGroup makes a cgroup directly under the root. It goes with the test; those of processes that are gone are removed first.
func NewGroup(t testing.TB) *Group {
	t.Helper()
	root, err := cgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	removeLeftovers(root)
	g := &Group{conn: -1}
	g.Path, err = os.MkdirTemp(root, prefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		t.Fatalf("make cgroup: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(g.Path); err != nil {
			t.Errorf("remove cgroup: %v", err)
		}
	})
	g.start(t)
	return g
}

// start runs the helper inside the cgroup; it ends when the test closes its end.
func (g *Group) start(t testing.TB) {
	t.Helper()
	dir, err := os.Open(g.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("make socket pair: %v", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "helper")
	defer theirs.Close()
	var stderr bytes.Buffer
	helper := exec.Command("/proc/self/exe")
	helper.Env = append(os.Environ(), helperEnv+"=1")
	helper.Stderr = &stderr
	helper.ExtraFiles = []*os.File{theirs}
	helper.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := helper.Start(); err != nil {
		unix.Close(pair[0])
		t.Fatalf("start helper: %v", err)
	}
	g.conn = pair[0]
	t.Cleanup(func() {
		unix.Close(g.conn)
		if err := helper.Wait(); err != nil || stderr.Len() > 0 {
			t.Errorf("helper: %v %s", err, stderr.String())
		}
	})
}

// Socket returns a new socket of the cgroup in a namespace; it goes with the test if the test does not close it.
func (g *Group) Socket(t testing.TB, ns *Namespace, domain, typ, protocol int) *Socket {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	var req [12]byte
	binary.NativeEndian.PutUint32(req[0:], uint32(domain))
	binary.NativeEndian.PutUint32(req[4:], uint32(typ))
	binary.NativeEndian.PutUint32(req[8:], uint32(protocol))
	if err := unix.Sendmsg(g.conn, req[:], unix.UnixRights(ns.FD()), nil, 0); err != nil {
		t.Fatalf("ask helper: %v", err)
	}
	var answer [4]byte
	n, fd, err := receive(g.conn, answer[:])
	if err != nil || n != len(answer) {
		t.Fatalf("helper's answer: %d bytes, %v", n, err)
	}
	if fd < 0 {
		t.Fatalf("make socket %d %d %d: %v", domain, typ, protocol, syscall.Errno(binary.NativeEndian.Uint32(answer[:])))
	}
	return newSocket(t, fd)
}

// cgroupRoot finds where cgroup v2 is mounted.
func cgroupRoot() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("find cgroup v2: not mounted")
}

// removeLeftovers removes empty cgroups of processes that are gone.
func removeLeftovers(root string) {
	dirs, _ := filepath.Glob(filepath.Join(root, prefix+"*"))
	for _, dir := range dirs {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		if _, err := os.Stat("/proc/" + owner); errors.Is(err, os.ErrNotExist) {
			os.Remove(dir) // one that still has a process in it stays, and is tried again by the next test
		}
	}
}

// Namespace is a network namespace without a name: it is gone when nothing holds it any more, also after a crash.
type Namespace struct{ file *os.File }

// NewNamespace makes a namespace whose loopback device is up and has the given addresses beside its own.
func NewNamespace(t testing.TB, addrs ...string) *Namespace {
	t.Helper()
	type result struct {
		file *os.File
		err  error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends in the namespace
		file, err := newNamespace(addrs)
		made <- result{file, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatalf("make network namespace: %v", r.err)
	}
	t.Cleanup(func() { r.file.Close() })
	return &Namespace{file: r.file}
}

func newNamespace(addrs []string) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	h, err := link.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	if err := loopbackUp(); err != nil {
		return nil, err
	}
	all := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	for _, s := range addrs {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	if err := h.SetAddresses(1, all); err != nil {
		return nil, err
	}
	for _, a := range all {
		if err := reachable(a); err != nil {
			return nil, err
		}
	}
	return os.Open("/proc/thread-self/ns/net")
}

// reachable returns when the thread's namespace has a route to one of its own addresses. The kernel makes that of an IPv6 address in a work
// queue after it has the address, and says nothing when it is done.
func reachable(a netip.Addr) error {
	domain, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: 9})
	if a.Is4() {
		sa.(*unix.SockaddrInet4).Addr = a.As4()
	} else {
		domain, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: 9, Addr: a.As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for until := time.Now().Add(patience()); ; time.Sleep(time.Millisecond) {
		err := unix.Connect(fd, sa)
		if err == nil {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("reach own address %s: %w", a, err)
		}
	}
}

// loopbackUp raises the flag of the device; a new namespace has it down.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// FD returns the namespace as a descriptor that stays the namespace's.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Do runs f on a thread in the namespace.
func (n *Namespace) Do(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatalf("in network namespace: %v", err)
	}
}

// Cookie returns the namespace's cookie: SO_NETNS_COOKIE of a socket in it.
func (n *Namespace) Cookie(t testing.TB) (cookie uint64) {
	t.Helper()
	n.Do(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	return cookie
}

// Reopen returns the namespace once more, as its own file.
func (n *Namespace) Reopen() (*os.File, error) {
	fd, err := unix.FcntlInt(n.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netns"), nil
}

// ListenPacket opens a UDP socket in the namespace, outside the cgroup.
func (n *Namespace) ListenPacket(t testing.TB, network, addr string) (conn *net.UDPConn) {
	t.Helper()
	n.Do(t, func() error {
		a, err := net.ResolveUDPAddr(network, addr)
		if err != nil {
			return err
		}
		conn, err = net.ListenUDP(network, a)
		return err
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Listen opens a TCP listener in the namespace, outside the cgroup.
func (n *Namespace) Listen(t testing.TB, network, addr string) (l net.Listener) {
	t.Helper()
	n.Do(t, func() (err error) {
		l, err = net.Listen(network, addr)
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}

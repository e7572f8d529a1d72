// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/link"
)

// The tests run the real CNI binary by libcni, in a network namespace that stands for the node, against a table with the real maps and
// programs. Namespaces are held by file descriptors only, so nothing of them outlives the test process.

const bpffs = "/sys/fs/bpf/fairlead-endpoint-"

// binariesEnv names a directory with fairlead-cni, for machines without Go; else the test builds it.
const binariesEnv = "FAIRLEAD_TEST_BINARIES"

var binaries string // directory with fairlead-cni

// patient is how long something may take that takes at most d on a real machine: -test.short is for emulation, tens of times slower.
func patient(d time.Duration) time.Duration {
	if testing.Short() {
		return 20 * d
	}
	return d
}

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		victim()
		return
	}
	os.Exit(func() int {
		old, _ := filepath.Glob(bpffs + "*")
		for _, dir := range old {
			pid, _, _ := strings.Cut(strings.TrimPrefix(dir, bpffs), "-")
			if n, err := strconv.Atoi(pid); err == nil && unix.Kill(n, 0) != nil {
				_ = bpf.Remove(dir)
			}
		}
		if binaries = os.Getenv(binariesEnv); binaries != "" {
			return m.Run()
		}
		var err error
		if binaries, err = os.MkdirTemp("", "fairlead-endpoint-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(binaries)
		build := exec.Command("go", "build", "-o", filepath.Join(binaries, cni.BinaryName), "github.com/fairlead/fairlead/plugins/fairlead-cni")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "build fairlead-cni:", err)
			return 1
		}
		return m.Run()
	}())
}

// newNamespace makes a network namespace with lo up.
func newNamespace(t testing.TB) *os.File {
	t.Helper()
	f, err := makeNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func makeNamespace() (f *os.File, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		back, e := os.Open("/proc/thread-self/ns/net")
		if e != nil {
			err = e
			return
		}
		defer back.Close()
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
			if e := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); e == nil {
				runtime.UnlockOSThread() // else the thread ends with the goroutine
			}
		}
	}()
	<-done
	return f, err
}

// path is how another process opens a file of this one.
func path(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

func in(t testing.TB, ns *os.File, f func() error) {
	t.Helper()
	if err := link.InNamespace(int(ns.Fd()), f); err != nil {
		t.Fatal(err)
	}
}

func sh(t testing.TB, ns *os.File, command string) string {
	t.Helper()
	var out []byte
	in(t, ns, func() (err error) {
		out, err = exec.Command("sh", "-ec", command).CombinedOutput()
		return err
	})
	return string(out)
}

// node is a network namespace with an agent's share of pods.
type node struct {
	t       testing.TB
	ns      *os.File
	dir     string
	maps    string // folder of their pins
	cookie  uint64
	objects *bpf.Objects
	cfg     Config
	table   *Table
	network *libcni.NetworkConfigList
	runtime *libcni.CNIConfig
	down    func()
}

var serial atomic.Int64

var gateway = [6]byte{2, 0, 0, 0, 0, 0xfe}

// newNode makes a node and starts its agent; change may alter the configuration before.
func newNode(t testing.TB, change func(*Config)) *node {
	t.Helper()
	n := &node{t: t, ns: newNamespace(t), dir: t.TempDir()}
	sh(t, n.ns, `
		ip link set lo up
		ip addr add 192.0.2.1/32 dev lo
		ip addr add 2001:db8::1/128 dev lo
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1`)
	cookie, err := link.NamespaceCookie(int(n.ns.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	n.cookie = cookie
	n.cfg = testConfig(n.dir)
	n.maps = fmt.Sprintf("%s%d-%d", bpffs, os.Getpid(), serial.Add(1))
	n.open()
	t.Cleanup(func() {
		if err := errors.Join(n.objects.Close(), bpf.Remove(n.maps)); err != nil {
			t.Error(err)
		}
	})
	if change != nil {
		change(&n.cfg)
	}
	n.configure(cni.Conf)
	n.runtime = libcni.NewCNIConfigWithCacheDir([]string{binaries}, filepath.Join(n.dir, "cache"), nil)
	n.start()
	t.Cleanup(func() { n.stop() })
	return n
}

func testConfig(dir string) Config {
	return Config{
		RunDir:     filepath.Join(dir, "run"),
		StateDir:   filepath.Join(dir, "state"),
		Pools:      []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")},
		MTU:        1450,
		GatewayMAC: gateway,
		Sources:    []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Log:        slog.New(slog.DiscardHandler),
	}
}

// openObjects adopts or makes the node's maps, and puts what they are into the configuration.
func openObjects(c *Config, maps string, cookie uint64) (*bpf.Objects, error) {
	objects, err := bpf.Open(bpf.Options{
		Dir:      maps,
		Config:   bpf.Config{Node4: netip.MustParseAddr("192.0.2.1"), Node6: netip.MustParseAddr("2001:db8::1"), HostCookie: cookie, OverlayMTU: 1450, VNI: 1, GatewayMAC: gateway},
		Capacity: map[string]uint32{"flow_buckets": 1 + 8 + 1024, "flow_slots": 4096, "backends": 64, "slots": 64, "services": 64, "frontends": 64, "affinities": 64, "cluster_ips": 64},
		Log:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	from, to, err := objects.PodPrograms()
	if err != nil {
		return nil, errors.Join(err, objects.Close())
	}
	c.Filters = link.Filters{FromPodFD: from.FD, FromPodID: from.ID, ToPodFD: to.FD, ToPodID: to.ID}
	c.Dataplane, c.HostPorts, c.IDs = objects.Endpoints(), objects.HostPorts(), objects.IDs()
	return objects, nil
}

// open opens the maps, anew when they are open.
func (n *node) open() {
	n.t.Helper()
	if n.objects != nil {
		if err := n.objects.Close(); err != nil {
			n.t.Fatal(err)
		}
	}
	var err error
	if n.objects, err = openObjects(&n.cfg, n.maps, n.cookie); err != nil {
		n.t.Fatal(err)
	}
}

// configure sets the network configuration.
func (n *node) configure(conf func(runDir string) ([]byte, error)) {
	n.t.Helper()
	p, err := conf(n.cfg.RunDir)
	if err != nil {
		n.t.Fatal(err)
	}
	if n.network, err = libcni.NetworkConfFromBytes(p); err != nil {
		n.t.Fatal(err)
	}
}

// start opens the table, and serves and runs it until stop.
func (n *node) start() {
	n.t.Helper()
	in(n.t, n.ns, func() (err error) {
		n.table, err = Open(n.cfg)
		return err
	})
	l, err := cni.Listen(n.cfg.RunDir)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- cni.Serve(ctx, l, n.table, n.cfg.Log) }()
	go func() { ended <- n.table.Run(ctx) }()
	n.down = func() {
		cancel()
		if err := errors.Join(<-ended, <-ended, n.table.Close()); err != nil {
			n.t.Error(err)
		}
	}
}

func (n *node) stop() {
	if n.down != nil {
		n.down()
		n.down = nil
	}
}

func (n *node) restart() {
	n.t.Helper()
	n.stop()
	n.start()
}

// pod is a container of the runtime.
type pod struct {
	*libcni.RuntimeConf
	ns *os.File
}

func (n *node) pod() *pod {
	n.t.Helper()
	return n.podIn(newNamespace(n.t))
}

func (n *node) podIn(ns *os.File) *pod {
	id := fmt.Sprintf("c%d", serial.Add(1))
	return &pod{&libcni.RuntimeConf{
		ContainerID: id, NetNS: path(ns), IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", id}},
	}, ns}
}

func (p *pod) link() string {
	return cni.Attachment{ContainerID: p.ContainerID, Ifname: p.IfName}.LinkName()
}

func (n *node) add(p *pod) (*types100.Result, error) {
	var r types.Result
	err := link.InNamespace(int(n.ns.Fd()), func() (err error) {
		r, err = n.runtime.AddNetworkList(context.Background(), n.network, p.RuntimeConf)
		return err
	})
	if err != nil {
		return nil, err
	}
	return types100.GetResult(r)
}

func (n *node) mustAdd(p *pod) *types100.Result {
	n.t.Helper()
	r, err := n.add(p)
	if err != nil {
		n.t.Fatalf("ADD: %v", err)
	}
	return r
}

func (n *node) del(p *pod) error {
	return link.InNamespace(int(n.ns.Fd()), func() error {
		return n.runtime.DelNetworkList(context.Background(), n.network, p.RuntimeConf)
	})
}

func (n *node) mustDel(p *pod) {
	n.t.Helper()
	if err := n.del(p); err != nil {
		n.t.Fatalf("DEL: %v", err)
	}
}

func (n *node) check(p *pod) error {
	return link.InNamespace(int(n.ns.Fd()), func() error {
		return n.runtime.CheckNetworkList(context.Background(), n.network, p.RuntimeConf)
	})
}

func (n *node) status() error {
	return link.InNamespace(int(n.ns.Fd()), func() error {
		return n.runtime.GetStatusNetworkList(context.Background(), n.network)
	})
}

// raw runs the binary as a runtime of any kind would.
func (n *node) raw(verb, stdin string, env ...string) (stdout string, err error) {
	err = link.InNamespace(int(n.ns.Fd()), func() error {
		c := exec.Command(filepath.Join(binaries, cni.BinaryName))
		c.Env = append([]string{"CNI_COMMAND=" + verb, "CNI_PATH=" + binaries}, env...)
		c.Stdin = strings.NewReader(stdin)
		p, err := c.Output()
		stdout = string(p)
		return err
	})
	return stdout, err
}

// want fails unless err is a CNI error with the code, and words.
func want(t testing.TB, err error, code uint, words ...string) {
	t.Helper()
	e, ok := errors.AsType[*types.Error](err)
	if !ok || e.Code != code {
		t.Errorf("error %v, want code %d", err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(e.Msg, w) {
			t.Errorf("error %q lacks %q", e.Msg, w)
		}
	}
}

// eventually waits until f has no complaint.
func eventually(t testing.TB, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patient(15 * time.Second)); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// clean says what is left on the node of pods: nothing, when all are gone.
func (n *node) clean() error {
	var errs []error
	v := n.table.Status()
	if v.Endpoints != 0 || v.Removing != 0 {
		errs = append(errs, fmt.Errorf("%d endpoints and %d links being removed", v.Endpoints, v.Removing))
	}
	for _, p := range v.Pools {
		if p.Used != 0 {
			errs = append(errs, fmt.Errorf("pool %s: %d in use", p.Prefix, p.Used))
		}
	}
	links, err := n.table.veths.List("")
	if len(links) > 0 || err != nil {
		errs = append(errs, fmt.Errorf("links %v, error %v", links, err))
	}
	entries, err := n.objects.Endpoints().List()
	if len(entries) > 0 || err != nil {
		errs = append(errs, fmt.Errorf("map entries %v, error %v", entries, err))
	}
	ports, err := n.objects.HostPorts().List()
	if len(ports) > 0 || err != nil {
		errs = append(errs, fmt.Errorf("host ports %v, error %v", ports, err))
	}
	ids, err := n.objects.IDs().List(bpf.IDEndpoint)
	if len(ids) > 0 || err != nil {
		errs = append(errs, fmt.Errorf("%d ids, error %v", len(ids), err))
	}
	uses, err := n.objects.Uses()
	if err != nil {
		errs = append(errs, err)
	}
	for _, u := range uses {
		if strings.HasPrefix(u.Name, "endpoint") && u.Used != 0 {
			errs = append(errs, fmt.Errorf("map %s: %d in use", u.Name, u.Used))
		}
	}
	return errors.Join(errs...)
}

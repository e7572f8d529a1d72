// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/link"
	"github.com/fairlead/fairlead/pkg/query"
	"github.com/fairlead/fairlead/pkg/testnet/sandbox"
)

// binaries is where TestMain builds what the tests run.
var binaries string

func TestMain(m *testing.M) {
	if sandbox.Helper() {
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "fairlead-agent-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binaries = dir
	build := exec.Command("go", "build", "-o", dir+"/", module+"cmd/fairleadd", module+"plugins/fairlead-cni")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n%s", build, err, out)
		return 1
	}
	removeLeftovers()
	return m.Run()
}

const pinPrefix = "/sys/fs/bpf/fairlead-test-" // of every package's tests, followed by the owner's process id

// removeLeftovers removes the pins of runs that were killed.
func removeLeftovers() {
	dirs, _ := filepath.Glob(pinPrefix + "*-agent-*")
	for _, dir := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(dir, pinPrefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && syscall.Kill(n, 0) != nil {
			if err := bpf.Remove(dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}
}

// patience is how long the tests wait for what must come.
const patience = 15 * time.Second

// machine is a node: a namespace with an uplink, a cgroup, and folders for one agent.
type machine struct {
	t         *testing.T
	name      string
	ns        *sandbox.Namespace
	nl        *link.Handle
	group     *sandbox.Group
	dir, pins string
	manifests string
	process   *process
}

// newMachines makes machines n1 and n2 with a wire between their devices eth0, and one directory of manifests for both.
func newMachines(t *testing.T) (a, b *machine) {
	t.Helper()
	manifests := t.TempDir()
	a, b = newMachine(t, "n1", manifests), newMachine(t, "n2", manifests)
	end := func(n int) link.End {
		return link.End{Name: "eth0", MTU: 1500, Addresses: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", n)), netip.MustParsePrefix(fmt.Sprintf("2001:db8::%d/64", n)),
		}}
	}
	if err := link.Wire(a.nl, end(1), b.nl, end(2)); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func newMachine(t *testing.T, name, manifests string) *machine {
	t.Helper()
	m := &machine{t: t, name: name, ns: sandbox.NewNamespace(t), group: sandbox.NewGroup(t), dir: t.TempDir(), manifests: manifests}
	test := strings.NewReplacer("/", "_", ".", "_").Replace(t.Name())
	m.pins = fmt.Sprintf("%s%d-agent-%s-%s", pinPrefix, os.Getpid(), test, name)
	t.Cleanup(func() {
		if err := bpf.Remove(m.pins); err != nil {
			t.Error(err)
		}
	})
	var err error
	if m.nl, err = link.OpenAt(m.ns.FD()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.nl.Close)
	return m
}

// node returns the manifest of a machine's Node; n is 1 or 2.
func nodeManifest(n int, cidrs string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Node
metadata: {name: n%d}
spec: {podCIDRs: [%s]}
status: {addresses: [{type: InternalIP, address: 192.0.2.%d}, {type: InternalIP, address: "2001:db8::%d"}]}
`, n, cidrs, n, n)
}

// apply writes a manifest in one step, as the documentation asks for.
func (m *machine) apply(name, text string) {
	m.t.Helper()
	aside := filepath.Join(m.manifests, "."+name)
	if err := errors.Join(os.WriteFile(aside, []byte(text), 0o600), os.Rename(aside, filepath.Join(m.manifests, name))); err != nil {
		m.t.Fatal(err)
	}
}

// process is a running agent. It dies with the test.
type process struct {
	cmd    *exec.Cmd
	ended  chan struct{}
	mu     sync.Mutex
	output bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.Write(b)
}

func (p *process) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// start runs an agent on the machine, with further flags.
func (m *machine) start(flags ...string) *process {
	m.t.Helper()
	m.process = m.exec(append([]string{"--log-level=debug"}, flags...)...)
	return m.process
}

// run runs another command of the daemon to its end.
func (m *machine) run(command ...string) (code int, said string) {
	m.t.Helper()
	p := m.exec(command...)
	return p.wait(m.t), p.log()
}

// exec runs the daemon on the machine, with the flags that say where everything is.
func (m *machine) exec(args ...string) *process {
	m.t.Helper()
	p := &process{ended: make(chan struct{})}
	p.cmd = exec.Command(filepath.Join(binaries, "fairleadd"), append([]string{
		"--node-name=" + m.name, "--manifests=" + m.manifests, "--state-dir=" + m.path("state"), "--run-dir=" + m.path("run"),
		"--bpffs-dir=" + m.pins, "--cgroup-root=" + m.group.Path, "--cni-conf-dir=" + m.path("conf"),
	}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() { // the death signal comes when the thread that started the process ends: it waits for the process
		runtime.LockOSThread() // and never unlocked: the thread ends in the machine's namespace
		defer close(p.ended)
		err := unix.Setns(m.ns.FD(), unix.CLONE_NEWNET)
		if err == nil {
			err = p.cmd.Start()
		}
		if err != nil {
			started <- err
			return
		}
		started <- nil
		_ = p.cmd.Wait() // the exit code is looked at by stop
	}()
	if err := <-started; err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		p.kill(m.t)
		if m.t.Failed() {
			m.t.Logf("agent on %s:\n%s", m.name, p.log())
		}
	})
	return p
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

// kill is kill -9.
func (p *process) kill(t *testing.T) {
	t.Helper()
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.ended
}

// stop asks the agent to end and returns its exit code.
func (p *process) stop(t *testing.T) int {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return p.wait(t)
}

// wait returns the exit code of an agent that ends.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("agent does not end:\n%s", p.log())
	}
	return p.cmd.ProcessState.ExitCode()
}

// status waits until the agent's status is as the test wants it.
func (m *machine) status(what string, ok func(query.Status) bool) query.Status {
	m.t.Helper()
	client := query.NewClient(m.path("run/query.sock"))
	var last query.Status
	var err error
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(20 * time.Millisecond) { // nothing announces a status
		ctx, cancel := context.WithTimeout(m.t.Context(), patience)
		last, err = client.Status(ctx)
		cancel()
		if err == nil && ok(last) {
			return last
		}
		select {
		case <-m.process.ended:
			m.t.Fatalf("%s: agent on %s ended:\n%s", what, m.name, m.process.log())
		default:
		}
	}
	m.t.Fatalf("%s: agent on %s: %v, %+v", what, m.name, err, last)
	return last
}

// ready waits until the agent has done its first complete pass.
func (m *machine) ready() query.Status {
	m.t.Helper()
	return m.status("ready", func(s query.Status) bool { return s.Ready })
}

// counter returns what `fairlead drops` says of an event.
func (m *machine) counter(name string) uint64 {
	m.t.Helper()
	drops, err := query.NewClient(m.path("run/query.sock")).Drops(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	for _, c := range drops.Counters {
		if c.Name == name {
			return c.Count
		}
	}
	m.t.Fatalf("no counter %s in %v", name, drops.Counters)
	return 0
}

// pod is a network namespace that ADD connected.
type pod struct {
	m      *machine
	ns     *sandbox.Namespace
	conf   *libcni.NetworkConfigList
	cni    *libcni.CNIConfig
	rt     *libcni.RuntimeConf
	v4, v6 netip.Addr
}

// add starts a pod as a container runtime does: by libcni, the configuration that the agent wrote, and the CNI binary.
func (m *machine) add(name string) *pod {
	m.t.Helper()
	p := &pod{m: m, ns: sandbox.NewNamespace(m.t)}
	var err error
	if p.conf, err = libcni.ConfListFromFile(m.path("conf/05-fairlead.conflist")); err != nil {
		m.t.Fatal(err)
	}
	p.cni = libcni.NewCNIConfigWithCacheDir([]string{binaries}, m.path("cache"), nil)
	p.rt = &libcni.RuntimeConf{
		ContainerID: "c-" + name, NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), p.ns.FD()), IfName: "eth0",
		Args: [][2]string{{"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", name}},
	}
	r, err := p.cni.AddNetworkList(m.t.Context(), p.conf, p.rt)
	if err != nil {
		m.t.Fatalf("ADD %s: %v", name, err)
	}
	result, err := types100.GetResult(r)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, ip := range result.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		if a = a.Unmap(); a.Is4() {
			p.v4 = a
		} else {
			p.v6 = a
		}
	}
	return p
}

// del ends the pod.
func (p *pod) del() {
	p.m.t.Helper()
	if err := p.cni.DelNetworkList(p.m.t.Context(), p.conf, p.rt); err != nil {
		p.m.t.Fatalf("DEL %s: %v", p.rt.ContainerID, err)
	}
}

// serve answers every connection with the name and the client's address, and echoes lines after that.
func serve(t *testing.T, ns *sandbox.Namespace, name string) {
	t.Helper()
	l := ns.Listen(t, "tcp", "[::]:8080")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			go func() {
				defer c.Close()
				from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
				fmt.Fprintf(c, "%s %s\n", name, from.Addr().Unmap())
				_, _ = io.Copy(c, c) // until the client closes
			}()
		}
	}()
}

// dial connects from a namespace, by a socket that no socket program sees.
func dial(t *testing.T, ns *sandbox.Namespace, to netip.AddrPort) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	var err error
	ns.Do(t, func() error {
		c, err = net.DialTimeout("tcp", to.String(), 3*time.Second)
		return nil
	})
	if err == nil {
		err = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

// ask returns who answers at an address, and which address that one saw.
func ask(t *testing.T, ns *sandbox.Namespace, to netip.AddrPort) (name, client string) {
	t.Helper()
	c, err := dial(t, ns, to)
	if err != nil {
		t.Errorf("connect: %v", err)
		return "", ""
	}
	defer c.Close()
	return greeting(t, c)
}

func greeting(t *testing.T, c io.Reader) (name, client string) {
	t.Helper()
	var line [128]byte
	n, err := c.Read(line[:])
	if err != nil {
		t.Errorf("read answer: %v", err)
	}
	name, client, _ = strings.Cut(strings.TrimSpace(string(line[:n])), " ")
	return name, client
}

// echo says that an open connection works.
func echo(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("sent %q, came back as %q", text, got)
	}
	return nil
}

// dialIn connects from a namespace.
func dialIn(ns *sandbox.Namespace) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = link.InNamespace(ns.FD(), func() (err error) {
			var d net.Dialer
			c, err = d.DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/link"
)

// victimEnv makes the test binary an agent that is killed at a point: "DIR,MAPS,COOKIE,POINT".
const victimEnv = "FAIRLEAD_ENDPOINT_VICTIM"

func victim() {
	arg := strings.Split(os.Getenv(victimEnv), ",")
	err := func() error {
		cookie, err := strconv.ParseUint(arg[2], 10, 64)
		if err != nil {
			return err
		}
		c := testConfig(arg[0])
		objects, err := openObjects(&c, arg[1], cookie)
		if err != nil {
			return err
		}
		k := &killer{point: arg[3]}
		c.Dataplane, c.HostPorts, c.IDs = killTable{c.Dataplane, k}, killHostPorts{c.HostPorts, k}, killIDs{c.IDs, k}
		table, err := Open(c)
		if err != nil {
			return err
		}
		l, err := cni.Listen(c.RunDir)
		if err != nil {
			return err
		}
		k.armed.Store(true)
		fmt.Println("ready")
		go func() { // the test ends us by this, also when it dies itself
			_, _ = os.Stdin.Read(make([]byte, 1))
			os.Exit(0)
		}()
		var g errgroup.Group
		g.Go(func() error { return table.Run(context.Background()) })
		g.Go(func() error { return cni.Serve(context.Background(), l, table, c.Log) })
		return errors.Join(g.Wait(), objects.Close())
	}()
	fmt.Println(err)
	os.Exit(1)
}

// killer ends the process before or after a step of a verb.
type killer struct {
	point string
	armed atomic.Bool
}

func (k *killer) at(point string) {
	if k.armed.Load() && k.point == point {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}

type killTable struct {
	Dataplane
	k *killer
}

func (t killTable) Put(e bpf.Endpoint) error {
	t.k.at("before put")
	err := t.Dataplane.Put(e)
	t.k.at("after put")
	return err
}

func (t killTable) Delete(id uint32) error {
	t.k.at("before delete")
	err := t.Dataplane.Delete(id)
	t.k.at("after delete")
	return err
}

type killHostPorts struct {
	HostPorts
	k *killer
}

func (h killHostPorts) Put(p bpf.HostPort) error {
	h.k.at("before port")
	err := h.HostPorts.Put(p)
	h.k.at("after port")
	return err
}

func (h killHostPorts) Delete(k bpf.FrontendKey) error {
	h.k.at("before port delete")
	err := h.HostPorts.Delete(k)
	h.k.at("after port delete")
	return err
}

type killIDs struct {
	IDs
	k *killer
}

func (i killIDs) Acquire(kind bpf.IDKind, d string) (bpf.ID, error) {
	i.k.at("before acquire")
	id, err := i.IDs.Acquire(kind, d)
	i.k.at("after acquire")
	return id, err
}

func (i killIDs) Release(kind bpf.IDKind, d string) error {
	i.k.at("before release")
	err := i.IDs.Release(kind, d)
	i.k.at("after release")
	return err
}

// victim starts an agent in a process of its own.
func (n *node) victim(point string) *exec.Cmd {
	n.t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), fmt.Sprintf("%s=%s,%s,%d,%s", victimEnv, n.dir, n.maps, n.cookie, point))
	c.Stderr = os.Stderr
	if _, err := c.StdinPipe(); err != nil { // closed when we end
		n.t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	in(n.t, n.ns, c.Start)
	buf := make([]byte, 256)
	if k, err := out.Read(buf); err != nil || !strings.HasPrefix(string(buf[:k]), "ready") {
		n.t.Fatalf("agent: %s, %v", buf[:k], err)
	}
	return c
}

// kill ends an agent and waits for its end.
func kill(t testing.TB, c *exec.Cmd) {
	t.Helper()
	if err := c.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	_ = c.Wait() // it was killed: that is its error
}

// Killed at any step, the agent leaves nothing that the next one does not take back, and what was whole stays.
func TestAgentKilledAtAnyStep(t *testing.T) {
	for _, point := range []string{"before acquire", "after acquire", "before put", "after put", "before port", "after port"} {
		t.Run("ADD "+point, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, nil)
			whole := n.pod().maps(map[string]any{"hostPort": 8080, "containerPort": 80})
			first := n.mustAdd(whole)
			n.stop()
			c := n.victim(point)
			p := n.pod().maps(map[string]any{"hostPort": 8081, "containerPort": 80})
			_, err := n.add(p)
			want(t, err, 11, "agent is away")
			kill(t, c)
			n.open()
			n.start()
			if got := n.table.List(); len(got) != 1 || got[0].ContainerID != whole.ContainerID {
				t.Errorf("endpoints after the restart: %+v", got)
			}
			if err := n.check(whole); err != nil {
				t.Error(err)
			}
			n.exposes(whole, "0.0.0.0:8080/tcp to 80", "[::]:8080/tcp to 80")
			second := n.mustAdd(p) // the runtime tries again
			if first.IPs[0].Address.IP.Equal(second.IPs[0].Address.IP) {
				t.Errorf("%s twice", first.IPs[0].Address.IP)
			}
			n.mustDel(p)
			n.mustDel(whole)
			eventually(t, n.clean)
		})
	}
	for _, point := range []string{"before port delete", "after port delete", "before delete", "after delete", "before release", "after release"} {
		t.Run("DEL "+point, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, nil)
			whole, p := n.pod().maps(map[string]any{"hostPort": 8080, "containerPort": 80}), n.pod().maps(map[string]any{"hostPort": 8081, "containerPort": 80})
			n.mustAdd(whole)
			n.mustAdd(p)
			n.stop()
			c := n.victim(point)
			n.mustDel(p) // succeeds in any case
			if strings.HasSuffix(point, "release") {
				_ = c.Wait() // that step comes after the answer
			}
			kill(t, c)
			n.open()
			n.start()
			if got := n.table.List(); len(got) != 1 || got[0].ContainerID != whole.ContainerID {
				t.Errorf("endpoints after the restart: %+v", got)
			}
			n.exposes(whole, "0.0.0.0:8080/tcp to 80", "[::]:8080/tcp to 80")
			if err := n.check(whole); err != nil {
				t.Error(err)
			}
			n.mustDel(whole)
			eventually(t, n.clean)
		})
	}
}

// Under load, killed at any moment.
func TestAgentKilledUnderLoad(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.stop()
	var mu sync.Mutex
	live := map[*pod]string{}
	for round := range 3 {
		c := n.victim("")
		ctx, cancel := context.WithCancel(t.Context())
		var g sync.WaitGroup
		for range 6 {
			g.Go(func() {
				for ctx.Err() == nil {
					ns, err := makeNamespace()
					if err != nil {
						t.Error(err)
						return
					}
					defer ns.Close()
					p := n.podIn(ns)
					r, err := n.add(p)
					if err != nil {
						if err := n.del(p); err != nil {
							t.Errorf("DEL after a failed ADD: %v", err)
						}
						continue
					}
					if rand.IntN(2) == 0 {
						if err := n.del(p); err != nil {
							t.Errorf("DEL: %v", err)
						}
						continue
					}
					mu.Lock()
					live[p] = r.IPs[0].Address.IP.String()
					mu.Unlock()
				}
			})
		}
		time.Sleep(time.Duration(200+rand.IntN(300)) * time.Millisecond) // the moment of the kill is what is random
		cancel()
		kill(t, c)
		g.Wait()
		seen := map[string]bool{}
		for _, a := range live {
			if seen[a] {
				t.Fatalf("round %d: %s is given twice", round, a)
			}
			seen[a] = true
		}
		// The namespaces of this round are gone, and the runtime calls DEL for the rest after the restart.
		c = n.victim("")
		for p := range live {
			if err := n.del(p); err != nil {
				t.Errorf("round %d: DEL: %v", round, err)
			}
			delete(live, p)
		}
		kill(t, c)
	}
	n.open()
	n.start()
	eventually(t, n.clean)
}

func TestDelWithoutAgent(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p, q := n.pod(), n.pod()
	n.mustAdd(p)
	n.mustAdd(q)
	n.stop()
	began := time.Now()
	n.mustDel(p)
	if took := time.Since(began); took > patient(time.Second) {
		t.Errorf("DEL without an agent took %s", took)
	}
	if out := sh(t, n.ns, "ip -br link"); strings.Contains(out, p.link()) {
		t.Errorf("the link is there:\n%s", out)
	}
	all, err := cni.ReadTombstones(n.cfg.RunDir)
	if err != nil || len(all) != 1 {
		t.Fatalf("tombstones %v, %v", all, err)
	}
	n.start()
	if got := n.table.List(); len(got) != 1 || got[0].ContainerID != q.ContainerID {
		t.Errorf("endpoints: %+v", got)
	}
	// One that is older than the endpoint says nothing about it.
	if err := cni.WriteTombstone(n.cfg.RunDir, cni.Attachment{ContainerID: q.ContainerID, Ifname: "eth0"}); err != nil {
		t.Fatal(err)
	}
	n.table.mu.Lock()
	n.table.endpoints[q.link()].Created = sinceBoot()
	n.table.mu.Unlock()
	if err := n.table.bury(); err != nil {
		t.Fatal(err)
	}
	if len(n.table.List()) != 1 {
		t.Error("an old tombstone took a newer endpoint")
	}
	// And one that comes while the agent runs is done soon.
	if err := cni.WriteTombstone(n.cfg.RunDir, cni.Attachment{ContainerID: q.ContainerID, Ifname: "eth0"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, n.clean)
	if all, err := cni.ReadTombstones(n.cfg.RunDir); err != nil || len(all) != 0 {
		t.Errorf("tombstones %v, %v", all, err)
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	var pods []*pod
	for range 5 {
		p := n.pod()
		n.mustAdd(p)
		pods = append(pods, p)
	}
	gone := pods[0]
	n.mustDel(gone)
	before := n.table.List()
	n.stop()
	n.open() // other programs, the same maps
	n.start()
	after := n.table.List()
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("before %+v\nafter %+v", before, after)
	}
	for _, p := range pods[1:] {
		if err := n.check(p); err != nil { // with the new programs
			t.Error(err)
		}
	}
	if c := n.table.Status().Pools[0]; c.Cooling != 1 || c.Used != 4 {
		t.Errorf("the cooldown was forgotten: %+v", c)
	}
	for _, p := range pods {
		n.mustDel(p)
	}
	eventually(t, n.clean)
}

func TestRebootFreesEverything(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *Config) { c.BootID = "boot-1" })
	p, q := n.pod(), n.pod()
	first := n.mustAdd(p)
	n.mustAdd(q)
	n.mustDel(q)
	n.stop()
	// What a reboot leaves is the disk.
	sh(t, n.ns, "ip link del "+p.link())
	n.cfg.BootID = "boot-2"
	old := n.maps
	n.maps += "-2"
	n.open()
	t.Cleanup(func() {
		if err := bpf.Remove(old); err != nil {
			t.Error(err)
		}
	})
	n.start()
	if got := n.table.List(); len(got) != 0 {
		t.Errorf("endpoints: %+v", got)
	}
	if c := n.table.Status().Pools[0]; c.Used != 0 {
		t.Errorf("pool: %+v", c)
	}
	p.NetNS = "" // as containerd does for a sandbox of before the reboot
	n.mustDel(p)
	r := n.mustAdd(n.pod())
	if r.IPs[0].Address.IP.Equal(first.IPs[0].Address.IP) {
		t.Errorf("%s is used again at once", r.IPs[0].Address.IP)
	}
}

func TestLostJournalIsRebuiltFromTheKernel(t *testing.T) {
	for name, lose := range map[string]func(dir string) error{
		"directory removed": os.RemoveAll,
		"files emptied": func(dir string) error {
			return errors.Join(os.Truncate(filepath.Join(dir, snapshotName), 0), os.Truncate(filepath.Join(dir, journalName), 0))
		},
		"damaged in the middle": func(dir string) error {
			p, err := os.ReadFile(filepath.Join(dir, journalName))
			if err != nil {
				return err
			}
			for i := len(p) / 3; i < len(p)*2/3; i++ {
				p[i] = 'x'
			}
			return os.WriteFile(filepath.Join(dir, journalName), p, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nil)
			var pods []*pod
			for range 4 {
				p := n.pod()
				n.mustAdd(p)
				pods = append(pods, p)
			}
			n.stop()
			if err := lose(n.cfg.StateDir); err != nil {
				t.Fatal(err)
			}
			n.start()
			for _, p := range pods {
				if err := n.check(p); err != nil {
					t.Error(err)
				}
			}
			r := n.mustAdd(n.pod())
			if got := r.IPs[0].Address.IP.String(); got != "10.1.0.6" {
				t.Errorf("new pod has %s, want the first that is free, 10.1.0.6", got)
			}
			for _, p := range pods {
				n.mustDel(p)
			}
		})
	}
}

// failing fails a step of an ADD.
type failing struct {
	Dataplane
	put error
}

func (f *failing) Put(e bpf.Endpoint) error {
	if f.put != nil {
		return f.put
	}
	return f.Dataplane.Put(e)
}

func TestFailedAddTakesEverythingBack(t *testing.T) {
	t.Parallel()
	f := &failing{}
	n := newNode(t, func(c *Config) {
		f.Dataplane = c.Dataplane
		c.Dataplane = f
		c.Pools = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/28"), netip.MustParsePrefix("fd00:1::/126")}
	})
	empty := func(step string, p *pod) {
		t.Helper()
		if err := n.clean(); err != nil {
			t.Errorf("%s: %v", step, err)
		}
		if out := sh(t, p.ns, "ip -br link"); strings.Contains(out, "eth0") {
			t.Errorf("%s: interface left in the pod: %s", step, out)
		}
	}
	p := n.pod()
	f.put = errors.New("map endpoints is full")
	_, err := n.add(p)
	want(t, err, uint(cni.CodeInternal), "map endpoints is full")
	empty("map", p)

	f.put = nil
	good := n.cfg.Filters
	n.table.cfg.Filters = link.Filters{FromPodFD: 1 << 20, ToPodFD: 1 << 20}
	_, err = n.add(p)
	want(t, err, uint(cni.CodeInternal), "attach")
	empty("filters", p)
	n.table.cfg.Filters = good

	sources := n.table.cfg.Sources
	n.table.cfg.Sources = []netip.Addr{netip.MustParseAddr("198.51.100.1")}
	_, err = n.add(p)
	want(t, err, uint(cni.CodeInternal), "add route")
	empty("route", p)
	n.table.cfg.Sources = sources

	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	n.table.mu.Lock()
	whole := n.table.journal.file
	n.table.journal.file = full
	n.table.mu.Unlock()
	_, err = n.add(p)
	want(t, err, uint(cni.CodeIO), "journal")
	empty("disk", p)
	n.table.mu.Lock()
	n.table.journal.file = whole
	n.table.mu.Unlock()
	n.mustAdd(p)
	n.table.mu.Lock()
	n.table.journal.file = full
	n.table.mu.Unlock()
	n.mustDel(p) // goes on a full disk
	n.table.mu.Lock()
	n.table.journal.file = whole
	n.table.mu.Unlock()
	if err := full.Close(); err != nil {
		t.Fatal(err)
	}

	// The second family has two addresses only: when they are used up, nothing of the first may stay.
	a, b := n.pod(), n.pod()
	n.mustAdd(a)
	n.mustAdd(b)
	_, err = n.add(n.pod())
	want(t, err, 11, "fd00:1::/126", "full")
	if v := n.table.Status(); v.Pools[0].Used != 2 || v.Pools[1].Used != 2 || v.Endpoints != 2 {
		t.Errorf("half an ADD stayed: %+v", v)
	}
	n.restart()
	if got := n.table.List(); len(got) != 2 {
		t.Errorf("after the restart: %+v", got)
	}
	n.mustDel(a)
	n.mustDel(b)
	eventually(t, n.clean)
}

func TestFiltersComeBack(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p := n.pod()
	n.mustAdd(p)
	sh(t, n.ns, "tc qdisc del dev "+p.link()+" clsact")
	want(t, n.check(p), 101, "from_pod")
	n.table.verify(t.Context())
	if err := n.check(p); err != nil {
		t.Error(err)
	}
	if v := n.table.Status(); v.Repaired != 1 {
		t.Errorf("repaired %d", v.Repaired)
	}
	n.mustDel(p)
}

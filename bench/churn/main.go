// SPDX-License-Identifier: Apache-2.0

// Command churn measures how long the CNI verbs ADD and DEL take for pods that come and go, as a runtime sees it: from the start of the
// plugin's process to its end, by libcni. Fairlead and ptp with host-local run one after the other on the same machine, each with an
// empty node of its own (a network namespace).
//
// For each number of parallel callers: namespaces are made, ADD is called for all of them, then DEL for all, each followed by the end of
// the namespace, as runtimes do. Only the two verbs are timed. "floor" is the plugin's VERSION in the same loop: what a process costs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/endpoint"
	"github.com/fairlead/fairlead/pkg/link"
)

func main() {
	n := flag.Int("n", 320, "pods per round, at most 1000")
	parallel := flag.String("parallel", "1,8,32", "parallel callers, one round for each")
	rate := flag.Float64("rate", 0, "pods per second over all callers; 0: as fast as they come")
	bin := flag.String("bin", "", "directory of fairlead-cni, ptp and host-local (default: built)")
	only := flag.String("only", "", "only plugins whose name contains this")
	asJSON := flag.Bool("json", false, "print JSON lines")
	agent := flag.String("agent", "", "run as the agent with state in this directory (used by churn itself)")
	profile := flag.String("profile", "", "CPU profile of the agent")
	v4 := flag.Bool("v4", false, "IPv4 only (used by churn itself)")
	flag.Parse()
	var err error
	if *agent != "" {
		err = serve(*agent, *v4, *profile)
	} else {
		err = measure(*n, *parallel, *rate, *bin, *only, *profile, *asJSON)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "churn:", err)
		os.Exit(1)
	}
}

// plugin is one way to connect pods.
type plugin struct {
	name  string
	agent bool
	v4    bool
	most  int // pods per round; 0: as many as asked for
	conf  func(dir string) string
}

func plugins() []plugin {
	fairlead := func(dir string) string {
		return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"churn","plugins":[{"type":"fairlead-cni","runDir":%q}]}`, dir)
	}
	ptp := func(ranges string) func(string) string {
		return func(dir string) string {
			return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"churn","plugins":[{"type":"ptp","mtu":1450,"ipam":{"type":"host-local","dataDir":%q,"ranges":[%s]}}]}`, dir, ranges)
		}
	}
	return []plugin{
		{"fairlead, dual stack", true, false, 0, fairlead},
		// Seconds each: it waits for the kernel's duplicate address detection.
		{"ptp + host-local, dual stack", false, false, 32, ptp(`[{"subnet":"10.1.0.0/22"}],[{"subnet":"fd00:1::/64"}]`)},
		{"fairlead, IPv4", true, true, 0, fairlead},
		{"ptp + host-local, IPv4", false, true, 0, ptp(`[{"subnet":"10.1.0.0/22"}]`)},
	}
}

// row is one line of the result. Times in milliseconds.
type row struct {
	Plugin   string  `json:"plugin"`
	Parallel int     `json:"parallel"`
	Verb     string  `json:"verb"`
	N        int     `json:"n"`
	P50      float64 `json:"p50ms"`
	P90      float64 `json:"p90ms"`
	P99      float64 `json:"p99ms"`
	Max      float64 `json:"maxms"`
}

func measure(n int, parallel string, rate float64, bin, only, profile string, asJSON bool) error {
	if n < 1 || n > 1000 {
		return fmt.Errorf("-n %d: 1 to 1000", n)
	}
	var rounds []int
	for _, s := range strings.Split(parallel, ",") {
		p, err := strconv.Atoi(s)
		if err != nil || p < 1 {
			return fmt.Errorf("-parallel %q: not a list of numbers", parallel)
		}
		rounds = append(rounds, p)
	}
	work, err := os.MkdirTemp("", "fairlead-churn-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if bin == "" {
		bin = filepath.Join(work, "bin")
		if err := build(bin); err != nil {
			return err
		}
	}
	print := func(r row) {
		if asJSON {
			_ = json.NewEncoder(os.Stdout).Encode(r) // stdout is gone: nobody reads the rest either
			return
		}
		fmt.Printf("%-30s %8d  %-7s %5d %8.2f %8.2f %8.2f %8.2f\n", r.Plugin, r.Parallel, r.Verb, r.N, r.P50, r.P90, r.P99, r.Max)
	}
	if !asJSON {
		fmt.Printf("%-30s %8s  %-7s %5s %8s %8s %8s %8s\n", "plugin", "parallel", "verb", "n", "p50 ms", "p90", "p99", "max")
	}
	for i, p := range plugins() {
		if !strings.Contains(p.name, only) {
			continue
		}
		if err := churn(p, filepath.Join(work, strconv.Itoa(i)), bin, profile, n, rounds, rate, print); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func build(bin string) error {
	for dir, packages := range map[string][]string{
		".":                 {"./plugins/fairlead-cni"},
		"bench/churn/peers": {"github.com/containernetworking/plugins/plugins/main/ptp", "github.com/containernetworking/plugins/plugins/ipam/host-local"},
	} {
		c := exec.Command("go", append([]string{"build", "-C", dir, "-trimpath", "-ldflags", "-s -w", "-o", bin + "/"}, packages...)...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		c.Stderr = os.Stderr
		if err := c.Run(); err != nil {
			return fmt.Errorf("build %v (run in the root of the repository): %w", packages, err)
		}
	}
	return nil
}

// churn measures one plugin on a node of its own.
func churn(p plugin, dir, bin, profile string, n int, rounds []int, rate float64, print func(row)) (err error) {
	node, err := namespace()
	if err != nil {
		return err
	}
	defer node.Close()
	if p.most > 0 {
		n = min(n, p.most)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	setup := exec.Command("sh", "-ec", "ip link set lo up; ip addr add 192.0.2.1/32 dev lo; ip addr add 2001:db8::1/128 dev lo; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	setup.Stderr = os.Stderr
	if err := link.InNamespace(int(node.Fd()), setup.Run); err != nil {
		return fmt.Errorf("set up node: %w", err)
	}
	if p.agent {
		stop, err := startAgent(node, dir, profile, p.v4)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	list, err := libcni.NetworkConfFromBytes([]byte(p.conf(dir)))
	if err != nil {
		return err
	}
	runtimeDir := libcni.NewCNIConfigWithCacheDir([]string{bin}, filepath.Join(dir, "cache"), nil)
	ctx := context.Background()
	for _, parallel := range rounds {
		pods := make([]*libcni.RuntimeConf, n)
		spaces := make([]*os.File, n)
		for i := range pods {
			if spaces[i], err = namespace(); err != nil {
				return err
			}
			pods[i] = &libcni.RuntimeConf{
				ContainerID: fmt.Sprintf("churn-%d-%d", parallel, i), IfName: "eth0",
				NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), spaces[i].Fd()),
			}
		}
		phase := func(verb string, f func(i int) error, after func(i int) error) error {
			took, err := timed(node, n, parallel, rate, f, after)
			if err != nil {
				return fmt.Errorf("%s: %w", verb, err)
			}
			print(summary(p.name, parallel, verb, took))
			return nil
		}
		version := func(int) error {
			c := exec.Command(filepath.Join(bin, list.Plugins[0].Network.Type))
			c.Env = []string{"CNI_COMMAND=VERSION", "CNI_PATH=" + bin}
			return c.Run()
		}
		err = errors.Join(
			phase("floor", version, nil),
			phase("ADD", func(i int) error { _, err := runtimeDir.AddNetworkList(ctx, list, pods[i]); return err }, nil),
			phase("DEL", func(i int) error { return runtimeDir.DelNetworkList(ctx, list, pods[i]) }, func(i int) error { return spaces[i].Close() }))
		if err != nil {
			return err
		}
		if err := drained(node); err != nil {
			return err
		}
	}
	return nil
}

// timed calls f for 0 to n-1 in so many goroutines, each on a thread in the node's namespace, and returns how long each call took.
func timed(node *os.File, n, parallel int, rate float64, f, after func(int) error) ([]time.Duration, error) {
	took := make([]time.Duration, n)
	next := make(chan int)
	go func() {
		defer close(next)
		began := time.Now()
		for i := range n {
			if rate > 0 {
				time.Sleep(time.Until(began.Add(time.Duration(float64(i) / rate * float64(time.Second)))))
			}
			next <- i
		}
	}()
	var g errgroup.Group
	var mu sync.Mutex
	var first error
	for range parallel {
		g.Go(func() error {
			return link.InNamespace(int(node.Fd()), func() error {
				for i := range next {
					began := time.Now()
					err := f(i)
					took[i] = time.Since(began)
					if err == nil && after != nil {
						err = after(i)
					}
					if err != nil {
						mu.Lock()
						first = errors.Join(first, err)
						mu.Unlock()
					}
				}
				return nil
			})
		})
	}
	return took, errors.Join(g.Wait(), first)
}

func summary(name string, parallel int, verb string, took []time.Duration) row {
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[min(len(took)-1, int(q*float64(len(took))))].Microseconds()) / 1000
	}
	return row{name, parallel, verb, len(took), at(0.5), at(0.9), at(0.99), at(1)}
}

// drained waits until the kernel has removed every pod's link, so that one round does not pay for the one before.
func drained(node *os.File) error {
	veths, err := openVeths(node)
	if err != nil {
		return err
	}
	defer veths.Close()
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		all, err := veths.List("")
		if err != nil || len(all) == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d links are left", len(all))
		}
	}
}

func openVeths(node *os.File) (v *link.Veths, err error) {
	err = link.InNamespace(int(node.Fd()), func() error {
		v, err = link.OpenVeths()
		return err
	})
	return v, err
}

// namespace makes a network namespace that lives as long as the file is open and somebody uses it.
func namespace() (f *os.File, err error) {
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

// startAgent runs this program as the agent in the node's namespace.
func startAgent(node *os.File, dir, profile string, v4 bool) (stop func() error, err error) {
	c := exec.Command("/proc/self/exe", "-agent", dir, "-v4="+strconv.FormatBool(v4), "-profile", profile)
	c.Stderr = os.Stderr
	in, err := c.StdinPipe() // its end ends the agent, also when we die
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := link.InNamespace(int(node.Fd()), c.Start); err != nil {
		return nil, err
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		return nil, errors.Join(fmt.Errorf("start agent: %w", err), in.Close(), c.Wait())
	}
	return func() error { return errors.Join(in.Close(), c.Wait()) }, nil
}

// serve is the agent: the endpoint table with the real maps and programs, and nothing else.
func serve(dir string, v4 bool, profile string) (err error) {
	finish, err := startProfile(profile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, finish()) }()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	gateway := [6]byte{2, 0, 0, 0, 0, 0xfe}
	pins := fmt.Sprintf("/sys/fs/bpf/fairlead-churn-%d", os.Getpid())
	objects, err := bpf.Open(bpf.Options{Dir: pins, Config: bpf.Config{GatewayMAC: gateway, OverlayMTU: 1450, VNI: 1}, Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, objects.Close(), bpf.Remove(pins)) }()
	from, to, err := objects.PodPrograms()
	if err != nil {
		return err
	}
	pools := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/22"), netip.MustParsePrefix("fd00:1::/64")}
	if v4 {
		pools = pools[:1]
	}
	table, err := endpoint.Open(endpoint.Config{
		RunDir: dir, StateDir: filepath.Join(dir, "state"), Pools: pools, MTU: 1450, GatewayMAC: gateway,
		Sources:   []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Filters:   link.Filters{FromPodFD: from.FD, FromPodID: from.ID, ToPodFD: to.FD, ToPodID: to.ID},
		Dataplane: objects.Endpoints(), HostPorts: objects.HostPorts(), IDs: objects.IDs(), Log: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, table.Close()) }()
	l, err := cni.Listen(dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return table.Run(ctx) })
	g.Go(func() error { return cni.Serve(ctx, l, table, log) })
	if _, err := os.Stdout.Write([]byte{'\n'}); err != nil {
		cancel()
		return errors.Join(err, g.Wait())
	}
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the parent closes it or dies
	cancel()
	for verb, c := range table.Status().Verbs {
		fmt.Fprintf(os.Stderr, "  in the agent: %-4s %6d calls, mean %.2f ms, max %.2f ms\n", verb, c.Calls,
			float64(c.Total.Microseconds())/float64(c.Calls)/1000, float64(c.Max.Microseconds())/1000)
	}
	return g.Wait()
}

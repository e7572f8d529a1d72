// SPDX-License-Identifier: Apache-2.0

// Command demo shows the main job on one machine: three nodes in network namespaces, pods made by the CNI binary, a Service, a backend that
// goes, an agent that is killed, all with real traffic that must not fail.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/pkg/testnet"
	"github.com/fairlead/fairlead/pkg/testnet/traffic"
)

func main() {
	keep := flag.Bool("keep", false, "leave the network up and say how to enter it")
	down := flag.Bool("down", false, "remove the networks that were kept")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, *keep, *down)
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted; everything is removed")
	}
	if err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, keep, down bool) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root: network namespaces and BPF")
	}
	if down {
		return testnet.Down()
	}
	d := &demo{start: time.Now(), out: os.Stdout}
	d.say("build the binaries and three nodes, each a network namespace with its own agent")
	d.net, err = testnet.New(ctx, testnet.Options{Nodes: 3})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.net.Close()) }()
	if err := d.steps(ctx); err != nil {
		return err
	}
	d.say("done: nothing failed")
	if keep {
		return d.keep()
	}
	return nil
}

type demo struct {
	net    *testnet.Net
	start  time.Time
	out    io.Writer
	client *testnet.Pod
	web    []*testnet.Pod
}

const port = 8080

var vips = []netip.Addr{netip.MustParseAddr("10.96.0.80"), netip.MustParseAddr("fd00:96::80")}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "%5.1fs  %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) show(format string, args ...any) {
	fmt.Fprintf(d.out, "          "+format+"\n", args...)
}

func (d *demo) steps(ctx context.Context) error {
	for _, step := range []func(context.Context) error{d.agents, d.pods, d.reach, d.balance, d.remove, d.kill} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) agents(ctx context.Context) error {
	if err := d.net.Start(ctx); err != nil {
		return err
	}
	for _, n := range d.net.Nodes {
		d.show("%s  %v  pods %v", n.Name, n.IPs, n.PodCIDRs)
	}
	return nil
}

func (d *demo) pods(ctx context.Context) error {
	d.say("pods, by the CNI binary: a client on the first node, a web server on each")
	var err error
	if d.client, err = d.net.Nodes[0].AddPod(ctx, testnet.PodSpec{Name: "client"}); err != nil {
		return err
	}
	d.show("client  %v", d.client.IPs)
	for i, n := range d.net.Nodes {
		p, err := n.AddPod(ctx, testnet.PodSpec{Name: fmt.Sprintf("web-%d", i), Labels: map[string]string{"app": "web"}})
		if err != nil {
			return err
		}
		if _, err := p.Serve(ctx, port); err != nil {
			return err
		}
		d.web = append(d.web, p)
		d.show("%s on %s  %v", p.Name, n.Name, p.IPs)
	}
	return nil
}

// get asks from a scope and returns the name of who answered.
func (d *demo) get(ctx context.Context, from testnet.Scope, to netip.AddrPort) (name, seenAs string, err error) {
	out, err := from.Run(ctx, d.net.Binaries.Helper, "get", "http://"+to.String())
	if err != nil {
		return "", "", err
	}
	name, seenAs, _ = strings.Cut(strings.TrimSpace(string(out)), " ")
	return name, seenAs, nil
}

func (d *demo) reach(ctx context.Context) error {
	d.say("pod to pod on one node and across nodes, node to pod, pod to outside; IPv4 and IPv6")
	if _, err := d.net.Beyond.Serve(ctx, port); err != nil {
		return err
	}
	for i := range 2 {
		v6 := i == 1
		for _, c := range []struct {
			what string
			from testnet.Scope
			to   netip.Addr
			want string
		}{
			{"client to the pod beside it", d.client.Scope, d.web[0].IP(v6), "web-0"},
			{"client to a pod of the second node", d.client.Scope, d.web[1].IP(v6), "web-1"},
			{"node to its own pod", d.net.Nodes[0].Scope, d.web[0].IP(v6), "web-0"},
			{"node to a pod of the third node", d.net.Nodes[0].Scope, d.web[2].IP(v6), "web-2"},
			{"client to outside", d.client.Scope, d.net.Outside[i], "beyond"},
		} {
			name, seenAs, err := d.get(ctx, c.from, netip.AddrPortFrom(c.to, port))
			if err == nil && name != c.want {
				err = fmt.Errorf("answered by %s", name)
			}
			if err != nil {
				return fmt.Errorf("%s, %s: %w", c.what, c.to, err)
			}
			d.show("%-36s %s answers to %s", c.what, name, seenAs)
		}
	}
	return nil
}

// counts returns "name n" for each backend.
func counts(m map[string]int) string {
	var s []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		s = append(s, fmt.Sprintf("%s %d", name, m[name]))
	}
	return strings.Join(s, ", ")
}

func (d *demo) balance(ctx context.Context) error {
	d.say("a Service spreads requests over all backends")
	err := d.net.PutService(testnet.Service{
		Name: "web", ClusterIPs: vips, Selector: map[string]string{"app": "web"}, Ports: []testnet.ServicePort{
			{Name: "http", Port: 80, TargetPort: port}, {Name: "udp", Protocol: "UDP", Port: 80, TargetPort: port},
		},
	})
	if err != nil {
		return err
	}
	if err := d.backends(ctx, len(d.web)); err != nil {
		return err
	}
	for _, vip := range vips {
		r, err := d.load(ctx, traffic.Load{URL: "http://" + netip.AddrPortFrom(vip, 80).String(), New: time.Millisecond, Duration: time.Second})
		if err != nil {
			return err
		}
		if len(r.Backends) != len(d.web) {
			return fmt.Errorf("%s: %d of %d backends answered: %s", vip, len(r.Backends), len(d.web), r)
		}
		d.show("%-12s %d requests: %s", vip, r.Connects, counts(r.Backends))
	}
	return nil
}

func (d *demo) backends(ctx context.Context, want int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for _, n := range d.net.Nodes {
		if err := n.Backends(ctx, "default", "web", want); err != nil {
			return err
		}
	}
	return nil
}

// load runs traffic in the client pod; traffic of which anything failed is an error.
func (d *demo) load(ctx context.Context, l traffic.Load) (traffic.Report, error) {
	var r traffic.Report
	arg, err := json.Marshal(l)
	if err != nil {
		return r, err
	}
	out, err := d.client.Run(ctx, d.net.Binaries.Helper, "load", string(arg))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("read report: %w", err)
	}
	if !r.Clean() {
		return r, errors.New("traffic failed: " + r.String())
	}
	return r, nil
}

// during runs something while traffic flows.
func (d *demo) during(ctx context.Context, l traffic.Load, do func(context.Context) error) (traffic.Report, error) {
	type result struct {
		traffic.Report
		error
	}
	loaded := make(chan result, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		r, err := d.load(ctx, l)
		loaded <- result{r, err}
	}()
	if err := do(ctx); err != nil {
		return traffic.Report{}, err
	}
	r := <-loaded
	return r.Report, r.error
}

func (d *demo) remove(ctx context.Context) error {
	d.say("a backend goes, while requests go on")
	last := d.web[len(d.web)-1]
	r, err := d.during(ctx, traffic.Load{URL: "http://" + netip.AddrPortFrom(vips[0], 80).String(), New: time.Millisecond, Duration: 4 * time.Second},
		func(ctx context.Context) error {
			// As in a cluster: the Pod leaves its Service first, then it ends.
			if err := d.net.RemoveManifest("pod-default-" + last.Name); err != nil {
				return err
			}
			if err := d.backends(ctx, len(d.web)-1); err != nil {
				return err
			}
			time.Sleep(500 * time.Millisecond) // its grace period: requests that it has are answered
			return last.Remove(ctx)
		})
	if err != nil {
		return err
	}
	d.web = d.web[:len(d.web)-1]
	d.show("%d requests, none failed: %s", r.Connects, counts(r.Backends))
	return nil
}

func (d *demo) kill(ctx context.Context) error {
	d.say("agents are killed (SIGKILL) and started again, while 50 kept connections, new ones and a UDP stream go on")
	vip := netip.AddrPortFrom(vips[0], 80).String()
	r, err := d.during(ctx, traffic.Load{
		URL: "http://" + vip, KeepAlive: 50, New: 5 * time.Millisecond, UDP: vip, UDPPace: 5 * time.Millisecond, Duration: 8 * time.Second,
	}, func(ctx context.Context) error {
		for _, n := range []int{0, 1} {
			node := d.net.Nodes[n]
			time.Sleep(time.Second)
			node.Kill()
			time.Sleep(time.Second)
			if err := node.Start(); err != nil {
				return err
			}
			if err := node.Ready(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.show("%d requests on kept connections, %d on new ones, %d datagrams: none failed", r.Requests, r.Connects, r.Datagrams)
	return nil
}

// keep leaves everything as it is and says how to look at it.
func (d *demo) keep() error {
	if err := d.net.Keep(); err != nil {
		return err
	}
	d.say("kept; `make demo-down` removes it. A shell on a node or in a pod, and what its agent says:")
	for _, n := range d.net.Nodes {
		d.show("%s: %s", n.Name, n.Enter())
	}
	d.show("client: %s", d.client.Enter())
	d.show("bin/fairlead --run-dir %s status   (after make build)", d.net.Nodes[0].RunDir)
	return nil
}

// SPDX-License-Identifier: Apache-2.0

// Command restart puts traffic on two nodes while their agents are killed and started again, and then while there is no agent at all, with
// the socket path on and off. Anything lost, reset or refused makes it fail.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/pkg/testnet"
	"github.com/fairlead/fairlead/pkg/testnet/traffic"
)

type options struct {
	kept   int
	killed time.Duration
	kills  int
	alone  time.Duration
	mode   string
}

func (o options) modes() []bool {
	switch o.mode {
	case "socket":
		return []bool{true}
	case "packet":
		return []bool{false}
	}
	return []bool{true, false}
}

func main() {
	var o options
	flag.IntVar(&o.kept, "kept", 200, "keep-alive connections, half to a pod and half to a ClusterIP")
	flag.DurationVar(&o.killed, "killed", 30*time.Second, "traffic while agents are killed")
	flag.IntVar(&o.kills, "kills", 5, "how often each agent is killed meanwhile")
	flag.DurationVar(&o.alone, "alone", 5*time.Minute, "traffic without any agent")
	flag.StringVar(&o.mode, "mode", "both", "socket, packet or both")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	for _, socketLB := range o.modes() {
		err = errors.Join(err, o.run(ctx, socketLB))
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "restart:", err)
		os.Exit(1)
	}
}

var vips = []netip.Addr{netip.MustParseAddr("10.96.0.80"), netip.MustParseAddr("fd00:96::80")}

// run builds two nodes, a client on one and two servers on the other, and puts both loads on them.
func (o options) run(ctx context.Context, socketLB bool) (err error) {
	n, err := testnet.New(ctx, testnet.Options{Nodes: 2})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	flags := []string{fmt.Sprintf("--socket-lb=%t", socketLB), "--log-level=info"}
	if err := n.Start(ctx, flags...); err != nil {
		return err
	}
	client, err := n.Nodes[0].AddPod(ctx, testnet.PodSpec{Name: "client"})
	if err != nil {
		return err
	}
	var server *testnet.Pod
	for i := range 2 {
		server, err = n.Nodes[1].AddPod(ctx, testnet.PodSpec{Name: fmt.Sprintf("web-%d", i), Labels: map[string]string{"app": "web"}})
		if err != nil {
			return err
		}
		if _, err := server.Serve(ctx, 8080); err != nil {
			return err
		}
	}
	err = n.PutService(testnet.Service{Name: "web", ClusterIPs: vips, Selector: map[string]string{"app": "web"}, Ports: []testnet.ServicePort{
		{Name: "http", Port: 80, TargetPort: 8080}, {Name: "udp", Protocol: "UDP", Port: 80, TargetPort: 8080},
	}})
	if err != nil {
		return err
	}
	if err := n.Nodes[0].Backends(ctx, "default", "web", 2); err != nil {
		return err
	}
	targets := map[string]string{
		"pod IPv4":       netip.AddrPortFrom(server.IP(false), 8080).String(),
		"pod IPv6":       netip.AddrPortFrom(server.IP(true), 8080).String(),
		"ClusterIP IPv4": netip.AddrPortFrom(vips[0], 80).String(),
		"ClusterIP IPv6": netip.AddrPortFrom(vips[1], 80).String(),
	}
	fmt.Printf("socket path %t, %d kills of each agent in %v:\n", socketLB, o.kills, o.killed)
	err = o.load(ctx, client, n.Binaries.Helper, targets, o.killed, func(ctx context.Context) error {
		for range o.kills {
			time.Sleep(o.killed / time.Duration(o.kills) / 2)
			for _, node := range n.Nodes {
				node.Kill()
			}
			for _, node := range n.Nodes {
				if err := errors.Join(node.Start(flags...), node.Ready(ctx)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	report(ctx, n)
	if err != nil {
		return err
	}
	for _, node := range n.Nodes {
		node.Kill()
	}
	fmt.Printf("socket path %t, no agent for %v:\n", socketLB, o.alone)
	return o.load(ctx, client, n.Binaries.Helper, targets, o.alone, func(context.Context) error { return nil })
}

// report prints what the nodes dropped and counted.
func report(ctx context.Context, n *testnet.Net) {
	for _, node := range n.Nodes {
		all, err := node.Query().Drops(ctx)
		if err != nil {
			fmt.Printf("  %s: %v\n", node.Name, err)
			continue
		}
		fmt.Printf("  %s:", node.Name)
		for _, d := range all.Drops {
			if d.Count > 0 {
				fmt.Printf(" drop %s %d", d.Reason, d.Count)
			}
		}
		for _, c := range all.Counters {
			if c.Count > 0 {
				fmt.Printf(" %s %d", c.Name, c.Count)
			}
		}
		fmt.Println()
	}
}

// load runs one load per target in the client pod while do happens, and prints what came of each.
func (o options) load(ctx context.Context, client *testnet.Pod, helper string, targets map[string]string, d time.Duration, do func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for name, target := range targets {
		arg, err := json.Marshal(traffic.Load{
			URL: "http://" + target, KeepAlive: o.kept / len(targets), Pace: 50 * time.Millisecond, New: 10 * time.Millisecond, UDP: target,
			UDPPace: 5 * time.Millisecond, Duration: d,
		})
		if err != nil {
			return err
		}
		g.Go(func() error {
			out, err := client.Run(ctx, helper, "load", string(arg))
			if err != nil {
				return err
			}
			var r traffic.Report
			if err := json.Unmarshal(out, &r); err != nil {
				return fmt.Errorf("read report: %w", err)
			}
			fmt.Printf("  %s: %s\n", name, r)
			if !r.Clean() {
				return fmt.Errorf("%s: traffic failed", name)
			}
			return nil
		})
	}
	g.Go(func() error { return do(ctx) })
	return g.Wait()
}

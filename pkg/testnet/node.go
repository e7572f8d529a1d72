// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/fairlead/fairlead/pkg/link"
	"github.com/fairlead/fairlead/pkg/query"
)

// Node is a machine: a network namespace with an uplink, a cgroup that holds its pods, and an agent.
type Node struct {
	Scope    // the host's own processes
	Name     string
	IPs      []netip.Addr
	PodCIDRs []netip.Prefix
	RunDir   string
	StateDir string
	ConfDir  string // CNI configuration
	BPFFSDir string
	Log      string // file that the agents write to, one after the other

	agent *Process
	log   *os.File
}

// newNode makes node number i, without its uplink.
func (n *Net) newNode(i int) (*Node, error) {
	name := fmt.Sprintf("node-%d", i)
	// The host's own processes and the agent sit beside the pods, below the cgroup that the agent attaches to.
	scope, err := n.newScope(name, name, filepath.Join(name, "host"))
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(n.Dir, name)
	node := &Node{
		Scope: scope,
		Name:  name,
		IPs: []netip.Addr{
			netip.AddrFrom4([4]byte{172, 31, 7, byte(10 + i)}),
			netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x31, 5: 7, 15: byte(10 + i)}),
		},
		PodCIDRs: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 2: 0x02, 3: 0x44, 5: byte(i)}), 64),
		},
		RunDir:   filepath.Join(dir, "run"),
		StateDir: filepath.Join(dir, "state"),
		ConfDir:  filepath.Join(dir, "cni"),
		BPFFSDir: filepath.Join(bpffs, prefix+n.id, name),
		Log:      filepath.Join(dir, "agent.log"),
	}
	for _, d := range []string{dir, node.ConfDir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	node.log, err = os.OpenFile(node.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	return node, err
}

// wire gives the node its uplink eth0, whose other end has the node's name.
func (n *Node) wire(beyond *link.Handle, mtu int) error {
	h, err := link.OpenAt(n.fd())
	if err != nil {
		return err
	}
	defer h.Close()
	eth0 := link.End{Name: "eth0", MTU: mtu, Addresses: []netip.Prefix{netip.PrefixFrom(n.IPs[0], 24), netip.PrefixFrom(n.IPs[1], 64)}}
	return link.Wire(h, eth0, beyond, link.End{Name: n.Name, MTU: mtu})
}

func (n *Node) close() {
	if n.log != nil {
		_ = n.log.Close()
	}
	n.Scope.close()
}

// object is the Node as the API server would have it.
func (n *Node) object() map[string]any {
	addresses := []map[string]any{{"type": "Hostname", "address": n.Name}}
	for _, ip := range n.IPs {
		addresses = append(addresses, map[string]any{"type": "InternalIP", "address": ip})
	}
	return map[string]any{
		"apiVersion": "v1", "kind": "Node",
		"metadata": map[string]any{"name": n.Name, "uid": "uid-" + n.Name},
		"spec":     map[string]any{"podCIDR": n.PodCIDRs[0], "podCIDRs": n.PodCIDRs},
		"status":   map[string]any{"addresses": addresses},
	}
}

// Flags are what a daemon needs to work on this node: its directories, its name and its source.
func (n *Node) Flags() []string {
	return []string{
		"--node-name=" + n.Name, "--manifests=" + n.net.manifest.dir, "--run-dir=" + n.RunDir, "--state-dir=" + n.StateDir,
		"--bpffs-dir=" + n.BPFFSDir, "--cgroup-root=" + filepath.Dir(n.Cgroup), "--cni-conf-dir=" + n.ConfDir,
	}
}

// Start starts the node's agent, with further flags if given.
func (n *Node) Start(flags ...string) error {
	if n.agent != nil {
		select {
		case <-n.agent.done:
		default:
			return fmt.Errorf("start agent of %s: it runs already", n.Name)
		}
	}
	cmd := exec.Command(n.net.Binaries.Agent, slices.Concat(n.Flags(), []string{"--log-level=debug"}, flags)...)
	cmd.Stdout, cmd.Stderr = n.log, n.log
	agent, err := n.Scope.Start(cmd)
	if err != nil {
		return err
	}
	n.agent = agent
	n.net.say("%s: agent started, process %d", n.Name, agent.PID())
	return nil
}

// Ready waits until the agent that runs says that it is ready and the CNI configuration is there.
func (n *Node) Ready(ctx context.Context) error {
	return n.await(ctx, "ready", func() (bool, error) {
		status, err := n.Query().Status(ctx)
		if err != nil || !status.Ready || status.Agent.PID != n.agent.PID() {
			return false, nil // no agent yet, or one that waits
		}
		_, err = os.Stat(n.conf())
		return err == nil, nil
	})
}

// await looks every 10 ms until something is so, the agent ends or the context does.
func (n *Node) await(ctx context.Context, what string, so func() (bool, error)) error {
	if n.agent == nil {
		return fmt.Errorf("wait until %s is %s: no agent was started", n.Name, what)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := so(); ok || err != nil {
			return err
		}
		select {
		case <-n.agent.done:
			return fmt.Errorf("wait until %s is %s: agent ended: %w (its log is %s)", n.Name, what, n.agent.err, n.Log)
		case <-ctx.Done():
			return fmt.Errorf("wait until %s is %s: %w (the agent's log is %s)", n.Name, what, ctx.Err(), n.Log)
		case <-tick.C:
		}
	}
}

// Kill ends the agent with SIGKILL. Everything that it made stays.
func (n *Node) Kill() {
	if n.agent != nil {
		n.agent.Kill()
		n.net.say("%s: agent killed", n.Name)
	}
}

// Stop asks the agent to end.
func (n *Node) Stop(ctx context.Context) error {
	if n.agent == nil {
		return nil
	}
	err := n.agent.Stop(ctx)
	n.net.say("%s: agent stopped", n.Name)
	return err
}

// Agent returns the agent's process, the last one that was started; nil before.
func (n *Node) Agent() *Process { return n.agent }

// Query returns a client of the node's agent.
func (n *Node) Query() *query.Client { return query.NewClient(filepath.Join(n.RunDir, "query.sock")) }

// Backends waits until the node's agent serves a port of a Service with exactly that many backends in every family that it has.
func (n *Node) Backends(ctx context.Context, namespace, name string, want int) error {
	err := n.await(ctx, fmt.Sprintf("serving %s/%s with %d backends", namespace, name, want), func() (bool, error) {
		all, err := n.Query().Services(ctx)
		if err != nil {
			return false, nil
		}
		found := false
		for _, s := range all.Services {
			if s.Namespace == namespace && s.Name == name {
				found = true
				if len(s.Cluster) != want {
					return false, nil
				}
			}
		}
		return found, nil
	})
	return err
}

// Peers waits until the node's agent knows that many other nodes.
func (n *Node) Peers(ctx context.Context, want int) error {
	return n.await(ctx, fmt.Sprintf("connected to %d nodes", want), func() (bool, error) {
		p, err := n.Query().Peers(ctx)
		return err == nil && len(p.Peers) == want, nil
	})
}

// Start starts an agent on every node and waits until all are ready and know each other.
func (n *Net) Start(ctx context.Context, flags ...string) error {
	var errs []error
	for _, node := range n.Nodes {
		errs = append(errs, node.Start(flags...))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, node := range n.Nodes {
		errs = append(errs, node.Ready(ctx), node.Peers(ctx, len(n.Nodes)-1))
	}
	return errors.Join(errs...)
}

// SPDX-License-Identifier: Apache-2.0

// Package testnet puts several nodes on one kernel: each is a network namespace with a cgroup, directories and an agent of its own, wired
// to the others by a bridge. Agents and CNI plugin are the real binaries, pods are namespaces with processes in them. Tests, the demo and
// the benchmarks use it; it needs root, cgroup v2 and a bpf file system.
//
// Everything carries the name of the process that made it and goes with Close; what a killed process left is removed by the next New.
package testnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/fairlead/fairlead/pkg/link"
)

// Options says what to build.
type Options struct {
	Nodes    int       // 1 to 200
	Binaries Binaries  // zero: built into the network's directory
	Log      io.Writer // what is done, line by line; nil: nowhere
	MTU      int       // of the bridge, in bytes; 0: 1500
}

// Net is a network of nodes. Its methods may be called by several goroutines, those of one node or pod by one at a time.
type Net struct {
	Dir      string // holds everything that is a file
	Binaries Binaries
	Nodes    []*Node
	Outside  []netip.Addr // addresses behind the bridge that are no node's and no pod's, one per family
	Beyond   Scope        // the machine that has them

	id       string
	cgroup   string
	log      io.Writer
	manifest manifests
	starter  *starter
	over     bool // closed, or kept
}

// gateways are the addresses of the machine beyond the bridge, to which every node's default route leads.
func gateways() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("172.31.7.1/24"), netip.MustParsePrefix("fd00:31:7::1/64")}
}

// New builds the network; no agent runs yet. On an error, or when the context ends, what was built is gone again.
func New(ctx context.Context, o Options) (_ *Net, err error) {
	if o.Nodes < 1 || o.Nodes > 200 {
		return nil, fmt.Errorf("build network: %d nodes: want 1 to 200", o.Nodes)
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	if err := removeLeftovers(false); err != nil {
		return nil, fmt.Errorf("remove leftovers: %w", err)
	}
	id, err := newID()
	if err != nil {
		return nil, err
	}
	n := &Net{
		Dir: runDir(id), Binaries: o.Binaries, id: id, log: o.Log, starter: newStarter(),
		Outside: []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:100::1")},
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("build network: %w", err), n.Close())
		}
	}()
	root, err := cgroupRoot()
	if err != nil {
		return nil, err
	}
	n.cgroup = filepath.Join(root, prefix+id)
	n.manifest.dir = filepath.Join(n.Dir, "manifests")
	for _, dir := range []string{n.cgroup, filepath.Join(bpffs, prefix+id), n.manifest.dir, filepath.Join(n.Dir, "ns")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if n.Binaries == (Binaries{}) {
		if n.Binaries, err = Build(ctx, filepath.Join(n.Dir, "bin")); err != nil {
			return nil, err
		}
	}
	if err := n.wire(o); err != nil {
		return nil, err
	}
	for _, node := range n.Nodes {
		if err := n.manifest.write("node-"+node.Name, node.object()); err != nil {
			return nil, err
		}
	}
	return n, ctx.Err()
}

// wire makes the namespaces and the bridge between them.
func (n *Net) wire(o Options) (err error) {
	n.Beyond, err = n.newScope("beyond", "beyond", "beyond")
	if err != nil {
		return err
	}
	beyond, err := link.OpenAt(n.Beyond.fd())
	if err != nil {
		return err
	}
	defer beyond.Close()
	var ports []string
	for i := range o.Nodes {
		node, err := n.newNode(i)
		if err != nil {
			return err
		}
		n.Nodes = append(n.Nodes, node)
		if err := node.wire(beyond, o.MTU); err != nil {
			return err
		}
		ports = append(ports, node.Name)
	}
	addrs := gateways()
	for _, a := range n.Outside {
		addrs = append(addrs, netip.PrefixFrom(a, a.BitLen()))
	}
	if err := beyond.Bridge("bridge", ports, addrs...); err != nil {
		return err
	}
	for _, node := range n.Nodes {
		h, err := link.OpenAt(node.fd())
		if err != nil {
			return err
		}
		for _, g := range gateways() {
			err = errors.Join(err, h.SetDefaultRoute(g.Addr()))
		}
		h.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// say writes a line about what happens.
func (n *Net) say(format string, args ...any) { fmt.Fprintf(n.log, format+"\n", args...) }

// Keep leaves everything as it is when this process ends, until Down.
func (n *Net) Keep() error {
	n.over = true
	return os.WriteFile(filepath.Join(n.Dir, keepMark), nil, 0o600)
}

// Close ends every process of the network and removes everything, unless Keep was called.
func (n *Net) Close() error {
	if n.over {
		return nil
	}
	n.over = true
	for _, node := range slices.Backward(n.Nodes) {
		node.close()
	}
	n.Beyond.close()
	n.starter.close()
	return remove(n.id)
}

// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sync/errgroup"
)

// Options says where an agent's objects live and how they are made.
type Options struct {
	Dir      string            // on a bpf file system; agents with different directories never meet
	Config   Config            // frozen into the programs
	Capacity map[string]uint32 // elements of a map that is made now, by map name; a map that is pinned already keeps its own
	Log      *slog.Logger
}

// Objects is an agent's maps and programs in the kernel. Maps tagged KEEP and links are pinned under the directory and stay when the agent
// ends; Close releases only what the process holds.
type Objects struct {
	dir      string
	log      *slog.Logger
	config   Config
	maps     map[string]*ebpf.Map     // pinned, by name
	programs map[string]*ebpf.Program // by name
	layouts  *hash[LayoutLayoutName, uint32]
	waiter   *waiter

	endpoints *Endpoints
	peers     *Peers
	services  *Services
	addresses *NodeAddresses
	hostPorts *HostPorts
	devices   *NetDevices
	flows     *Flows
	ids       *IDs
	memory    []*mapped

	dropNames    []string
	counterNames []string
}

// object is one C file as it was compiled.
type object struct {
	name string
	load func() (*ebpf.CollectionSpec, error)
}

// objects lists the C files with programs. Programs have one namespace over all of them.
func objects() []object {
	return []object{{"pod", LoadPod}, {"net", LoadNet}, {"overlay", LoadOverlay}, {"sock", LoadSock}, {"sweep", LoadSweep}}
}

// Open adopts every pinned map under Dir/maps or makes and pins it, and loads all programs with the configuration frozen into them.
// Nothing is attached yet. It may be called while another process still holds the same directory (the predecessor that is about to end):
// maps are shared, programs are each process's own until a link is updated.
//
// A process may be killed at any point: each map is pinned in one step, a missing one is made by the next Open. A pinned map with another
// layout is a *LayoutError, and then nothing was changed.
func Open(o Options) (*Objects, error) {
	return open(o, func(string) {})
}

// open tells step what it is about to do, so that a test can stop there for good.
func open(o Options, step func(string)) (*Objects, error) {
	ob, specs, err := openMaps(o, step)
	if err != nil {
		return nil, err
	}
	step("programs")
	if err := ob.loadPrograms(specs); err != nil {
		return nil, errors.Join(err, ob.Close())
	}
	step("done")
	return ob, nil
}

// openMaps is open without programs.
func openMaps(o Options, step func(string)) (*Objects, map[string]*ebpf.CollectionSpec, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	specs, err := load()
	if err != nil {
		return nil, nil, err
	}
	kept, err := keep(specs)
	if err != nil {
		return nil, nil, err
	}
	if err := resize(kept, o.Capacity); err != nil {
		return nil, nil, err
	}
	if err := makeDir(o.Dir, step); err != nil {
		return nil, nil, err
	}
	ob := &Objects{dir: o.Dir, log: o.Log, config: o.Config, maps: map[string]*ebpf.Map{}, programs: map[string]*ebpf.Program{}}
	for _, stage := range []func() error{
		func() error { return ob.adoptMaps(kept, step) },
		ob.tables,
		func() error { return ob.names(specs["layout"].Types) },
	} {
		if err := stage(); err != nil {
			return nil, nil, errors.Join(err, ob.Close())
		}
	}
	return ob, specs, nil
}

// load reads every object file.
func load() (map[string]*ebpf.CollectionSpec, error) {
	specs := map[string]*ebpf.CollectionSpec{}
	for _, o := range append(objects(), object{"layout", LoadLayout}) {
		spec, err := o.load()
		if err != nil {
			return nil, fmt.Errorf("read object %s: %w", o.name, err)
		}
		specs[o.name] = spec
	}
	return specs, nil
}

// keep returns the maps that outlive an agent. A map that several objects declare comes from one header, so they agree; if one was
// generated from an older header, that is found here and not in the kernel.
func keep(specs map[string]*ebpf.CollectionSpec) (map[string]*ebpf.MapSpec, error) {
	kept := map[string]*ebpf.MapSpec{}
	for _, object := range slices.Sorted(maps.Keys(specs)) {
		for name, m := range specs[object].Maps {
			if !slices.Contains(m.Tags, "keep") {
				continue
			}
			first, ok := kept[name]
			if ok && (wantedLayout(first).String() != wantedLayout(m).String() || first.MaxEntries != m.MaxEntries) {
				return nil, fmt.Errorf("read object %s: map %s differs from the same map in another object: generate all objects again", object, name)
			}
			if !ok {
				kept[name] = m.Copy()
			}
		}
	}
	return kept, nil
}

// resize sets the capacities that the caller asked for.
func resize(kept map[string]*ebpf.MapSpec, capacity map[string]uint32) error {
	for name, n := range capacity {
		m, ok := kept[name]
		if !ok {
			return fmt.Errorf("size map %s: there is no such map", name)
		}
		if n == 0 || m.MaxEntries == 0 {
			return fmt.Errorf("size map %s: %d elements are not possible", name, n)
		}
		m.MaxEntries = n
	}
	if n, ok := capacity[LayoutMapFlowSlots]; ok {
		if _, both := capacity[LayoutMapFlowBuckets]; !both {
			kept[LayoutMapFlowBuckets].MaxEntries, _ = flowLines(n)
		}
	}
	return nil
}

// tables gives the maps their types.
func (o *Objects) tables() (err error) {
	o.waiter, err = newWaiter()
	if err != nil {
		return err
	}
	memory := func(name string) *mapped {
		if err != nil {
			return nil
		}
		var m *mapped
		m, err = mapArray(name, o.maps[name])
		if err == nil {
			o.memory = append(o.memory, m)
		}
		return m
	}
	o.endpoints = &Endpoints{
		array:  memory(LayoutMapEndpoints),
		links:  table[uint32, uint32](o, LayoutMapEndpointLinks),
		addrs:  table[LayoutAddr, uint32](o, LayoutMapEndpointAddrs),
		spaces: table[uint64, uint32](o, LayoutMapEndpointNs),
	}
	o.peers = &Peers{
		array: memory(LayoutMapPeers),
		cidrs: table[LayoutPeerCidr, uint32](o, LayoutMapPeerCidrs),
		nodes: table[LayoutAddr, uint32](o, LayoutMapPeerNodes),
	}
	o.services = &Services{
		frontends: table[LayoutFrontendKey, LayoutFrontend](o, LayoutMapFrontends),
		ips:       table[LayoutAddr, uint32](o, LayoutMapClusterIps),
		services:  memory(LayoutMapServices),
		slots:     memory(LayoutMapSlots),
		backends:  memory(LayoutMapBackends),
		ranges:    table[LayoutSourceRange, uint32](o, LayoutMapSourceRanges),
		cidrs:     table[LayoutServiceCidr, uint32](o, LayoutMapServiceCidrs),
		epoch:     memory(LayoutMapFrontendEpoch),
		grace:     o.waiter.wait,
	}
	o.addresses = &NodeAddresses{table: table[LayoutAddr, uint32](o, LayoutMapNodeAddresses)}
	o.hostPorts = &HostPorts{table: table[LayoutFrontendKey, LayoutHostPort](o, LayoutMapHostPorts)}
	o.devices = &NetDevices{table: table[uint32, LayoutDeviceAddrs](o, LayoutMapNetDevices)}
	if err != nil {
		return err
	}
	index, slots := memory(LayoutMapFlowBuckets), memory(LayoutMapFlowSlots)
	if err != nil {
		return err
	}
	if o.flows, err = openFlows(index, slots); err != nil {
		return err
	}
	o.config.flowBuckets, o.config.flowSlots = o.flows.buckets, o.flows.Capacity()
	o.ids = &IDs{table: table[LayoutIdKey, LayoutId](o, LayoutMapIds), incarnations: o.maps[LayoutMapIncarnations]}
	o.ids.kinds[IDService].limit = o.services.ServiceCapacity()
	o.ids.kinds[IDBackend].limit = o.services.BackendCapacity()
	o.ids.kinds[IDPeer].limit = o.peers.Capacity()
	o.ids.kinds[IDEndpoint].limit = o.endpoints.Capacity()
	o.ids.kinds[IDSourceRange].limit = maxSourceRangeSets
	return nil
}

// table returns a kept map under its types.
func table[K, V comparable](o *Objects, name string) *hash[K, V] {
	return &hash[K, V]{name: name, m: o.maps[name]}
}

// loadPrograms loads each object's programs over the kept maps, the objects side by side: most of the time is the verifier's.
func (o *Objects) loadPrograms(specs map[string]*ebpf.CollectionSpec) error {
	var load errgroup.Group
	var mu sync.Mutex
	cache := btf.NewCache()
	for _, object := range objects() {
		load.Go(func() error {
			c, err := o.loadObject(specs[object.name], cache)
			if err != nil {
				return fmt.Errorf("load object %s: %w", object.name, err)
			}
			defer c.Close() // maps that are not kept live on through their programs
			mu.Lock()
			defer mu.Unlock()
			for name := range c.Programs {
				if _, twice := o.programs[name]; twice {
					return fmt.Errorf("load object %s: program %s is in another object too", object.name, name)
				}
				o.programs[name] = c.DetachProgram(name)
			}
			return nil
		})
	}
	return load.Wait()
}

// loadObject freezes the configuration into one object and loads it.
func (o *Objects) loadObject(spec *ebpf.CollectionSpec, cache *btf.Cache) (*ebpf.Collection, error) {
	kept := map[string]*ebpf.Map{}
	for name, m := range spec.Maps {
		if k, ok := o.maps[name]; ok {
			m.MaxEntries = k.MaxEntries()
			kept[name] = k
		}
	}
	if cfg, ok := spec.Variables[LayoutVarCfg]; ok {
		if err := cfg.Set(o.config.layout()); err != nil {
			return nil, fmt.Errorf("configure: %w", err)
		}
	}
	return ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: kept, Cache: cache})
}

// Close releases what the process holds. Pinned maps, links and what they run stay. No table may be used afterwards.
func (o *Objects) Close() error {
	var err error
	for _, m := range o.memory {
		err = errors.Join(err, m.close())
	}
	for _, p := range o.programs {
		err = errors.Join(err, p.Close())
	}
	for _, m := range o.maps {
		err = errors.Join(err, m.Close())
	}
	if o.waiter != nil {
		err = errors.Join(err, o.waiter.close())
	}
	return err
}

// Endpoints returns the table of the node's pods.
func (o *Objects) Endpoints() *Endpoints { return o.endpoints }

// Peers returns the table of the other nodes.
func (o *Objects) Peers() *Peers { return o.peers }

// Services returns the service tables.
func (o *Objects) Services() *Services { return o.services }

// NodeAddresses returns the table of the node's addresses.
func (o *Objects) NodeAddresses() *NodeAddresses { return o.addresses }

// HostPorts returns the table of host ports.
func (o *Objects) HostPorts() *HostPorts { return o.hostPorts }

// NetDevices returns the table of the devices that lead to other machines.
func (o *Objects) NetDevices() *NetDevices { return o.devices }

// Flows returns the flow table.
func (o *Objects) Flows() *Flows { return o.flows }

// IDs returns the table of ids.
func (o *Objects) IDs() *IDs { return o.ids }

// Config returns the configuration that the programs were loaded with.
func (o *Objects) Config() Config { return o.config }

// Remove takes everything under an agent's directory out of the kernel: links first, so that no program runs on maps that are gone. The
// filters on pods' devices are not ours to remove. A directory that does not exist is no error.
func Remove(dir string) error {
	var err error
	for _, part := range []string{linksDir, mapsDir} {
		entries, e := os.ReadDir(filepath.Join(dir, part))
		if e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
		for _, entry := range entries {
			err = errors.Join(err, os.Remove(filepath.Join(dir, part, entry.Name())))
		}
		if e := os.Remove(filepath.Join(dir, part)); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	if e := os.Remove(dir); e != nil && !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, e)
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

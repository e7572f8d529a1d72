// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
)

// MapUse is how full a map is.
type MapUse struct {
	Name     string
	Capacity uint64
	Used     uint64
	Failed   uint64 // refused inserts since this agent started
}

// Uses returns the use of every map whose size is a limit, in a fixed order. Maps that only agents write are counted as they are written;
// the kernel's LRU maps are walked.
func (o *Objects) Uses() ([]MapUse, error) {
	var all []MapUse
	var errs error
	add := func(name string, capacity, used, failed uint64) {
		all = append(all, MapUse{Name: name, Capacity: capacity, Used: used, Failed: failed})
	}
	counted := func(name string, use func() (used, failed uint64, err error)) {
		used, failed, err := use()
		errs = errors.Join(errs, err)
		add(name, uint64(o.maps[name].MaxEntries()), used, failed)
	}

	live, failed := o.endpoints.use()
	add(LayoutMapEndpoints, uint64(o.endpoints.Capacity()), live, failed)
	counted(LayoutMapEndpointLinks, o.endpoints.links.use)
	counted(LayoutMapEndpointAddrs, o.endpoints.addrs.use)
	counted(LayoutMapEndpointNs, o.endpoints.spaces.use)

	live, failed, err := o.peers.use()
	errs = errors.Join(errs, err)
	add(LayoutMapPeers, uint64(o.peers.Capacity()), live, failed)
	counted(LayoutMapPeerCidrs, o.peers.cidrs.use)
	counted(LayoutMapPeerNodes, o.peers.nodes.use)

	s := o.services.use()
	add(LayoutMapServices, uint64(o.services.ServiceCapacity()), s.services, s.failedServices)
	add(LayoutMapBackends, uint64(o.services.BackendCapacity()), s.backends, s.failedBackends)
	add(LayoutMapSlots, uint64(o.services.SlotCapacity()), s.slots, s.failedSlots)
	counted(LayoutMapFrontends, o.services.frontends.use)
	counted(LayoutMapClusterIps, o.services.ips.use)
	counted(LayoutMapSourceRanges, o.services.ranges.use)
	counted(LayoutMapServiceCidrs, o.services.cidrs.use)
	counted(LayoutMapNodeAddresses, o.addresses.table.use)
	counted(LayoutMapHostPorts, o.hostPorts.table.use)
	counted(LayoutMapNetDevices, o.devices.table.use)
	counted(LayoutMapIds, o.ids.table.use)

	add(LayoutMapFlowSlots, uint64(o.flows.Capacity()), uint64(o.flows.Used()), 0) // refused inserts are counted as drops and unrecorded flows

	// These push the oldest out and refuse nothing.
	for _, lru := range []struct {
		name  string
		count func(*Objects, string) (uint64, error)
	}{
		{LayoutMapAffinities, walkCount[LayoutAffinityKey, LayoutAffinity]},
		{LayoutMapFragments, walkCount[LayoutFragmentKey, LayoutFragment]},
		{LayoutMapSockOverflow, walkCount[LayoutSockOverflowKey, LayoutSockOverflow]},
	} {
		used, err := lru.count(o, lru.name)
		errs = errors.Join(errs, err)
		add(lru.name, uint64(o.maps[lru.name].MaxEntries()), used, 0)
	}
	if errs != nil {
		return all, fmt.Errorf("read use of maps: %w", errs)
	}
	return all, nil
}

// walkCount counts the elements of a map that the kernel evicts from.
func walkCount[K, V any](o *Objects, name string) (n uint64, err error) {
	if err := walkBatch(o.maps[name], func(K, V) { n++ }); err != nil {
		return n, fmt.Errorf("read all of %s: %w", name, err)
	}
	return n, nil
}

// use returns live endpoints and refused Puts.
func (t *Endpoints) use() (live, failed uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := uint32(1); id < t.array.entries; id++ {
		if EndpointFlag(low(t.array.load(id, 0)))&endpointLive != 0 {
			live++
		}
	}
	return live, t.failed
}

// use returns live peers and refused Puts.
func (t *Peers) use() (live, failed uint64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err = t.load()
	return t.live, t.failed, err
}

// serviceUse is the use of the service arrays.
type serviceUse struct {
	services, backends, slots                   uint64
	failedServices, failedBackends, failedSlots uint64
}

func (t *Services) use() serviceUse {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count()
	return serviceUse{
		services: t.liveServices, backends: t.liveBackends, slots: t.slotsUsed.Load(),
		failedServices: t.failedServices, failedBackends: t.failedBackends, failedSlots: t.failedSlots,
	}
}

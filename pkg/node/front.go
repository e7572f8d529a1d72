// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/link"
)

// FrontConfig is what the agent is told about traffic from other machines to Services of this node.
type FrontConfig struct {
	NodePorts NodePorts
	Devices   []string               // that carry the programs beside those with an address that counts
	Pod       func(name string) bool // is it the name of a pod's device?
	Self      func() Self            // of the own node, as it is now
	Log       *slog.Logger
}

// AddressTable is where programs look up the node's own addresses; *bpf.NodeAddresses is one.
type AddressTable interface {
	Put(netip.Addr, bpf.NodeAddressFlag) error
	Delete(netip.Addr) error
	All() (map[netip.Addr]bpf.NodeAddressFlag, error)
}

// DeviceTable is where programs look up the node's address on a device; *bpf.NetDevices is one.
type DeviceTable interface {
	Put(ifindex int, d bpf.NetDevice) error
	Delete(ifindex int) error
	All() (map[int]bpf.NetDevice, error)
}

// NetPrograms puts the programs for traffic from other machines on devices. Attached returns every device, there or not, that something
// was attached to; true: what is there is as Attach would leave it.
type NetPrograms interface {
	Attach(ifindex int) error
	Detach(ifindex int) error
	Attached() (map[int]bool, error)
}

// Front keeps the table of the node's addresses, and the programs on the devices that lead to other machines, as the host's devices and
// addresses are.
type Front struct {
	cfg       FrontConfig
	nl        *link.Handle
	addresses AddressTable
	devices   DeviceTable
	programs  NetPrograms
	log       *slog.Logger

	have held // touched by Run alone

	mu         sync.Mutex
	conditions map[string]error
	repaired   uint64
	now        fronts // wanted last
}

// held is what tables and devices hold.
type held struct {
	fronts
	attached map[int]bool
}

// NewFront returns a Front that has touched nothing yet. The handle stays the caller's and must live as long.
func NewFront(cfg FrontConfig, nl *link.Handle, addresses AddressTable, devices DeviceTable, programs NetPrograms) *Front {
	return &Front{cfg: cfg, nl: nl, addresses: addresses, devices: devices, programs: programs, log: cfg.Log, conditions: map[string]error{}}
}

// FrontStatus is what people are told of it.
type FrontStatus struct {
	Addresses  map[netip.Addr]bool // the node's own; true: NodePorts answer on it
	Devices    []int               // index of every device that should carry the programs, in order
	Repaired   uint64              // how often tables or programs were not as they had been left
	Conditions map[string]error    // object -> why it does not serve
}

// Status returns a copy.
func (f *Front) Status() FrontStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := FrontStatus{
		Addresses: map[netip.Addr]bool{}, Devices: slices.Sorted(maps.Keys(f.now.devices)), Repaired: f.repaired,
		Conditions: maps.Clone(f.conditions),
	}
	for a, flags := range f.now.addresses {
		s.Addresses[a] = flags&bpf.NodeAddressNodePort != 0
	}
	return s
}

// Run follows the host's devices and addresses until the context ends; then it leaves everything in place. The error is the context's.
func (f *Front) Run(ctx context.Context) error {
	kernel := make(chan struct{}, 1)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		f.nl.Watch(ctx, func(e link.Event, _ int) {
			if e&(link.LinkEvent|link.AddressEvent) == 0 {
				return
			}
			select {
			case kernel <- struct{}{}:
			default:
			}
		})
	}()
	defer func() { <-watched }()

	drift := time.NewTicker(driftEvery)
	defer drift.Stop()
	var settled <-chan time.Time
	retry := time.After(0) // what earlier agents left is in force until then
	pause := retryFirst
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-kernel:
			if settled == nil {
				settled = time.After(settle)
			}
			continue
		case <-settled:
			settled = nil
			err = f.look()
		case <-retry:
			err = errors.Join(f.compare(), f.look())
		case <-drift.C:
			err = errors.Join(f.look(), f.compare(), f.look())
		}
		if err == nil {
			retry, pause = nil, retryFirst
			continue
		}
		f.log.Warn("addresses and devices are not all in the kernel, trying again", "error", err, "after", pause)
		retry = time.After(pause)
		pause = min(2*pause, retryMost)
	}
}

// compare reads what tables and devices hold. What this agent did not leave so is drift, which the next look repairs.
func (f *Front) compare() error {
	addresses, err := f.addresses.All()
	if err != nil {
		return err
	}
	devices, err := f.devices.All()
	if err != nil {
		return err
	}
	attached, err := f.programs.Attached()
	if err != nil {
		return err
	}
	old := f.have
	f.have = held{fronts{addresses, devices}, attached}
	if old.attached == nil { // the first time: all of it is an earlier agent's
		return nil
	}
	if !maps.Equal(old.addresses, addresses) {
		f.countRepair("node addresses", "old", addresses, "new", old.addresses)
	}
	if !maps.Equal(old.devices, devices) {
		f.countRepair("devices that lead to other machines", "old", devices, "new", old.devices)
	}
	if detached(old.attached, attached) {
		f.countRepair("programs on devices that lead to other machines", "old", attached, "new", old.attached)
	}
	return nil
}

// detached says that programs are gone from where they were, or are where they were not put. Where Attach failed anything may be.
func detached(old, now map[int]bool) bool {
	for ifindex, ok := range old {
		if ok && !now[ifindex] {
			return true
		}
	}
	for ifindex := range now {
		if _, known := old[ifindex]; !known {
			return true
		}
	}
	return false
}

// look reads the host's devices and addresses and brings tables and programs to them: what is new first, what is gone last.
func (f *Front) look() error {
	if f.have.attached == nil {
		return nil // compare failed: what is there is not known, so nothing can be called gone
	}
	devices, err := f.nl.Devices()
	if err != nil {
		return err
	}
	addresses, err := f.nl.Addresses(0)
	if err != nil {
		return err
	}
	want := compileFronts(f.cfg, f.cfg.Self(), network{devices: devices, addresses: addresses})
	names := map[int]string{}
	for _, d := range devices {
		names[d.Index] = d.Name
	}
	conditions := f.put(want, names)
	freed, err := f.prune(want)
	if freed && len(conditions) > 0 {
		conditions = f.put(want, names) // a table that was full has room now
	}
	f.settled(want, conditions)
	return errors.Join(append(slices.Collect(maps.Values(conditions)), err)...)
}

// put writes what is new and returns what it cannot write: object -> why.
func (f *Front) put(want fronts, names map[int]string) map[string]error {
	conditions := map[string]error{}
	f.putAddresses(want, conditions)
	for _, ifindex := range slices.Sorted(maps.Keys(want.devices)) {
		if err := f.putDevice(ifindex, names[ifindex], want.devices[ifindex]); err != nil {
			conditions["device "+names[ifindex]] = err
		}
	}
	return conditions
}

// putAddresses enters what is new, NodePort addresses first: they are what a full table must not miss.
func (f *Front) putAddresses(want fronts, conditions map[string]error) {
	order := slices.SortedFunc(maps.Keys(want.addresses), func(a, b netip.Addr) int {
		return cmp.Or(cmp.Compare(want.addresses[b], want.addresses[a]), a.Compare(b))
	})
	missing := 0
	var cause error
	for _, a := range order {
		flags := want.addresses[a]
		old, ok := f.have.addresses[a]
		if ok && old == flags {
			continue
		}
		if err := f.addresses.Put(a, flags); err != nil {
			missing++
			cause = cmp.Or(cause, err)
			continue
		}
		f.have.addresses[a] = flags
		f.log.Debug("wrote node address", "addresses", a, "old", old, "new", flags)
	}
	if missing > 0 {
		conditions["node addresses"] = fmt.Errorf("%d of %d are not served: %w", missing, len(order), cause)
	}
}

// putDevice makes a device carry the programs. Its addresses come first: the programs take them from the first packet on.
func (f *Front) putDevice(ifindex int, name string, d bpf.NetDevice) error {
	var full error
	if old, ok := f.have.devices[ifindex]; !ok || old != d {
		if full = f.devices.Put(ifindex, d); full == nil {
			f.have.devices[ifindex] = d
			f.log.Debug("wrote device", "device", name, "old", old, "new", d)
		}
	}
	if f.have.attached[ifindex] {
		return full
	}
	// Without its entry a device lends the InternalIP: programs there are better than none.
	if err := f.programs.Attach(ifindex); err != nil {
		f.have.attached[ifindex] = false // one of two may be there
		return errors.Join(full, err)
	}
	f.have.attached[ifindex] = true
	f.log.Info("device carries the programs for traffic from other machines", "device", name, "ifindex", ifindex)
	return full
}

// prune takes away what is not wanted any more: programs before what they read. freed: a table has an element less.
func (f *Front) prune(want fronts) (freed bool, err error) {
	var errs []error
	for ifindex := range f.have.attached {
		if _, ok := want.devices[ifindex]; ok {
			continue
		}
		if err := f.programs.Detach(ifindex); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(f.have.attached, ifindex)
		f.log.Info("device carries no programs any more", "ifindex", ifindex)
	}
	for ifindex := range f.have.devices {
		if _, ok := want.devices[ifindex]; ok || f.attached(ifindex) {
			continue
		}
		if err := f.devices.Delete(ifindex); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(f.have.devices, ifindex)
		freed = true
	}
	for a := range f.have.addresses {
		if _, ok := want.addresses[a]; ok {
			continue
		}
		if err := f.addresses.Delete(a); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(f.have.addresses, a)
		freed = true
		f.log.Debug("deleted node address", "addresses", a)
	}
	return freed, errors.Join(errs...)
}

func (f *Front) attached(ifindex int) bool {
	_, ok := f.have.attached[ifindex]
	return ok
}

// settled publishes what a look found, and says once what is wrong.
func (f *Front) settled(want fronts, conditions map[string]error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for object, err := range conditions {
		if old := f.conditions[object]; old == nil || old.Error() != err.Error() {
			f.log.Error("traffic from other machines is not served completely", "object", object, "error", err)
		}
	}
	f.conditions, f.now = conditions, want
}

func (f *Front) countRepair(what string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.repaired++
	f.log.Warn("repaired "+what, args...)
}

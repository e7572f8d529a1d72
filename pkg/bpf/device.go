// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// NetDevice is the node's own address per family on a device that leads to other machines; the zero Addr where it has none.
type NetDevice struct {
	Addr4, Addr6 netip.Addr
}

// NetDevices is the table of the devices that carry net.c (bpf/lib/device.h). Methods may be called by several goroutines.
type NetDevices struct {
	table *hash[uint32, LayoutDeviceAddrs]
}

// Put enters a device or replaces its addresses. A full map is ErrFull.
func (t *NetDevices) Put(ifindex int, d NetDevice) error {
	err := t.table.put(uint32(ifindex), LayoutDeviceAddrs{Addr4: addrOf(d.Addr4), Addr6: addrOf(d.Addr6)})
	if err != nil {
		return fmt.Errorf("put device %d: %w", ifindex, err)
	}
	return nil
}

// Delete removes a device; one that is not there is no error.
func (t *NetDevices) Delete(ifindex int) error {
	if err := t.table.delete(uint32(ifindex)); err != nil {
		return fmt.Errorf("delete device %d: %w", ifindex, err)
	}
	return nil
}

// All returns every device by its index.
func (t *NetDevices) All() (map[int]NetDevice, error) {
	all := map[int]NetDevice{}
	err := t.table.walk(func(ifindex uint32, d LayoutDeviceAddrs) {
		all[int(ifindex)] = NetDevice{Addr4: addrOrNone(d.Addr4), Addr6: addrOrNone(d.Addr6)}
	})
	return all, err
}

// netHook is one of the two programs of net.c and where it runs.
type netHook struct {
	program string
	hook    ebpf.AttachType
}

func netHooks() [2]netHook {
	return [2]netHook{{"from_net", ebpf.AttachTCXIngress}, {"to_net", ebpf.AttachTCXEgress}}
}

// link names the pinned link on a device.
func (h netHook) link(ifindex int) string { return h.program + "_" + strconv.Itoa(ifindex) }

// NetPrograms returns what runs on the node's devices where AttachNet says ErrNoTCX: from at ingress, to at egress.
func (o *Objects) NetPrograms() (from, to Program, err error) {
	from, err1 := o.export("from_net")
	to, err2 := o.export("to_net")
	return from, to, errors.Join(err1, err2)
}

// AttachNet attaches from_net and to_net to a device that leads to other machines, in place where pinned links are on it already. Other
// programs on the device are left alone. ErrNoTCX where the kernel has no tcx.
func (o *Objects) AttachNet(ifindex int) error {
	for _, h := range netHooks() {
		if err := o.attachTCX(h.link(ifindex), h.program, ifindex, h.hook); err != nil {
			return fmt.Errorf("attach net programs to device %d: %w", ifindex, err)
		}
	}
	return nil
}

// DetachNet takes the programs off a device and removes their pinned links, whether the device is still there or not. None at all is no
// error. The device is free when it returns: the kernel would let go of a link without a pin only later, and refuse the program until then.
func (o *Objects) DetachNet(ifindex int) error {
	var errs []error
	for _, h := range netHooks() {
		path := filepath.Join(o.dir, linksDir, h.link(ifindex))
		for _, p := range []string{path, path + aside} {
			if err := detach(p); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach net programs from device %d: %w", ifindex, err)
	}
	return nil
}

// detach takes a pinned link out of the kernel.
func detach(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) { // its device is gone
		return fmt.Errorf("detach link %s: %w", path, err)
	}
	return os.Remove(path)
}

// NetLinks returns the index of every device that a link of AttachNet is pinned for. True: both links are on the device with that index in
// the calling thread's network namespace and run these Objects' programs.
func (o *Objects) NetLinks() (map[int]bool, error) {
	entries, err := os.ReadDir(filepath.Join(o.dir, linksDir))
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	all := map[int]bool{}
	for _, e := range entries {
		for _, h := range netHooks() {
			index, ok := strings.CutPrefix(strings.TrimSuffix(e.Name(), aside), h.program+"_")
			if n, err := strconv.Atoi(index); ok && err == nil {
				all[n] = false
			}
		}
	}
	for ifindex := range all {
		if all[ifindex], err = o.netAttached(ifindex); err != nil {
			return nil, fmt.Errorf("read net links of device %d: %w", ifindex, err)
		}
	}
	return all, nil
}

func (o *Objects) netAttached(ifindex int) (bool, error) {
	for _, h := range netHooks() {
		p, err := o.export(h.program)
		if err != nil {
			return false, err
		}
		l, err := link.LoadPinnedLink(filepath.Join(o.dir, linksDir, h.link(ifindex)), nil)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		info, err := l.Info()
		if err := errors.Join(err, l.Close()); err != nil {
			return false, err
		}
		on, err := linksOn(ifindex, h.hook)
		if errors.Is(err, unix.ENODEV) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if uint32(info.Program) != p.ID || !slices.Contains(on, info.ID) {
			return false, nil
		}
	}
	return true, nil
}

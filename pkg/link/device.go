// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Device is what Fairlead wants to know of any link.
type Device struct {
	Index    int
	Name     string
	Type     string // the kernel's name of the sort: vxlan, veth, bridge; empty or "device" for hardware
	MTU      int    // bytes
	MAC      net.HardwareAddr
	Up       bool // administratively
	Loopback bool
	NoARP    bool
	Master   int // index of the bridge, bond or VRF that it belongs to; 0: none
}

// Devices lists all links of the namespace.
func (h *Handle) Devices() ([]Device, error) {
	links, err := retry(h.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	devices := make([]Device, 0, len(links))
	for _, l := range links {
		devices = append(devices, deviceOf(l))
	}
	return devices, nil
}

// Device finds a link by name; ok is false when there is none.
func (h *Handle) Device(name string) (d Device, ok bool, err error) {
	l, err := h.nl.LinkByName(name)
	if isMissing(err) {
		return Device{}, false, nil
	}
	if err != nil {
		return Device{}, false, fmt.Errorf("find link %s: %w", name, err)
	}
	return deviceOf(l), true, nil
}

// DeleteDevice removes a link; one that is not there is no error.
func (h *Handle) DeleteDevice(name string) error {
	l, err := h.nl.LinkByName(name)
	if err == nil {
		err = h.nl.LinkDel(l)
	}
	if err != nil && !isMissing(err) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

func deviceOf(l netlink.Link) Device {
	a := l.Attrs()
	return Device{
		Index: a.Index, Name: a.Name, Type: l.Type(), MTU: a.MTU, MAC: a.HardwareAddr, Master: a.MasterIndex,
		Up:       a.RawFlags&unix.IFF_UP != 0,
		Loopback: a.RawFlags&unix.IFF_LOOPBACK != 0,
		NoARP:    a.RawFlags&unix.IFF_NOARP != 0,
	}
}

// isMissing says that a link does not exist, or that it vanished between two calls.
func isMissing(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}

// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// SetNeighbour gives an address on a link a MAC for good: the entry is permanent, never probed and never counted against the limits of
// the neighbour table. An entry with another MAC is replaced.
func (h *Handle) SetNeighbour(index int, addr netip.Addr, mac net.HardwareAddr) error {
	err := h.nl.NeighSet(&netlink.Neigh{
		LinkIndex: index, Family: familyOf(addr), State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("set neighbour %s to %s on link %d: %w", addr, mac, index, err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
)

// NodeAddressFlag says what answers on an address of the node (bpf/lib/service.h).
type NodeAddressFlag = LayoutNodeAddressFlag

// The flags of a node's address.
const (
	NodeAddressLocal    = LayoutNodeAddressFlagNODE_ADDRESS_LOCAL     // of any device here: host ports answer on it
	NodeAddressNodePort = LayoutNodeAddressFlagNODE_ADDRESS_NODE_PORT // NodePorts answer on it
)

// NodeAddresses is the table of the node's own addresses. Methods may be called by several goroutines.
type NodeAddresses struct {
	table *hash[LayoutAddr, uint32]
}

// Put enters an address or changes its flags. A full map is ErrFull.
func (t *NodeAddresses) Put(a netip.Addr, flags NodeAddressFlag) error {
	if err := t.table.put(addrOf(a), uint32(flags)); err != nil {
		return fmt.Errorf("put node address %s: %w", a, err)
	}
	return nil
}

// Delete removes an address; one that is not there is no error.
func (t *NodeAddresses) Delete(a netip.Addr) error {
	if err := t.table.delete(addrOf(a)); err != nil {
		return fmt.Errorf("delete node address %s: %w", a, err)
	}
	return nil
}

// All returns every address with its flags.
func (t *NodeAddresses) All() (map[netip.Addr]NodeAddressFlag, error) {
	all := map[netip.Addr]NodeAddressFlag{}
	err := t.table.walk(func(a LayoutAddr, flags uint32) { all[a.Addr()] = NodeAddressFlag(flags) })
	return all, err
}

// SPDX-License-Identifier: Apache-2.0

package bpf

import "fmt"

// HostPort leads from an address of the node to a pod's port.
type HostPort struct {
	FrontendKey        // Addr is 0.0.0.0 or :: for every address of the node
	Endpoint    uint32 // id, at most 65535
	Incarnation uint32 // of the endpoint
	To          uint16 // port of the container, host byte order
}

// HostPorts is the table of host ports. Methods may be called by several goroutines.
type HostPorts struct {
	table *hash[LayoutFrontendKey, LayoutHostPort]
}

// Put enters a host port. A full map is ErrFull.
func (t *HostPorts) Put(p HostPort) error {
	if p.Endpoint == 0 || p.Endpoint > 65535 {
		return fmt.Errorf("put host port %s: endpoint %d out of range, 1 to 65535", p.FrontendKey, p.Endpoint)
	}
	err := t.table.put(frontendKeyOf(p.FrontendKey), LayoutHostPort{Incarnation: p.Incarnation, Endpoint: uint16(p.Endpoint), Port: portOf(p.To)})
	if err != nil {
		return fmt.Errorf("put host port %s: %w", p.FrontendKey, err)
	}
	return nil
}

// Delete removes a host port; one that is not there is no error.
func (t *HostPorts) Delete(k FrontendKey) error {
	if err := t.table.delete(frontendKeyOf(k)); err != nil {
		return fmt.Errorf("delete host port %s: %w", k, err)
	}
	return nil
}

// List returns all host ports in no order.
func (t *HostPorts) List() ([]HostPort, error) {
	var all []HostPort
	err := t.table.walk(func(k LayoutFrontendKey, v LayoutHostPort) {
		all = append(all, HostPort{
			FrontendKey: FrontendKey{Addr: k.Addr.Addr(), Port: portFrom(k.Port), Protocol: k.Proto},
			Endpoint:    uint32(v.Endpoint), Incarnation: v.Incarnation, To: portFrom(v.Port),
		})
	})
	return all, err
}

// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"

	"github.com/fairlead/fairlead/pkg/bpf"
)

// Tables is what Services are written into: bpf.Services, or a model of it in tests. Every call makes one entry or one word visible at
// once, or fails and changes nothing; Flip shows one word after the other.
type Tables interface {
	FrontendCapacity() uint32
	SlotCapacity() uint32

	PutFrontend(bpf.Frontend) error
	DeleteFrontend(bpf.FrontendKey) error
	Frontends() ([]bpf.Frontend, error)

	// PutClusterIP notes the number of services that have an address: its ports without frontend are refused.
	PutClusterIP(netip.Addr, uint32) error
	DeleteClusterIP(netip.Addr) error
	ClusterIPs() (map[netip.Addr]uint32, error)

	// A prefix more or less in a set of load balancers' clients; services name sets by their number.
	PutSourceRange(set uint32, p netip.Prefix) error
	DeleteSourceRange(set uint32, p netip.Prefix) error
	SourceRanges() (map[uint32][]netip.Prefix, error)

	// PutServiceCIDR says that ClusterIPs come from a prefix: what no Service has of it is dropped.
	PutServiceCIDR(netip.Prefix) error
	DeleteServiceCIDR(netip.Prefix) error
	ServiceCIDRs() ([]netip.Prefix, error)

	Flip(id uint32, s bpf.Service) error
	DeleteService(id uint32) error
	Services() ([]bpf.Service, error)

	PutBackend(bpf.Backend) error
	DeleteBackend(id uint32) error
	Backend(id uint32) (bpf.Backend, bool)
	Backends() ([]bpf.Backend, error)

	WriteSlots(offset uint32, ids []uint32) error
	Slots(offset, length uint32) ([]uint32, error)
	SetSlotsUsed(n uint32)

	// Grace returns when every program that ran at the call has ended.
	Grace() error
}

// IDs gives things small numbers that survive the agent: bpf.IDs, or a model of it in tests.
type IDs interface {
	// Acquire returns the id that the thing has already, or a new one.
	Acquire(kind bpf.IDKind, description string) (bpf.ID, error)
	// Find returns the id that the thing has, if any.
	Find(kind bpf.IDKind, description string) (bpf.ID, bool, error)
	ReleaseSignature(kind bpf.IDKind, signature bpf.Signature) error
	List(kind bpf.IDKind) ([]bpf.Interned, error)
}

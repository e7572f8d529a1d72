// SPDX-License-Identifier: Apache-2.0

package service

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
)

// Family is an address family. A dual-stack Service is two services that know nothing of each other.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String returns IPv4 or IPv6, as Kubernetes writes them.
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// familyOf returns the family of an unmapped address.
func familyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// any returns the address that stands for every node address in the frontend of a NodePort.
func (f Family) any() netip.Addr {
	if f == IPv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// Key names a service: one Service port in one family (kube-proxy's ServicePortName, pkg/proxy/types.go).
type Key struct {
	cluster.Key
	Port     string // name of the port, empty when the Service has only one
	Protocol cluster.Protocol
	Family   Family
}

// String returns "namespace/name:port/protocol/family" without what is empty.
func (k Key) String() string {
	var b strings.Builder
	b.WriteString(k.Namespace)
	b.WriteByte('/')
	b.WriteString(k.Name)
	if k.Port != "" {
		b.WriteByte(':')
		b.WriteString(k.Port)
	}
	b.WriteByte('/')
	b.WriteString(protocolName(k.Protocol))
	b.WriteByte('/')
	b.WriteString(k.Family.String())
	return b.String()
}

// description is what the service's signature is made from. Names cannot contain a space, so no two keys have the same.
func (k Key) description() string {
	return strings.Join([]string{"service", k.Namespace, k.Name, k.Port, protocolName(k.Protocol), k.Family.String()}, " ")
}

// backendDescription is what the signature of a backend is made from: a backend is one (service, address, port).
func backendDescription(service bpf.Signature, a netip.AddrPort) string {
	b := make([]byte, 0, 7+len(service)+16+2)
	b = append(b, "backend"...)
	b = append(b, service[:]...)
	addr := a.Addr().As16()
	b = append(b, addr[:]...)
	b = binary.BigEndian.AppendUint16(b, a.Port())
	return string(b)
}

// protocolName returns the lower-case name of a protocol that Services know.
func protocolName(p cluster.Protocol) string {
	switch p {
	case cluster.TCP:
		return "tcp"
	case cluster.UDP:
		return "udp"
	case cluster.SCTP:
		return "sctp"
	}
	return "unknown"
}

// SPDX-License-Identifier: Apache-2.0

// Package cluster holds what Fairlead knows of a cluster, as values: nodes, pods, services and endpoint slices, and how they follow
// from Kubernetes API objects. Values are immutable once they are emitted, so they may be shared between goroutines.
package cluster

import (
	"context"
	"net/netip"
	"time"
)

// Kind names a sort of value.
type Kind uint8

// The kinds a Source may yield.
const (
	NodeKind Kind = iota
	PodKind
	NamespaceKind
	ServiceKind
	SliceKind
	Kinds // number of kinds
)

// Key names one object of a kind; cluster-wide objects have no namespace.
type Key struct {
	Namespace, Name string
}

// Change says that an object now is Value (*Node, *Pod, *Namespace, *Service or *Slice by Kind), or is gone when Value is nil.
type Change struct {
	Kind  Kind
	Key   Key
	Value any
}

// Batch is what a source learned at one moment. A kind in Synced has been listed completely with the changes up to and including this
// batch: only from then on does "not seen" mean "does not exist".
type Batch struct {
	Changes []Change
	Synced  []Kind
}

// Source yields values until the context ends. It calls emit from one goroutine at a time.
type Source interface {
	Run(ctx context.Context, emit func(Batch)) error
}

// Protocol is an IP protocol number.
type Protocol uint8

// The protocols that Services and policies know.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// Node is a machine of the cluster.
type Node struct {
	Name        string
	UID         string
	Created     time.Time      // of the Node object; zero: unknown
	PodCIDRs    []netip.Prefix // masked, at most one per family
	InternalIPs []netip.Addr   // status order, unmapped
	Zone        string         // topology.kubernetes.io/zone
	Deleting    bool           // has a deletionTimestamp
	Excluded    bool           // tainted ToBeDeletedByClusterAutoscaler
	MTU         int            // fairlead.io/mtu annotation of the node in bytes; 0: unknown
}

// Pod is a workload with an address of its own, or on the host network.
type Pod struct {
	Namespace, Name string
	UID             string
	ConfigHash      string // kubernetes.io/config.hash of static pods: what the kubelet calls their UID
	Node            string
	IPs             []netip.Addr
	HostNetwork     bool
	Terminal        bool // phase Succeeded or Failed
	Ready           bool // condition Ready, and not deleting
	Deleting        bool
	Labels          map[string]string
	Annotations     map[string]string // fairlead.io/* only
	Ports           []PodPort         // named container ports
}

// PodPort is a container port with a name.
type PodPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Namespace is a Kubernetes namespace.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// Service is a Kubernetes Service that a service proxy must serve: never headless, never ExternalName, never labelled for another proxy.
type Service struct {
	Namespace, Name string
	UID             string
	Created         time.Time
	ClusterIPs      []netip.Addr
	ExternalIPs     []netip.Addr
	LoadBalancerIPs []netip.Addr   // status.loadBalancer.ingress[].ip with ipMode nil or VIP
	SourceRanges    []netip.Prefix // loadBalancerSourceRanges, masked
	Ports           []ServicePort
	InternalLocal   bool // internalTrafficPolicy: Local
	ExternalLocal   bool // externalTrafficPolicy: Local
	AffinitySeconds int  // sessionAffinity ClientIP: 1 to 86400; 0: none
	HealthCheckPort uint16
	Selector        map[string]string // used in standalone mode only
	NotReady        bool              // publishNotReadyAddresses; used in standalone mode only
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Name       string
	Protocol   Protocol
	Port       uint16
	NodePort   uint16 // 0: none
	TargetPort string // number or name; used in standalone mode only
}

// Slice is an EndpointSlice of one address family.
type Slice struct {
	Namespace, Name string
	Service         string // kubernetes.io/service-name
	IPv6            bool   // address type IPv6
	Ports           []SlicePort
	Endpoints       []Endpoint
	LastChange      time.Time // endpoints.kubernetes.io/last-change-trigger-time; zero: unknown
}

// SlicePort is a port that every endpoint of a slice has.
type SlicePort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Endpoint is one address of a slice, with nil conditions resolved (EndpointSlice API: ready and serving default to true,
// terminating to false).
type Endpoint struct {
	Addr        netip.Addr
	Ready       bool
	Serving     bool
	Terminating bool
	Node        string // empty: unknown, never this one
	ForZones    []string
	ForNodes    []string
}

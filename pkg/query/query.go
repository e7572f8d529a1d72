// SPDX-License-Identifier: Apache-2.0

// Package query is the protocol between the fairlead CLI and the agent: HTTP with JSON bodies over a unix socket that only root may
// open. Paths carry the version, /v1/status; an agent answers its own version and the one before it, a CLI asks for its own and falls
// back to the one before, so either may be one release newer than the other. Within a version fields are only added.
package query

import "time"

// Version is the newest version of the protocol that this build speaks. There is none before it.
const Version = 1

// Status is the answer to /v1/status: the agent and what it works on, in short.
type Status struct {
	Agent      Agent       `json:"agent"`
	Node       Node        `json:"node"`
	Ready      bool        `json:"ready"`
	Gates      []Gate      `json:"gates"`
	Endpoints  int         `json:"endpoints"` // pods of this node
	Peers      int         `json:"peers"`     // other nodes
	Services   int         `json:"services"`  // service ports, both families together
	Backends   int         `json:"backends"`
	Pools      []Pool      `json:"pools"`
	Maps       []Map       `json:"maps"`
	Conditions []Condition `json:"conditions"`
	Errors     []Error     `json:"errors"` // oldest first
}

// Agent is the process that answers.
type Agent struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Source  string    `json:"source"` // where the cluster's objects come from
}

// Node is the own node as the agent uses it.
type Node struct {
	Name        string   `json:"name"`
	IPs         []string `json:"ips"`
	PodCIDRs    []string `json:"podCIDRs"`
	MTU         int      `json:"mtu"` // bytes of the largest packet in a pod
	RoutingMode string   `json:"routingMode"`
	SocketLB    bool     `json:"socketLB"`
}

// Gate says whether a domain may write: only once what it is computed from has been listed completely.
type Gate struct {
	Name    string   `json:"name"`
	Open    bool     `json:"open"`
	Waiting []string `json:"waiting,omitempty"` // what has not come yet
}

// Pool is the use of a pod CIDR of this node, in addresses.
type Pool struct {
	CIDR    string `json:"cidr"`
	Size    int    `json:"size"`    // that pods can have
	Used    int    `json:"used"`    // by pods
	Cooling int    `json:"cooling"` // free, and not given out again yet while there are others
}

// Map is the use of a BPF map.
type Map struct {
	Name     string `json:"name"`
	Capacity uint64 `json:"capacity"` // entries
	Used     uint64 `json:"used"`
	Failed   uint64 `json:"failed"` // inserts that found no room, since the agent started
}

// Condition is something that is wrong now and stays so until somebody changes it. What it concerns keeps its last good state.
type Condition struct {
	Component string    `json:"component"`
	Object    string    `json:"object,omitempty"`
	Message   string    `json:"message"`
	Since     time.Time `json:"since,omitzero"`
}

// Error is a warning or an error that was logged.
type Error struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"`
	Message string    `json:"message"` // with its attributes as key=value
}

// Drop is one reason for which packets or system calls are refused. Reasons that never happened are in the list as well.
type Drop struct {
	Reason string `json:"reason"`
	Count  uint64 `json:"count"` // since the maps were made
}

// Drops is the answer to /v1/drops.
type Drops struct {
	Drops    []Drop    `json:"drops"`
	Counters []Counter `json:"counters"`
}

// Counter is something that is counted and drops nothing.
type Counter struct {
	Name  string `json:"name"`
	Count uint64 `json:"count"`
}

// Service is one service port in one family.
type Service struct {
	Namespace  string     `json:"namespace"`
	Name       string     `json:"name"`
	Port       string     `json:"port"` // its name; empty when it has none
	Protocol   string     `json:"protocol"`
	ID         uint32     `json:"id"`
	Frontends  []Frontend `json:"frontends"`
	Cluster    []string   `json:"cluster"` // backends for traffic policy Cluster, address:port
	Local      []string   `json:"local"`   // backends on this node, for traffic policy Local
	Affinity   int        `json:"affinitySeconds,omitempty"`
	Conditions []string   `json:"conditions,omitempty"`
}

// Frontend is an address at which a service is reached.
type Frontend struct {
	Class   string `json:"class"`
	Address string `json:"address"` // address:port
}

// Services is the answer to /v1/services.
type Services struct {
	Services []Service `json:"services"`
}

// Endpoint is a pod of this node.
type Endpoint struct {
	ID        uint32   `json:"id"`
	Namespace string   `json:"namespace"`
	Pod       string   `json:"pod"`
	Container string   `json:"container"` // container ID of the sandbox
	Interface string   `json:"interface"` // inside the pod
	Link      string   `json:"link"`      // on the host
	IPs       []string `json:"ips"`
	State     string   `json:"state"`
}

// Endpoints is the answer to /v1/endpoints.
type Endpoints struct {
	Endpoints []Endpoint `json:"endpoints"`
}

// Peer is another node.
type Peer struct {
	Name     string   `json:"name"`
	ID       uint32   `json:"id"`
	IP       string   `json:"ip"` // outer address
	PodCIDRs []string `json:"podCIDRs"`
	Mode     string   `json:"mode"` // overlay or direct
	MTU      int      `json:"mtu"`  // bytes; 0: the own node's
}

// Peers is the answer to /v1/peers.
type Peers struct {
	Peers []Peer `json:"peers"`
}

// Failure is the body of every answer that is not 200.
type Failure struct {
	Message string `json:"error"`
}

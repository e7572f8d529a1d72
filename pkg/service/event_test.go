// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// event makes a few random things happen at once.
func (r *trial) event() {
	var b cluster.Batch
	for range 1 + r.rand.IntN(4) {
		b.Changes = append(b.Changes, r.change())
	}
	r.apply(b)
}

func (r *trial) pick(n int) int { return r.rand.IntN(n) }

func (r *trial) chance(percent int) bool { return r.rand.IntN(100) < percent }

func (r *trial) change() cluster.Change {
	name := fmt.Sprint("s", r.pick(6))
	key := cluster.Key{Namespace: "ns", Name: name}
	switch n := r.pick(20); {
	case n == 0:
		return cluster.Change{Kind: cluster.ServiceKind, Key: key}
	case n < 5:
		return cluster.Change{Kind: cluster.ServiceKind, Key: key, Value: r.service(key)}
	case n == 5:
		node := []string{"here", "there", "far"}[r.pick(3)]
		return cluster.Change{Kind: cluster.NodeKind, Key: cluster.Key{Name: node}, Value: &cluster.Node{
			Name: node, Zone: []string{"", "a", "b"}[r.pick(3)], InternalIPs: []netip.Addr{addr4(10, 1, byte(r.pick(8)))},
		}}
	case n < 8:
		return cluster.Change{Kind: cluster.SliceKind, Key: cluster.Key{Namespace: "ns", Name: fmt.Sprint("slice", r.pick(10))}}
	}
	slice := fmt.Sprint("slice", r.pick(10))
	return cluster.Change{Kind: cluster.SliceKind, Key: cluster.Key{Namespace: "ns", Name: slice}, Value: r.slice(slice, name)}
}

func addr4(b, c, d byte) netip.Addr { return netip.AddrFrom4([4]byte{10, b, c, d}) }

func addr6(c, d byte) netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfd, 14: c, 15: d}) }

func (r *trial) service(k cluster.Key) *cluster.Service {
	s := &cluster.Service{
		Namespace: k.Namespace, Name: k.Name, UID: fmt.Sprint("uid", r.pick(3)), Created: time.Unix(int64(100+r.pick(3)), 0),
		InternalLocal: r.chance(25), ExternalLocal: r.chance(25),
	}
	if !r.chance(20) {
		s.ClusterIPs = append(s.ClusterIPs, addr4(0, 0, byte(r.pick(5))))
	}
	if r.chance(40) {
		s.ClusterIPs = append(s.ClusterIPs, addr6(0, byte(r.pick(5))))
	}
	if r.chance(30) {
		s.LoadBalancerIPs = append(s.LoadBalancerIPs, addr4(0, 0, byte(r.pick(8))))
	}
	if r.chance(30) {
		s.ExternalIPs = append(s.ExternalIPs, addr4(0, 0, byte(r.pick(8))), addr6(0, byte(r.pick(8))))
	}
	if r.chance(20) {
		s.AffinitySeconds = 1 + r.pick(2)
	}
	for r.chance(40) {
		s.SourceRanges = append(s.SourceRanges, []netip.Prefix{
			netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("fd00::/64"),
		}[r.pick(4)])
	}
	for i, name := range []string{"a", "b", "c"} {
		if r.chance(60) {
			p := cluster.ServicePort{Name: name, Protocol: []cluster.Protocol{cluster.TCP, cluster.UDP, cluster.TCP}[i], Port: uint16(80 + r.pick(2))}
			if p.Name == "c" {
				p.Port += 2
			}
			if r.chance(30) {
				p.NodePort = uint16(30000 + r.pick(3))
			}
			s.Ports = append(s.Ports, p)
		}
	}
	return s
}

func (r *trial) slice(name, service string) *cluster.Slice {
	s := &cluster.Slice{Namespace: "ns", Name: name, Service: service, IPv6: r.chance(25)}
	for _, p := range []cluster.SlicePort{{Name: "a", Protocol: cluster.TCP, Port: 8080}, {Name: "b", Protocol: cluster.UDP, Port: 53}, {Name: "c", Protocol: cluster.TCP, Port: 8081}} {
		if r.chance(80) {
			p.Port += uint16(r.pick(2))
			s.Ports = append(s.Ports, p)
		}
	}
	hints := r.pick(3)
	for range r.pick(5) {
		e := cluster.Endpoint{
			Addr: addr4(1, 0, byte(r.pick(8))), Ready: r.chance(70), Serving: r.chance(80), Terminating: r.chance(20),
			Node: []string{"here", "there", "far", ""}[r.pick(4)],
		}
		if s.IPv6 {
			e.Addr = addr6(1, byte(r.pick(8)))
		}
		if hints == 1 || r.chance(20) {
			e.ForZones = []string{"a", "b"}[r.pick(2):]
		}
		if hints == 2 || r.chance(20) {
			e.ForNodes = []string{"here", "there", "far"}[r.pick(3):]
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func describe(b cluster.Batch) string {
	var all []string
	for _, c := range b.Changes {
		switch v := c.Value.(type) {
		case *cluster.Service:
			all = append(all, fmt.Sprintf("service %s %v lb=%v for %v ext=%v %v local=%v/%v", v.Name, v.ClusterIPs, v.LoadBalancerIPs, v.SourceRanges, v.ExternalIPs, v.Ports,
				v.InternalLocal, v.ExternalLocal))
		case *cluster.Slice:
			all = append(all, fmt.Sprintf("slice %s of %s v6=%v %v %d endpoints", v.Name, v.Service, v.IPv6, v.Ports, len(v.Endpoints)))
		default:
			all = append(all, fmt.Sprintf("%v %v %+v", c.Kind, c.Key, c.Value))
		}
	}
	return strings.Join(all, "; ")
}

// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

var (
	errFamily = errors.New("not of the slice's addressType")
	errTime   = errors.New("not a time as in RFC 3339")
)

// FromSlice converts an EndpointSlice. The value is nil when it is not for this proxy: no Service, addressType FQDN, headless, or labelled for
// another one. The error joins *FieldErrors of endpoints and ports that were left out.
func FromSlice(o *discoveryv1.EndpointSlice, in *Interner) (*Slice, error) {
	service := o.Labels[discoveryv1.LabelServiceName]
	if service == "" || o.AddressType == discoveryv1.AddressTypeFQDN || !ours(o.Labels) {
		return nil, nil
	}
	p := problems{kind: "EndpointSlice", object: Key{o.Namespace, o.Name}.String()}
	if o.AddressType != discoveryv1.AddressTypeIPv4 && o.AddressType != discoveryv1.AddressTypeIPv6 {
		p.add("addressType", string(o.AddressType), errors.New("not one of IPv4, IPv6, FQDN"))
		return nil, p.err()
	}
	v := &Slice{
		Namespace: in.intern(o.Namespace),
		Name:      o.Name,
		Service:   in.intern(service),
		IPv6:      o.AddressType == discoveryv1.AddressTypeIPv6,
	}
	if s, ok := o.Annotations[corev1.EndpointsLastChangeTriggerTime]; ok {
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			p.add("metadata.annotations["+corev1.EndpointsLastChangeTriggerTime+"]", s, errTime)
		}
		v.LastChange = t
	}
	for i, port := range o.Ports {
		// As kube-proxy: a port without a name belongs to no Service port, one without a number would mean "all", which nobody serves.
		if port.Name == nil || port.Port == nil || *port.Port == 0 {
			continue
		}
		var protocol string
		if port.Protocol != nil {
			protocol = string(*port.Protocol)
		}
		proto, err := parseProtocol(protocol)
		if err != nil {
			p.add(fmt.Sprintf("ports[%d].protocol", i), protocol, err)
			continue
		}
		number, err := parsePort(*port.Port)
		if err != nil {
			p.add(fmt.Sprintf("ports[%d].port", i), fmt.Sprint(*port.Port), err)
			continue
		}
		v.Ports = append(v.Ports, SlicePort{Name: in.intern(*port.Name), Protocol: proto, Port: number})
	}
	if len(o.Endpoints) > 0 {
		v.Endpoints = make([]Endpoint, 0, len(o.Endpoints))
	}
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		if len(e.Addresses) == 0 {
			continue
		}
		// Only the first address has a meaning (EndpointSlice API).
		a, err := parseUnicast(e.Addresses[0])
		if err == nil && a.Is4() == v.IPv6 {
			err = errFamily
		}
		if err != nil {
			p.add(fmt.Sprintf("endpoints[%d].addresses[0]", i), e.Addresses[0], err)
			continue
		}
		v.Endpoints = append(v.Endpoints, endpoint(e, in))
		v.Endpoints[len(v.Endpoints)-1].Addr = a
	}
	return v, p.err()
}

// endpoint converts all but the address.
func endpoint(e *discoveryv1.Endpoint, in *Interner) Endpoint {
	is := func(b *bool, otherwise bool) bool {
		if b == nil {
			return otherwise
		}
		return *b
	}
	v := Endpoint{
		Ready:       is(e.Conditions.Ready, true),
		Serving:     is(e.Conditions.Serving, true),
		Terminating: is(e.Conditions.Terminating, false),
	}
	if e.NodeName != nil {
		v.Node = in.intern(*e.NodeName)
	}
	if h := e.Hints; h != nil {
		if len(h.ForZones) == 1 {
			v.ForZones = in.list(h.ForZones[0].Name)
		} else {
			for _, z := range h.ForZones {
				v.ForZones = append(v.ForZones, in.intern(z.Name))
			}
		}
		if len(h.ForNodes) == 1 {
			v.ForNodes = in.list(h.ForNodes[0].Name)
		} else {
			for _, n := range h.ForNodes {
				v.ForNodes = append(v.ForNodes, in.intern(n.Name))
			}
		}
	}
	return v
}

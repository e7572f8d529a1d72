// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const (
	// LabelProxyName on a Service or its slices names another service proxy: they are not ours (KEP-2447).
	LabelProxyName = "service.kubernetes.io/service-proxy-name"
	// LabelHeadless marks Services, and slices of Services, that have no virtual address.
	LabelHeadless = corev1.IsHeadlessService

	maxAffinity = 86400 // seconds, the API's bound
)

var (
	errPort       = errors.New("not a port from 1 to 65535")
	errPortTwice  = errors.New("another port of the Service has this number and protocol")
	errNameTwice  = errors.New("another port of the Service has this name")
	errNoName     = errors.New("a Service with several ports names each")
	errRange      = errors.New("not a range; the load balancer's addresses stay closed until it is one")
	errTrafficPol = errors.New("not one of Cluster, Local")
)

// FromService converts a Service. The value is nil when it is not for this proxy: headless, ExternalName, or labelled for another one.
// The error joins *FieldErrors of fields that were left out; with an unusable source range no load balancer address is served, because
// the alternative is an open one.
func FromService(o *corev1.Service, in *Interner) (*Service, error) {
	if !ours(o.Labels) || o.Spec.Type == corev1.ServiceTypeExternalName {
		return nil, nil
	}
	ips, field := o.Spec.ClusterIPs, "spec.clusterIPs[%d]"
	if len(ips) == 0 && o.Spec.ClusterIP != "" {
		ips, field = []string{o.Spec.ClusterIP}, "spec.clusterIP"
	}
	if len(ips) == 0 || ips[0] == "" || ips[0] == corev1.ClusterIPNone {
		return nil, nil
	}
	p := problems{kind: "Service", object: Key{o.Namespace, o.Name}.String()}
	v := &Service{
		Namespace: in.intern(o.Namespace),
		Name:      in.intern(o.Name),
		UID:       string(o.UID),
		Created:   o.CreationTimestamp.Time,
		Selector:  in.labels(o.Spec.Selector),
		NotReady:  o.Spec.PublishNotReadyAddresses,
	}
	for i, s := range ips {
		name := field
		if len(o.Spec.ClusterIPs) > 0 {
			name = fmt.Sprintf(field, i)
		}
		a, err := parseUnicast(s)
		if err == nil && slices.ContainsFunc(v.ClusterIPs, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			err = errFamilyTwice
		}
		if err != nil {
			p.add(name, s, err)
			continue
		}
		v.ClusterIPs = append(v.ClusterIPs, a)
	}
	if s := o.Spec.ClusterIP; s != "" && s != ips[0] {
		p.add("spec.clusterIP", s, fmt.Errorf("is not spec.clusterIPs[0], which is %q and counts", ips[0]))
	}
	for i, s := range o.Spec.ExternalIPs {
		v.ExternalIPs = appendAddr(v.ExternalIPs, s, fmt.Sprintf("spec.externalIPs[%d]", i), &p)
	}
	for i, ing := range o.Status.LoadBalancer.Ingress {
		// An ipMode other than VIP asks to be left alone: traffic must reach the load balancer (KEP-1860).
		if ing.IP == "" || ing.IPMode != nil && *ing.IPMode != corev1.LoadBalancerIPModeVIP {
			continue
		}
		v.LoadBalancerIPs = appendAddr(v.LoadBalancerIPs, ing.IP, fmt.Sprintf("status.loadBalancer.ingress[%d].ip", i), &p)
	}
	for i, s := range o.Spec.LoadBalancerSourceRanges {
		r, err := ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			p.add(fmt.Sprintf("spec.loadBalancerSourceRanges[%d]", i), s, fmt.Errorf("%w: %w", err, errRange))
			v.LoadBalancerIPs = nil
			continue
		}
		if !slices.Contains(v.SourceRanges, r) {
			v.SourceRanges = append(v.SourceRanges, r)
		}
	}
	v.policies(o, &p)
	for i := range o.Spec.Ports {
		v.port(&o.Spec.Ports[i], i, len(o.Spec.Ports) > 1, &p, in)
	}
	return v, p.err()
}

// ours says that neither label hands the object to somebody else; the value of the label does not matter.
func ours(labels map[string]string) bool {
	_, other := labels[LabelProxyName]
	_, headless := labels[LabelHeadless]
	return !other && !headless
}

// policies reads traffic policies, affinity and the health check port.
func (v *Service) policies(o *corev1.Service, p *problems) {
	if t := o.Spec.InternalTrafficPolicy; t != nil {
		switch *t {
		case corev1.ServiceInternalTrafficPolicyLocal:
			v.InternalLocal = true
		case corev1.ServiceInternalTrafficPolicyCluster:
		default:
			p.add("spec.internalTrafficPolicy", string(*t), errTrafficPol)
		}
	}
	switch t := o.Spec.ExternalTrafficPolicy; t {
	case corev1.ServiceExternalTrafficPolicyLocal:
		v.ExternalLocal = true
	case corev1.ServiceExternalTrafficPolicyCluster, "":
	default:
		p.add("spec.externalTrafficPolicy", string(t), errTrafficPol)
	}
	switch a := o.Spec.SessionAffinity; a {
	case corev1.ServiceAffinityClientIP:
		v.AffinitySeconds = int(corev1.DefaultClientIPServiceAffinitySeconds)
		if c := o.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			if s := int(*c.ClientIP.TimeoutSeconds); s < 1 || s > maxAffinity {
				p.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds", fmt.Sprint(s), fmt.Errorf("not from 1 to %d", maxAffinity))
			} else {
				v.AffinitySeconds = s
			}
		}
	case corev1.ServiceAffinityNone, "":
	default:
		p.add("spec.sessionAffinity", string(a), errors.New("not one of None, ClientIP"))
	}
	if n := o.Spec.HealthCheckNodePort; n != 0 && v.ExternalLocal && o.Spec.Type == corev1.ServiceTypeLoadBalancer {
		port, err := parsePort(n)
		if err != nil {
			p.add("spec.healthCheckNodePort", fmt.Sprint(n), err)
		}
		v.HealthCheckPort = port
	}
}

// port adds spec.ports[i]; one that cannot be told from an earlier one is left out.
func (v *Service) port(o *corev1.ServicePort, i int, named bool, p *problems, in *Interner) {
	field := func(name string) string { return fmt.Sprintf("spec.ports[%d].%s", i, name) }
	proto, err := parseProtocol(string(o.Protocol))
	if err != nil {
		p.add(field("protocol"), string(o.Protocol), err)
		return
	}
	number, err := parsePort(o.Port)
	if err == nil && slices.ContainsFunc(v.Ports, func(q ServicePort) bool { return q.Port == number && q.Protocol == proto }) {
		err = errPortTwice
	}
	if err != nil {
		p.add(field("port"), fmt.Sprint(o.Port), err)
		return
	}
	if named && o.Name == "" {
		err = errNoName
	} else if slices.ContainsFunc(v.Ports, func(q ServicePort) bool { return q.Name == o.Name }) {
		err = errNameTwice
	}
	if err != nil {
		p.add(field("name"), o.Name, err)
		return
	}
	var node uint16
	if o.NodePort != 0 {
		if node, err = parsePort(o.NodePort); err != nil {
			p.add(field("nodePort"), fmt.Sprint(o.NodePort), err)
		}
	}
	target := o.TargetPort.String()
	if target == "0" || target == "" { // not given: the API server's defaulting
		target = fmt.Sprint(number)
	}
	v.Ports = append(v.Ports, ServicePort{
		Name: in.intern(o.Name), Protocol: proto, Port: number, NodePort: node, TargetPort: in.intern(target),
	})
}

func parsePort(n int32) (uint16, error) {
	if n < 1 || n > 65535 {
		return 0, errPort
	}
	return uint16(n), nil
}

func appendAddr(list []netip.Addr, s, field string, p *problems) []netip.Addr {
	a, err := parseUnicast(s)
	if err != nil {
		p.add(field, s, err)
		return list
	}
	if slices.Contains(list, a) {
		return list
	}
	return append(list, a)
}

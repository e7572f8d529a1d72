// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"strings"
	"testing"
	"time"
)

func TestFromService(t *testing.T) {
	// svc is a Service with one port and what rest says.
	svc := func(spec, rest string) string {
		return "metadata: {namespace: a, name: s}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]" + strings.TrimSuffix(", "+spec, ", ") + "}\n" + rest
	}
	with := func(change func(*Service)) *Service {
		v := &Service{Namespace: "a", Name: "s", ClusterIPs: addrs("10.96.0.1"), Ports: []ServicePort{{Protocol: TCP, Port: 80, TargetPort: "80"}}}
		change(v)
		return v
	}
	plain := with(func(*Service) {})
	check(t, FromService, []conversion[Service]{
		{"everything", `
metadata: {namespace: a, name: s, uid: u, creationTimestamp: "2026-01-02T03:04:05Z"}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, "fd00:96::1"]
  externalIPs: [1.2.3.4, "2001:db8::1"]
  loadBalancerSourceRanges: [" 10.0.0.0/8", "fd00::1/64 ", 10.0.0.0/8]
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  healthCheckNodePort: 30000
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  publishNotReadyAddresses: true
  selector: {app: web}
  ports:
  - {name: http, port: 80, nodePort: 30080, targetPort: web}
  - {name: dns-tcp, port: 53, protocol: TCP, targetPort: 5353}
  - {name: dns, port: 53, protocol: UDP}
  - {name: s, port: 7, protocol: SCTP}
status: {loadBalancer: {ingress: [{ip: 5.6.7.8}, {ip: "2001:db8::2", ipMode: VIP}, {ip: 5.6.7.9, ipMode: Proxy}, {hostname: example.com}, {ip: 5.6.7.8}]}}`,
			&Service{Namespace: "a", Name: "s", UID: "u", Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Local(),
				ClusterIPs: addrs("10.96.0.1", "fd00:96::1"), ExternalIPs: addrs("1.2.3.4", "2001:db8::1"),
				LoadBalancerIPs: addrs("5.6.7.8", "2001:db8::2"), SourceRanges: prefixes("10.0.0.0/8", "fd00::/64"),
				InternalLocal: true, ExternalLocal: true, AffinitySeconds: 60, HealthCheckPort: 30000, NotReady: true,
				Selector: map[string]string{"app": "web"},
				Ports:    []ServicePort{{"http", TCP, 80, 30080, "web"}, {"dns-tcp", TCP, 53, 0, "5353"}, {"dns", UDP, 53, 0, "53"}, {"s", SCTP, 7, 0, "7"}}}, nil},
		{"clusterIP alone", svc("", ""), plain, nil},
		{"clusterIPs alone", "{metadata: {namespace: a, name: s}, spec: {clusterIPs: [10.96.0.1], ports: [{port: 80}]}}", plain, nil},
		{"leading zeros", "{metadata: {namespace: a, name: s}, spec: {clusterIP: 010.096.000.001, ports: [{port: 80}]}}", plain, nil},
		{"policies spelled out", svc("internalTrafficPolicy: Cluster, externalTrafficPolicy: Cluster, sessionAffinity: None", ""), plain, nil},
		{"health check without Local", svc("type: LoadBalancer, healthCheckNodePort: 30000", ""), plain, nil},
		{"health check without a load balancer", svc("type: NodePort, externalTrafficPolicy: Local, healthCheckNodePort: 30000", ""),
			with(func(v *Service) { v.ExternalLocal = true }), nil},
		{"affinity by default", svc("sessionAffinity: ClientIP", ""), with(func(v *Service) { v.AffinitySeconds = 10800 }), nil},
		{"longest affinity", svc("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86400}}", ""),
			with(func(v *Service) { v.AffinitySeconds = 86400 }), nil},
		{"timeout without affinity", svc("sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}", ""), plain, nil},
		{"no ports", "{metadata: {namespace: a, name: s}, spec: {clusterIP: 10.96.0.1}}", with(func(v *Service) { v.Ports = nil }), nil},

		{"headless", "{metadata: {namespace: a, name: s}, spec: {clusterIP: None, clusterIPs: [None]}}", nil, nil},
		{"not allocated yet", `{metadata: {namespace: a, name: s}, spec: {clusterIP: ""}}`, nil, nil},
		{"ExternalName", "{metadata: {namespace: a, name: s}, spec: {type: ExternalName, externalName: x, clusterIP: 10.96.0.1}}", nil, nil},
		{"another proxy's, whatever the value", `{metadata: {name: s, labels: {service.kubernetes.io/service-proxy-name: ""}}, spec: {clusterIP: 10.96.0.1}}`, nil, nil},
		{"labelled headless", `{metadata: {name: s, labels: {service.kubernetes.io/headless: ""}}, spec: {clusterIP: 10.96.0.1}}`, nil, nil},

		{"two of a family", "{metadata: {namespace: a, name: s}, spec: {clusterIPs: [10.96.0.1, 10.96.0.2], ports: [{port: 80}]}}", plain,
			[]string{`Service a/s: spec.clusterIPs[1]: "10.96.0.2": a second one of this family; the first one counts`}},
		{"two that disagree", "{metadata: {namespace: a, name: s}, spec: {clusterIP: 10.96.0.9, clusterIPs: [10.96.0.1], ports: [{port: 80}]}}", plain,
			[]string{`Service a/s: spec.clusterIP: "10.96.0.9": is not spec.clusterIPs[0], which is "10.96.0.1" and counts`}},
		{"no usable address", "{metadata: {namespace: a, name: s}, spec: {clusterIP: 0.0.0.0, ports: [{port: 80}]}}",
			with(func(v *Service) { v.ClusterIPs = nil }), []string{`Service a/s: spec.clusterIP: "0.0.0.0": the unspecified address`}},
		{"bad range closes the load balancer", svc("loadBalancerSourceRanges: [10.0.0.0/8, 10.0.0.0/40]", "status: {loadBalancer: {ingress: [{ip: 5.6.7.8}]}}"),
			with(func(v *Service) { v.SourceRanges = prefixes("10.0.0.0/8") }), []string{
				`Service a/s: spec.loadBalancerSourceRanges[1]: "10.0.0.0/40": not an address/length: not a range; the load balancer's addresses stay closed until it is one`}},
		{"wrong values", svc("internalTrafficPolicy: local, externalTrafficPolicy: Node, sessionAffinity: Cookie, externalIPs: [x, 127.0.0.1, 1.2.3.4]",
			"status: {loadBalancer: {ingress: [{ip: why}]}}"), with(func(v *Service) { v.ExternalIPs = addrs("1.2.3.4") }), []string{
			`Service a/s: spec.externalIPs[0]: "x": not an IP address`,
			`Service a/s: spec.externalIPs[1]: "127.0.0.1": a loopback address`,
			`Service a/s: status.loadBalancer.ingress[0].ip: "why": not an IP address`,
			`Service a/s: spec.internalTrafficPolicy: "local": not one of Cluster, Local`,
			`Service a/s: spec.externalTrafficPolicy: "Node": not one of Cluster, Local`,
			`Service a/s: spec.sessionAffinity: "Cookie": not one of None, ClientIP`,
		}},
		{"affinity out of range", svc("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}", ""),
			with(func(v *Service) { v.AffinitySeconds = 10800 }), []string{
				`Service a/s: spec.sessionAffinityConfig.clientIP.timeoutSeconds: "86401": not from 1 to 86400`}},
		{"bad health check port", svc("type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: -1", ""),
			with(func(v *Service) { v.ExternalLocal = true }), []string{`Service a/s: spec.healthCheckNodePort: "-1": not a port from 1 to 65535`}},
		{"wrong ports", `
metadata: {namespace: a, name: s}
spec:
  clusterIP: 10.96.0.1
  ports:
  - {name: a, port: 80, nodePort: 70000, targetPort: 0}
  - {name: b, port: 80}
  - {name: c, port: 80, protocol: UDP}
  - {name: a, port: 81}
  - {port: 82}
  - {name: f, port: 0}
  - {name: g, port: 83, protocol: ICMP}`,
			with(func(v *Service) {
				v.Ports = []ServicePort{{"a", TCP, 80, 0, "80"}, {"c", UDP, 80, 0, "80"}}
			}), []string{
				`Service a/s: spec.ports[0].nodePort: "70000": not a port from 1 to 65535`,
				`Service a/s: spec.ports[1].port: "80": another port of the Service has this number and protocol`,
				`Service a/s: spec.ports[3].name: "a": another port of the Service has this name`,
				`Service a/s: spec.ports[4].name: "": a Service with several ports names each`,
				`Service a/s: spec.ports[5].port: "0": not a port from 1 to 65535`,
				`Service a/s: spec.ports[6].protocol: "ICMP": not one of TCP, UDP, SCTP`,
			}},
	})
}

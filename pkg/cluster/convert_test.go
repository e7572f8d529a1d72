// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// conversion is one object, what it means and what is wrong with it.
type conversion[V any] struct {
	name string
	yaml string
	want *V
	errs []string
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// check converts each object with and without an interner.
func check[O, V any](t *testing.T, from func(*O, *Interner) (*V, error), cases []conversion[V]) {
	t.Helper()
	in := NewInterner()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, in := range []*Interner{nil, in} {
				o := new(O)
				if err := yaml.UnmarshalStrict([]byte(c.yaml), o); err != nil {
					t.Fatal(err)
				}
				v, err := from(o, in)
				if diff := cmp.Diff(c.want, v, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
					t.Errorf("value (-want +got):\n%s", diff)
				}
				var errs []string
				for _, f := range FieldErrors(err) {
					errs = append(errs, f.Error())
				}
				if diff := cmp.Diff(c.errs, errs); diff != "" {
					t.Errorf("errors (-want +got):\n%s", diff)
				}
				if (err == nil) != (len(errs) == 0) {
					t.Errorf("error %v has no fields", err)
				}
			}
		})
	}
}

func TestFromNode(t *testing.T) {
	check(t, FromNode, []conversion[Node]{
		{"everything", `
metadata: {name: n1, uid: u1, creationTimestamp: "2026-01-02T03:04:05Z", labels: {topology.kubernetes.io/zone: z1}, annotations: {fairlead.io/mtu: "1450"}}
spec: {podCIDR: 10.0.1.0/24, podCIDRs: [10.0.1.0/24, "fd00:0:0:1::/64"], taints: [{key: other, effect: NoSchedule}]}
status: {addresses: [{type: Hostname, address: n1}, {type: InternalIP, address: "fd00::1"}, {type: ExternalIP, address: 1.2.3.4},
  {type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: 192.0.2.1}]}`,
			&Node{Name: "n1", UID: "u1", Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Local(), Zone: "z1", MTU: 1450,
				PodCIDRs: prefixes("10.0.1.0/24", "fd00:0:0:1::/64"), InternalIPs: addrs("fd00::1", "192.0.2.1")}, nil},
		{"podCIDR alone", "{metadata: {name: n1}, spec: {podCIDR: 10.0.1.7/24}}", &Node{Name: "n1", PodCIDRs: prefixes("10.0.1.0/24")}, nil},
		{"none at all", "{metadata: {name: n1}}", &Node{Name: "n1"}, nil},
		{"leading zeros", `
metadata: {name: n1}
spec: {podCIDRs: [010.000.001.0/24]}
status: {addresses: [{type: InternalIP, address: 192.000.002.010}]}`,
			&Node{Name: "n1", PodCIDRs: prefixes("10.0.1.0/24"), InternalIPs: addrs("192.0.2.10")}, nil},
		{"deleting and excluded", `
metadata: {name: n1, deletionTimestamp: "2026-01-01T00:00:00Z"}
spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, value: "1", effect: NoSchedule}]}`,
			&Node{Name: "n1", Deleting: true, Excluded: true}, nil},
		{"bad CIDR leaves the other", "{metadata: {name: n1}, spec: {podCIDRs: [10.0.1.0/24/1, \"fd00::/64\"]}}",
			&Node{Name: "n1", PodCIDRs: prefixes("fd00::/64")},
			[]string{`Node n1: spec.podCIDRs[0]: "10.0.1.0/24/1": not an address/length`}},
		{"bad podCIDR", "{metadata: {name: n1}, spec: {podCIDR: ten}}", &Node{Name: "n1"},
			[]string{`Node n1: spec.podCIDR: "ten": not an address/length`}},
		{"two of a family", "{metadata: {name: n1}, spec: {podCIDRs: [10.0.1.0/24, 10.0.2.0/24]}}",
			&Node{Name: "n1", PodCIDRs: prefixes("10.0.1.0/24")},
			[]string{`Node n1: spec.podCIDRs[1]: "10.0.2.0/24": a second one of this family; the first one counts`}},
		{"two that disagree", "{metadata: {name: n1}, spec: {podCIDR: 10.0.9.0/24, podCIDRs: [10.0.1.0/24]}}",
			&Node{Name: "n1", PodCIDRs: prefixes("10.0.1.0/24")},
			[]string{`Node n1: spec.podCIDR: "10.0.9.0/24": is not spec.podCIDRs[0], which is "10.0.1.0/24" and counts`}},
		{"addresses that are none", `
metadata: {name: n1, annotations: {fairlead.io/mtu: "1279"}}
status: {addresses: [{type: InternalIP, address: n1}, {type: InternalIP, address: 127.0.0.1}, {type: InternalIP, address: 0.0.0.0},
  {type: InternalIP, address: "ff02::1"}, {type: InternalIP, address: 255.255.255.255}, {type: InternalIP, address: "fe80::1%eth0"}]}`,
			&Node{Name: "n1"}, []string{
				`Node n1: status.addresses[0].address: "n1": not an IP address`,
				`Node n1: status.addresses[1].address: "127.0.0.1": a loopback address`,
				`Node n1: status.addresses[2].address: "0.0.0.0": the unspecified address`,
				`Node n1: status.addresses[3].address: "ff02::1": a multicast address`,
				`Node n1: status.addresses[4].address: "255.255.255.255": the broadcast address`,
				`Node n1: status.addresses[5].address: "fe80::1%eth0": an address with a zone belongs to one machine only`,
				`Node n1: metadata.annotations[fairlead.io/mtu]: "1279": not a number from 1280 to 65535`,
			}},
	})
}

func TestFromPod(t *testing.T) {
	check(t, FromPod, []conversion[Pod]{
		{"everything", `
metadata: {namespace: a, name: p, uid: u, labels: {app: web}, annotations: {kubernetes.io/config.hash: h, fairlead.io/socket-lb: "off", other: x}}
spec:
  nodeName: n1
  initContainers:
  - {name: init, ports: [{name: never, containerPort: 1}]}
  - {name: sidecar, restartPolicy: Always, ports: [{name: side, containerPort: 9000}]}
  containers:
  - {name: c, ports: [{name: http, containerPort: 8080}, {containerPort: 1}, {name: dns, containerPort: 53, protocol: UDP}, {name: s, containerPort: 7, protocol: SCTP}]}
status: {phase: Running, podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}], conditions: [{type: PodScheduled, status: "True"}, {type: Ready, status: "True"}]}`,
			&Pod{Namespace: "a", Name: "p", UID: "u", ConfigHash: "h", Node: "n1", IPs: addrs("10.0.0.2", "fd00::2"), Ready: true,
				Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"fairlead.io/socket-lb": "off"},
				Ports: []PodPort{{"http", TCP, 8080}, {"dns", UDP, 53}, {"s", SCTP, 7}, {"side", TCP, 9000}}}, nil},
		{"podIP alone", "{metadata: {namespace: a, name: p}, spec: {hostNetwork: true}, status: {podIP: 192.000.2.1}}",
			&Pod{Namespace: "a", Name: "p", HostNetwork: true, IPs: addrs("192.0.2.1")}, nil},
		{"succeeded", "{metadata: {namespace: a, name: p}, status: {phase: Succeeded}}", &Pod{Namespace: "a", Name: "p", Terminal: true}, nil},
		{"failed", "{metadata: {namespace: a, name: p}, status: {phase: Failed}}", &Pod{Namespace: "a", Name: "p", Terminal: true}, nil},
		{"ready but going", `{metadata: {namespace: a, name: p, deletionTimestamp: "2026-01-01T00:00:00Z"}, status: {conditions: [{type: Ready, status: "True"}]}}`,
			&Pod{Namespace: "a", Name: "p", Deleting: true}, nil},
		{"readiness unknown", `{metadata: {namespace: a, name: p}, status: {conditions: [{type: Ready, status: Unknown}]}}`, &Pod{Namespace: "a", Name: "p"}, nil},
		{"wrong", `
metadata: {namespace: a, name: p}
spec: {containers: [{name: c, ports: [{name: x, containerPort: 0}, {name: y, containerPort: 70000}, {name: z, containerPort: 1, protocol: ICMP}]}]}
status: {podIPs: [{ip: x}, {ip: 10.0.0.2}, {ip: 010.0.0.2}]}`,
			&Pod{Namespace: "a", Name: "p", IPs: addrs("10.0.0.2")}, []string{
				`Pod a/p: status.podIPs[0].ip: "x": not an IP address`,
				`Pod a/p: status.podIPs[2].ip: "010.0.0.2": given twice`,
				`Pod a/p: spec.containers[0].ports[0].containerPort: "0": not a port from 1 to 65535`,
				`Pod a/p: spec.containers[0].ports[1].containerPort: "70000": not a port from 1 to 65535`,
				`Pod a/p: spec.containers[0].ports[2].protocol: "ICMP": not one of TCP, UDP, SCTP`,
			}},
	})
}

func TestFromNamespace(t *testing.T) {
	check(t, func(o *corev1.Namespace, in *Interner) (*Namespace, error) { return FromNamespace(o, in), nil }, []conversion[Namespace]{
		{"labels", "{metadata: {name: a, labels: {x: b}}}", &Namespace{Name: "a", Labels: map[string]string{"x": "b"}}, nil},
		{"none", "{metadata: {name: a}}", &Namespace{Name: "a"}, nil},
	})
}

func TestFromSlice(t *testing.T) {
	meta := "metadata: {namespace: a, name: s, labels: {kubernetes.io/service-name: web}}\n"
	ep := func(e Endpoint) *Slice {
		return &Slice{Namespace: "a", Name: "s", Service: "web", Endpoints: []Endpoint{e}}
	}
	one := netip.MustParseAddr("10.0.0.2")
	check(t, FromSlice, []conversion[Slice]{
		{"everything", `
metadata: {namespace: a, name: s, labels: {kubernetes.io/service-name: web}, annotations: {endpoints.kubernetes.io/last-change-trigger-time: "2026-01-02T03:04:05.6Z"}}
addressType: IPv6
ports: [{name: http, port: 80}, {name: "", port: 53, protocol: UDP}, {name: s, port: 5, protocol: SCTP}]
endpoints: [{addresses: ["fd00::1", "fd00::2"], nodeName: n1, hints: {forZones: [{name: z1}, {name: z2}], forNodes: [{name: n1}]}}]`,
			&Slice{Namespace: "a", Name: "s", Service: "web", IPv6: true, LastChange: time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC),
				Ports: []SlicePort{{"http", TCP, 80}, {"", UDP, 53}, {"s", SCTP, 5}},
				Endpoints: []Endpoint{{Addr: netip.MustParseAddr("fd00::1"), Ready: true, Serving: true, Node: "n1",
					ForZones: []string{"z1", "z2"}, ForNodes: []string{"n1"}}}}, nil},
		{"no conditions", meta + "addressType: IPv4\nendpoints: [{addresses: [10.0.0.2]}]",
			ep(Endpoint{Addr: one, Ready: true, Serving: true}), nil},
		{"ready false only", meta + "addressType: IPv4\nendpoints: [{addresses: [10.0.0.2], conditions: {ready: false}}]",
			ep(Endpoint{Addr: one, Serving: true}), nil},
		{"terminating", meta + "addressType: IPv4\nendpoints: [{addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}]",
			ep(Endpoint{Addr: one, Serving: true, Terminating: true}), nil},
		{"not serving", meta + "addressType: IPv4\nendpoints: [{addresses: [10.0.0.2], conditions: {ready: false, serving: false, terminating: false}}]",
			ep(Endpoint{Addr: one}), nil},
		{"published though not ready", meta + "addressType: IPv4\nendpoints: [{addresses: [10.0.0.2], conditions: {ready: true, serving: false, terminating: true}}]",
			ep(Endpoint{Addr: one, Ready: true, Terminating: true}), nil},
		{"empty hints", meta + "addressType: IPv4\nendpoints: [{addresses: [10.0.0.2], hints: {}}]", ep(Endpoint{Addr: one, Ready: true, Serving: true}), nil},
		{"leading zeros", meta + "addressType: IPv4\nendpoints: [{addresses: [010.00.000.02]}]", ep(Endpoint{Addr: one, Ready: true, Serving: true}), nil},
		{"empty", meta + "addressType: IPv4", &Slice{Namespace: "a", Name: "s", Service: "web"}, nil},
		{"ports without name or number", meta + "addressType: IPv4\nports: [{port: 80}, {name: a}, {name: b, port: 0}, {name: c, port: 1}]",
			&Slice{Namespace: "a", Name: "s", Service: "web", Ports: []SlicePort{{"c", TCP, 1}}}, nil},
		{"endpoint without address", meta + "addressType: IPv4\nendpoints: [{addresses: []}, {addresses: [10.0.0.2]}]",
			ep(Endpoint{Addr: one, Ready: true, Serving: true}), nil},
		{"names of hosts", meta + "addressType: FQDN\nendpoints: [{addresses: [example.com]}]", nil, nil},
		{"no Service", "metadata: {namespace: a, name: s}\naddressType: IPv4", nil, nil},
		{"headless", "metadata: {name: s, labels: {kubernetes.io/service-name: web, service.kubernetes.io/headless: \"\"}}\naddressType: IPv4", nil, nil},
		{"another proxy's", "metadata: {name: s, labels: {kubernetes.io/service-name: web, service.kubernetes.io/service-proxy-name: x}}\naddressType: IPv4", nil, nil},
		{"unknown type", meta + "addressType: ipv4", nil, []string{`EndpointSlice a/s: addressType: "ipv4": not one of IPv4, IPv6, FQDN`}},
		{"wrong", `
metadata: {namespace: a, name: s, labels: {kubernetes.io/service-name: web}, annotations: {endpoints.kubernetes.io/last-change-trigger-time: now}}
addressType: IPv4
ports: [{name: a, port: 65536}, {name: b, port: 1, protocol: tcp}]
endpoints: [{addresses: ["fd00::1"]}, {addresses: [x, 10.0.0.9]}, {addresses: [127.0.0.1]}, {addresses: [10.0.0.2]}, {addresses: ["::ffff:10.0.0.3"]}]`,
			&Slice{Namespace: "a", Name: "s", Service: "web", Endpoints: []Endpoint{{Addr: one, Ready: true, Serving: true},
				{Addr: netip.MustParseAddr("10.0.0.3"), Ready: true, Serving: true}}}, []string{
				`EndpointSlice a/s: metadata.annotations[endpoints.kubernetes.io/last-change-trigger-time]: "now": not a time as in RFC 3339`,
				`EndpointSlice a/s: ports[0].port: "65536": not a port from 1 to 65535`,
				`EndpointSlice a/s: ports[1].protocol: "tcp": not one of TCP, UDP, SCTP`,
				`EndpointSlice a/s: endpoints[0].addresses[0]: "fd00::1": not of the slice's addressType`,
				`EndpointSlice a/s: endpoints[1].addresses[0]: "x": not an IP address`,
				`EndpointSlice a/s: endpoints[2].addresses[0]: "127.0.0.1": a loopback address`,
			}},
	})
}

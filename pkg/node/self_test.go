// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/link"
)

func TestCompileSelf(t *testing.T) {
	net := network{
		devices: []link.Device{
			{Index: 1, Name: "lo", MTU: 65536, Loopback: true}, {Index: 2, Name: "eth0", MTU: 9001}, {Index: 3, Name: "eth1", MTU: 1500},
			{Index: 4, Name: "tiny", MTU: 1300}, {Index: 5, Name: "ib0", MTU: 65520}, {Index: 6, Name: Device, MTU: 8951},
		},
		addresses: []link.Address{
			{Link: 1, Prefix: netip.MustParsePrefix("198.51.100.1/32")}, {Link: 1, Prefix: netip.MustParsePrefix("2001:db8:f::1/128")},
			{Link: 2, Prefix: netip.MustParsePrefix("192.0.2.1/24")}, {Link: 2, Prefix: netip.MustParsePrefix("2001:db8::1/64")},
			{Link: 2, Prefix: netip.MustParsePrefix("fe80::1/64")},
			{Link: 3, Prefix: netip.MustParsePrefix("203.0.113.1/30")}, {Link: 4, Prefix: netip.MustParsePrefix("192.0.2.129/25")},
			{Link: 5, Prefix: netip.MustParsePrefix("192.0.3.1/24")},
		},
		defaults: func(like netip.Addr) ([]int, error) {
			if like.Is4() {
				return []int{2, 3}, nil
			}
			return nil, nil
		},
	}
	ip := netip.MustParseAddr
	for _, c := range []struct {
		name  string
		cfg   Config
		own   *cluster.Node
		want  string // device and MTU
		error string
	}{
		{name: "jumbo", own: nodeOf("a", "10.244.1.0/24", "192.0.2.1"), want: "eth0 8951"},
		{name: "outer IPv6 first", own: nodeOf("a", "10.244.1.0/24", "2001:db8::1 192.0.2.1"), want: "eth0 8931"},
		{name: "direct", cfg: Config{Mode: Direct}, own: nodeOf("a", "10.244.1.0/24", "192.0.2.1"), want: "eth0 9001"},
		{name: "auto", cfg: Config{Mode: Auto}, own: nodeOf("a", "10.244.1.0/24", "192.0.2.1"), want: "eth0 8951"},
		{name: "address on loopback", own: nodeOf("a", "10.244.1.0/24", "198.51.100.1"), want: "eth1 1450"},
		{name: "largest", own: nodeOf("a", "10.244.1.0/24", "192.0.3.1"), want: "ib0 65470"},
		{name: "configured", cfg: Config{MTU: 1400}, own: nodeOf("a", "10.244.1.0/24", "192.0.2.1"), want: "eth0 1400"},
		{name: "node ip", cfg: Config{NodeIPs: []netip.Addr{ip("203.0.113.1")}}, own: nodeOf("a", "10.244.1.0/24", "192.0.2.1"), want: "eth1 1450"},
		{name: "device", cfg: Config{Devices: []string{"eth1"}}, own: nodeOf("a", "10.244.1.0/24", "192.0.2.1"), want: "eth1 1450"},
		{name: "first device that is there", cfg: Config{Devices: []string{"eno1", "eth1", "eth0"}}, own: nodeOf("a", "10.244.1.0/24", "192.0.2.1"), want: "eth1 1450"},
		{name: "device and address on loopback", cfg: Config{Devices: []string{"eth0"}}, own: nodeOf("a", "10.244.1.0/24", "198.51.100.1"), want: "eth0 8951"},
		{name: "device without default route", cfg: Config{Devices: []string{"eth0"}}, own: nodeOf("a", "10.244.1.0/24", "2001:db8:f::1"), want: "eth0 8931"},
		{name: "device and MTU", cfg: Config{Devices: []string{"eth1"}, MTU: 1400}, own: nodeOf("a", "10.244.1.0/24", "192.0.2.1"), want: "eth1 1400"},
		{name: "MTU too large for the device", cfg: Config{Devices: []string{"eth1"}, MTU: 8951}, own: nodeOf("a", "10.244.1.0/24", "192.0.2.1"),
			error: "node a: --mtu 8951: device eth1 has 1500 bytes and the way to other nodes needs 50 of them: at most 1450"},
		{name: "no such device", cfg: Config{Devices: []string{"eno1"}}, own: nodeOf("a", "10.244.1.0/24", "192.0.2.1"),
			error: "node a: --devices eno1: no such device on this host"},
		{name: "no such devices", cfg: Config{Devices: []string{"eno1", "eno2"}}, own: nodeOf("a", "10.244.1.0/24", "192.0.2.1"),
			error: "node a: --devices eno1, eno2: no such device on this host"},
		{name: "loopback device", cfg: Config{Devices: []string{"lo"}}, own: nodeOf("a", "10.244.1.0/24", "192.0.2.1"),
			error: "node a: --devices lo: leads to no other node: name an uplink"},
		{name: "overlay device", cfg: Config{Devices: []string{Device}}, own: nodeOf("a", "10.244.1.0/24", "192.0.2.1"),
			error: "node a: --devices fairlead0: leads to no other node: name an uplink"},
		{name: "small but enough for IPv4", own: nodeOf("a", "10.244.1.0/24", "192.0.2.129"), want: "tiny 1250"},
		{name: "too small for IPv6", own: nodeOf("a", "10.244.1.0/24 fd00:1::/64", "192.0.2.129"),
			error: "node a: MTU 1300 on device tiny: leaves pods 1250 bytes, they need 1280"},
		{name: "configured too large", cfg: Config{MTU: 9000}, own: nodeOf("a", "10.244.1.0/24", "192.0.2.1"),
			error: "node a: --mtu 9000: device eth0 has 9001 bytes and the way to other nodes needs 50 of them: at most 8951"},
		{name: "no CIDR", own: nodeOf("a", "", "192.0.2.1"),
			error: "node a: spec.podCIDRs: empty: run kube-controller-manager with --allocate-node-cidrs, or set the field"},
		{name: "no address", own: nodeOf("a", "10.244.1.0/24", ""),
			error: "node a: status.addresses: no InternalIP: the kubelet has not reported one; set --node-ip to go without"},
		{name: "CIDR around the node", own: nodeOf("a", "192.0.2.0/24", "192.0.2.1"),
			error: "node a: spec.podCIDRs: 192.0.2.0/24: contains the node's address 192.0.2.1"},
		{name: "CIDR without room", own: nodeOf("a", "10.244.1.0/31", "192.0.2.1"),
			error: "node a: spec.podCIDRs: 10.244.1.0/31: too small: two addresses are the node's own and none is left for pods"},
		{name: "two of a family", own: nodeOf("a", "10.244.1.0/24 10.244.2.0/24", "192.0.2.1"),
			error: "node a: spec.podCIDRs: 10.244.2.0/24: second one of its family"},
		{name: "address nowhere", own: nodeOf("a", "10.244.1.0/24", "192.0.2.99"),
			error: "node a: InternalIP 192.0.2.99: on no device of this host: set --node-ip to an address that is"},
		{name: "loopback without default route", own: nodeOf("a", "10.244.1.0/24", "2001:db8:f::1"),
			error: "node a: InternalIP 2001:db8:f::1: on device lo, and there is no default route: set --node-ip to the address of an uplink"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := compileSelf(c.cfg, c.own, net)
			if c.error != "" || err != nil {
				if err == nil || err.Error() != c.error {
					t.Fatalf("error %v, want %s", err, c.error)
				}
				return
			}
			if got := strings.Join([]string{s.Underlay.Name, strconv.Itoa(s.MTU)}, " "); got != c.want {
				t.Errorf("device and MTU %s, want %s", got, c.want)
			}
			if s.Overlay4 != ip("10.244.1.0") || s.SNAT4 != ip("10.244.1.1") || s.Overlay6.IsValid() {
				t.Errorf("overlay %s, SNAT %s", s.Overlay4, s.SNAT4)
			}
			if slices.ContainsFunc(s.OnLink, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() || p.IsSingleIP() }) {
				t.Errorf("on link: %v", s.OnLink)
			}
		})
	}
}

func TestMACsDiffer(t *testing.T) {
	seen := map[[6]byte]string{}
	for _, name := range []string{"a", "b", "node-1", "node-2"} {
		for _, role := range []string{gatewayRole, overlayRole} {
			m := mac(name, role)
			if other := seen[m]; other != "" || m[0] != 0x02 {
				t.Errorf("MAC %x of %s/%s, also of %q", m, name, role, other)
			}
			seen[m] = name + "/" + role
			if again := mac(name, role); again != m {
				t.Errorf("MAC of %s/%s is %x and %x", name, role, m, again)
			}
		}
	}
}

func TestParseMode(t *testing.T) {
	for _, m := range []Mode{Overlay, Direct, Auto} {
		if got, err := ParseMode(m.String()); err != nil || got != m {
			t.Errorf("mode %s is %s, %v", m, got, err)
		}
	}
	if _, err := ParseMode("bgp"); err == nil || err.Error() != `routing mode "bgp": not one of overlay, direct, auto` {
		t.Errorf("error %v", err)
	}
}

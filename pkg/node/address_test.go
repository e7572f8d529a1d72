// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/link"
)

// text returns addresses ("address", with "*" where NodePorts answer) and devices ("index IPv4 IPv6").
func (f fronts) text() (addresses, devices []string) {
	for _, a := range slices.SortedFunc(maps.Keys(f.addresses), netip.Addr.Compare) {
		s := a.String()
		if f.addresses[a]&bpf.NodeAddressLocal == 0 {
			s += " not local"
		}
		if f.addresses[a]&bpf.NodeAddressNodePort != 0 {
			s += "*"
		}
		addresses = append(addresses, s)
	}
	for _, i := range slices.Sorted(maps.Keys(f.devices)) {
		devices = append(devices, fmt.Sprint(i, " ", f.devices[i].Addr4, " ", f.devices[i].Addr6))
	}
	return addresses, devices
}

func TestCompileFronts(t *testing.T) {
	const (
		lo = iota + 1
		eth0
		eth1
		docker
		overlay
		pod
		flannel
		bare
		uplink
	)
	names := map[int]string{
		lo: "lo", eth0: "eth0", eth1: "eth1", docker: "docker0", overlay: Device, pod: "fl0123456789ab", flannel: "flannel.1", bare: "eth9", uplink: "eth8",
	}
	var devices []link.Device
	for i := lo; i <= uplink; i++ {
		devices = append(devices, link.Device{Index: i, Name: names[i], Loopback: i == lo})
	}
	on := func(device int, prefix string) link.Address {
		return link.Address{Link: device, Prefix: netip.MustParsePrefix(prefix)}
	}
	second := func(a link.Address) link.Address {
		a.Secondary = true
		return a
	}
	host := []link.Address{
		on(lo, "127.0.0.1/8"), on(lo, "::1/128"), on(lo, "198.51.100.9/32"),
		on(eth0, "192.0.2.1/24"), second(on(eth0, "192.0.2.9/24")), on(eth0, "127.1.2.3/8"),
		second(on(eth0, "2001:db8::bad/64")), on(eth0, "2001:db8::1/64"), on(eth0, "fe80::1/64"),
		on(eth1, "169.254.7.7/16"), second(on(eth1, "203.0.113.8/24")), on(eth1, "203.0.113.1/24"), on(eth1, "fe80::2/64"),
		on(docker, "172.17.0.1/16"), on(overlay, "10.244.1.0/32"), on(overlay, "fd00:1::/128"), on(pod, "fe80::3/64"), on(flannel, "10.244.9.0/32"),
	}
	local := func(except ...string) (all []string) {
		star := map[string]bool{}
		for _, a := range except {
			star[a] = true
		}
		for _, a := range []string{
			"10.244.9.0", "169.254.7.7", "172.17.0.1", "192.0.2.1", "192.0.2.9", "203.0.113.1", "203.0.113.8",
			"2001:db8::1", "2001:db8::bad", "fe80::1", "fe80::2",
		} {
			if star[a] {
				a += "*"
			}
			all = append(all, a)
		}
		return all
	}
	one := "2 192.0.2.1 2001:db8::1"
	two := "3 203.0.113.1 invalid IP"
	for _, c := range []struct {
		name      string
		words     string
		named     []string
		self      Self
		addresses []string
		devices   []string
	}{
		{name: "primary", words: "primary localhost", addresses: local("192.0.2.1", "2001:db8::1"), devices: []string{one}},
		{name: "only localhost", words: "localhost", addresses: local(), devices: []string{one}},
		{name: "all", words: "all", devices: []string{one, two, "4 172.17.0.1 invalid IP", "7 10.244.9.0 invalid IP"},
			addresses: local("10.244.9.0", "172.17.0.1", "192.0.2.1", "192.0.2.9", "203.0.113.1", "203.0.113.8", "2001:db8::1", "2001:db8::bad")},
		{name: "CIDRs", words: "203.0.113.8/30 169.254.0.0/16", addresses: local("169.254.7.7", "203.0.113.8"), devices: []string{one, two}},
		{name: "primary and a CIDR", words: "primary 172.16.0.0/12", addresses: local("172.17.0.1", "192.0.2.1", "2001:db8::1"),
			devices: []string{one, "4 172.17.0.1 invalid IP"}},
		{name: "CIDR of loopback and more", words: "0.0.0.0/0", devices: []string{one, two, "4 172.17.0.1 invalid IP", "7 10.244.9.0 invalid IP"},
			addresses: local("10.244.9.0", "169.254.7.7", "172.17.0.1", "192.0.2.1", "192.0.2.9", "203.0.113.1", "203.0.113.8")},
		{name: "named devices", words: "primary", named: []string{"eth9", "eth7", "lo", Device, "fl0123456789ab"},
			addresses: local("192.0.2.1", "2001:db8::1"), devices: []string{one, "8 invalid IP invalid IP"}},
		{name: "InternalIP on loopback", words: "primary", self: Self{Node4: netip.MustParseAddr("198.51.100.9"), Underlay: link.Device{Index: uplink}},
			addresses: slices.Insert(local(), 5, "198.51.100.9*"), devices: []string{"9 invalid IP invalid IP"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ports, err := ParseNodePorts(strings.Fields(c.words))
			if err != nil {
				t.Fatal(err)
			}
			if c.self.Underlay.Index == 0 {
				c.self = Self{Node4: netip.MustParseAddr("192.0.2.1"), Node6: netip.MustParseAddr("2001:db8::1"), Underlay: link.Device{Index: eth0}}
			}
			cfg := FrontConfig{NodePorts: ports, Devices: c.named, Pod: cni.IsLinkName}
			addresses, carriers := compileFronts(cfg, c.self, network{devices: devices, addresses: host}).text()
			if diff := cmp.Diff(c.addresses, addresses); diff != "" {
				t.Errorf("addresses, -want +got:\n%s", diff)
			}
			if diff := cmp.Diff(c.devices, carriers); diff != "" {
				t.Errorf("devices, -want +got:\n%s", diff)
			}
		})
	}
}

func TestParseNodePortsRefuses(t *testing.T) {
	for word, want := range map[string]string{
		"192.0.2.1":       `"192.0.2.1" is neither primary, localhost, all nor a CIDR`,
		"":                `"" is neither`,
		"192.0.2.1/24":    "192.0.2.1/24 has address bits behind its length, meant is 192.0.2.0/24",
		"127.0.0.0/8":     "127.0.0.0/8 holds no address that other machines use: for loopback addresses say localhost",
		"127.0.0.1/32":    "say localhost",
		"::1/128":         "say localhost",
		"::ffff:0:0/96":   "::ffff:0.0.0.0/96 holds no address",
		"primary,all":     "is neither",
		"fd00::/64%eth0":  "is neither",
		"Primary":         "is neither",
		"192.0.2.0/24/24": "is neither",
	} {
		if _, err := ParseNodePorts([]string{"primary", word}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %s", word, err, want)
		}
	}
}

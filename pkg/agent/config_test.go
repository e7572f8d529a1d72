// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/node"
)

// parse runs a command line, with a config file when text is not empty, as fairleadd does.
func parse(t *testing.T, text string, args ...string) (Config, error) {
	t.Helper()
	var c Config
	fs := pflag.NewFlagSet("fairleadd", pflag.ContinueOnError)
	c.Flags(fs)
	if err := fs.Parse(args); err != nil {
		return c, err
	}
	if text != "" {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := LoadFile(fs, path); err != nil {
			return c, err
		}
	}
	return c, c.Validate(func() (string, error) { return "Host.Example", nil })
}

func TestDefaults(t *testing.T) {
	got, err := parse(t, "")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		NodeName: "host.example", StateDir: "/var/lib/fairlead", RunDir: "/run/fairlead", BPFFSDir: "/sys/fs/bpf/fairlead",
		RoutingMode: "overlay", VXLANPort: 8472, VNI: 1, SocketLB: true, Masquerade: true, NodePortAddresses: []string{"primary", "localhost"}, ExternalIPs: true,
		HealthAddr: "0.0.0.0:10256", MetricsAddr: "127.0.0.1:10249", Capacity: map[string]uint32{}, LogLevel: slog.LevelInfo, LogFormat: "text",
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestFileAndFlagsMeanTheSameAndFlagsWin(t *testing.T) {
	file := `
node-name: from-file
api-server: [a.example:6443, "[fd00::1]:6443"]
cluster-cidr: 10.0.0.0/16
mtu: 1400
socket-lb: false
healthz-bind-address: ""
log-level: debug
map-capacity: {frontends: 10, backends: 20}
node-ip: 192.0.2.1,fd00::5
devices: [eth0, ens3]
nodeport-addresses: [all, 192.0.2.0/24]
masquerade-all: true
external-ips: false
`
	fromFile, err := parse(t, file)
	if err != nil {
		t.Fatal(err)
	}
	fromFlags, err := parse(t, "", "--node-name=from-file", "--api-server=a.example:6443", "--api-server=[fd00::1]:6443",
		"--cluster-cidr=10.0.0.0/16", "--mtu=1400", "--socket-lb=false", "--healthz-bind-address=", "--log-level=debug",
		"--map-capacity=frontends=10", "--map-capacity=backends=20", "--node-ip=192.0.2.1", "--node-ip=fd00::5", "--devices=eth0,ens3",
		"--nodeport-addresses=all", "--nodeport-addresses=192.0.2.0/24", "--masquerade-all", "--external-ips=false")
	if err != nil {
		t.Fatal(err)
	}
	same := cmp.Options{
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	}
	if diff := cmp.Diff(fromFlags, fromFile, same); diff != "" {
		t.Errorf("-flags +file:\n%s", diff)
	}
	both, err := parse(t, file, "--node-name=from-flag", "--cluster-cidr=10.9.0.0/16")
	if err != nil {
		t.Fatal(err)
	}
	if both.NodeName != "from-flag" || both.ClusterCIDRs[0] != netip.MustParsePrefix("10.9.0.0/16") || len(both.ClusterCIDRs) != 1 || both.MTU != 1400 {
		t.Errorf("flags do not win over the file: %+v", both)
	}
}

func TestWrongInputIsNamed(t *testing.T) {
	for _, test := range []struct {
		name, file string
		args       []string
		want       []string
	}{
		{"unknown flag", "", []string{"--no-such"}, []string{"no-such"}},
		{"unknown keys", "node-nam: a\nmtu: 1400\nendpoints: 3", nil, []string{`unknown key "node-nam"`, `unknown key "endpoints"`}},
		{"key twice", "mtu: 1400\nmtu: 1500", nil, []string{`"mtu" already set`}},
		{"not a mapping", "- a", nil, []string{"not a mapping of keys to values"}},
		{"value of the wrong kind", "mtu: large", nil, []string{`key "mtu": value "large"`}},
		{"no value", "mtu:", nil, []string{`key "mtu": has no value`}},
		{"many values for one", "mtu: [1400, 1500]", nil, []string{`key "mtu": takes one value, not 2`}},
		{"nested list", "node-ip: [[a]]", nil, []string{`key "node-ip": item 1 is not a single value`}},
		{"config in config", "config: /x", nil, []string{`unknown key "config"`}},
		{"node name", "", []string{"--node-name=Node_1"}, []string{`--node-name "Node_1"`}},
		{"two sources", "", []string{"--manifests=/m", "--kubeconfig=/k"}, []string{"--manifests /m: replaces the API server"}},
		{"relative folder", "", []string{"--state-dir=x", "--run-dir=y"}, []string{`--state-dir "x": not an absolute path`, `--run-dir "y"`}},
		{"long run dir", "", []string{"--run-dir=/" + strings.Repeat("x", 110)}, []string{"longer than the 107 bytes"}},
		{"mtu", "", []string{"--mtu=1200"}, []string{"--mtu 1200: not between 1280 and 65450"}},
		{"two of a family", "", []string{"--node-ip=192.0.2.1,192.0.2.2"}, []string{"more than one address of a family"}},
		{"loopback node ip", "", []string{"--node-ip=127.0.0.1"}, []string{"--node-ip 127.0.0.1: not a global unicast address"}},
		{"device", "", []string{"--devices=eth0,wireless/lan"}, []string{"devices", `"wireless/lan" is not the name of a device`}},
		{"empty device", "devices: eth0,", nil, []string{`key "devices": value "eth0,": "" is not the name of a device`}},
		{"long device", "", []string{"--devices=sixteen-bytes-xx"}, []string{`"sixteen-bytes-xx" is not the name`}},
		{"NodePort address", "", []string{"--nodeport-addresses=primary,192.0.2.1"}, []string{"nodeport-addresses", `"192.0.2.1" is neither primary, localhost, all nor a CIDR`}},
		{"NodePort CIDR", "nodeport-addresses: 192.0.2.1/24", nil, []string{`key "nodeport-addresses"`, "meant is 192.0.2.0/24"}},
		{"NodePorts on loopback", "", []string{"--nodeport-addresses=127.0.0.0/8"}, []string{"for loopback addresses say localhost"}},
		{"bits behind the length", "", []string{"--cluster-cidr=10.0.0.1/16"}, []string{"--cluster-cidr 10.0.0.1/16", "10.0.0.0/16"}},
		{"overlap", "", []string{"--cluster-cidr=10.0.0.0/8", "--service-cidr=10.96.0.0/16"}, []string{"--cluster-cidr 10.0.0.0/8: overlaps --service-cidr 10.96.0.0/16"}},
		{"api server without port", "", []string{"--api-server=a.example"}, []string{"api-server", "not of the form HOST:PORT"}},
		{"port 0", "", []string{"--metrics-bind-address=127.0.0.1:0"}, []string{"metrics-bind-address", "not between 1 and 65535"}},
		{"routing mode", "", []string{"--routing-mode=bgp"}, []string{"routing-mode", "not one of overlay, direct, auto"}},
		{"vni", "", []string{"--vni=16777216"}, []string{"vni", "between 1 and 16777215"}},
		{"capacity", "", []string{"--map-capacity=flows=none"}, []string{"map-capacity", `flows: "none" is not a number of entries`}},
		{"log level", "", []string{"--log-level=loud"}, []string{"log-level"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parse(t, test.file, test.args...)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error does not say %q:\n%v", want, err)
				}
			}
		})
	}
}

func TestNoHostName(t *testing.T) {
	var c Config
	c.Flags(pflag.NewFlagSet("", pflag.ContinueOnError))
	broken := errors.New("broken")
	if err := c.Validate(func() (string, error) { return "", broken }); !errors.Is(err, broken) {
		t.Errorf("error is %v", err)
	}
}

func TestConfigFileThatIsNotThere(t *testing.T) {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	path := filepath.Join(t.TempDir(), "none.yaml")
	if err := LoadFile(fs, path); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("error is %v", err)
	}
}

func TestProgramConfig(t *testing.T) {
	ip := netip.MustParseAddr
	self := node.Self{
		Node4: ip("192.0.2.1"), Node6: ip("2001:db8::1"), Overlay4: ip("10.244.1.0"), Overlay6: ip("fd00:1::"), SNAT4: ip("10.244.1.1"), SNAT6: ip("fd00:1::1"),
		OverlayIndex: 7, MTU: 1450, VNI: 1, GatewayMAC: [6]byte{2, 1}, OverlayMAC: [6]byte{2, 2}, OuterV6: true,
	}
	want := bpf.Config{
		Node4: self.Node4, Node6: self.Node6, Overlay4: self.Overlay4, Overlay6: self.Overlay6, Snat4: ip("10.244.1.1"), Snat6: ip("fd00:1::1"), HostCookie: 3,
		OverlayIfindex: 7, OverlayMTU: 1450, VNI: 1, OverlayPort: 8472, GatewayMAC: self.GatewayMAC, OverlayMAC: self.OverlayMAC, SocketLB: true, OuterV6: true, Loopback: true,
	}
	for _, test := range []struct {
		name   string
		args   []string
		change func(*bpf.Config)
	}{
		{"defaults", nil, func(*bpf.Config) {}},
		{"without localhost", []string{"--nodeport-addresses=primary,192.0.2.0/24"}, func(c *bpf.Config) { c.Loopback = false }},
		{"masquerade all", []string{"--masquerade-all"}, func(c *bpf.Config) { c.MasqueradeAll = true }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := parse(t, "", test.args...)
			if err != nil {
				t.Fatal(err)
			}
			want := want
			test.change(&want)
			if got := programConfig(c, self, 3); got != want {
				t.Errorf("got %+v\nwant %+v", got, want)
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/pkg/node"
)

// Config is everything an agent can be told. Flags, their YAML keys and their defaults are declared in Flags, nowhere else.
type Config struct {
	NodeName     string // name of the own Node object; empty: the host name
	Kubeconfig   string // empty: the service account of the pod that the agent runs in
	APIServers   []string
	Manifests    string // directory of Kubernetes YAML; empty: the API server is the source
	StateDir     string
	RunDir       string
	BPFFSDir     string
	CgroupRoot   string // cgroup v2 folder; empty: where it is mounted
	RoutingMode  string // overlay, direct or auto
	ClusterCIDRs []netip.Prefix
	ServiceCIDRs []netip.Prefix
	MTU          int // bytes of the largest packet in a pod, from its IP header on; 0: from the device that leads to other nodes
	NodeIPs      []netip.Addr
	Devices      []string // that lead to other nodes; empty: found by the node's address and the default route
	VXLANPort    uint16
	VNI          uint32 // 1 to 16777215
	SocketLB     bool
	Masquerade   bool
	CNIConfDir   string // empty: no CNI configuration is written
	HealthAddr   string // empty: not served
	MetricsAddr  string // empty: not served
	Capacity     map[string]uint32
	LogLevel     slog.Level
	LogFormat    string // text or json

	NodePortAddresses []string // primary, localhost, all and CIDRs: where NodePorts answer
	MasqueradeAll     bool
	ExternalIPs       bool // spec.externalIPs of Services are served
}

// Flags declares every flag on fs. Their values land in c, which holds the defaults from then on.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.NodeName, "node-name", "", "name of this node's Node object (default: the host name)")
	fs.StringVar(&c.Kubeconfig, "kubeconfig", "", "kubeconfig file of the API server (default: in cluster)")
	fs.Var(list(&c.APIServers, hostPort), "api-server", "HOST:PORT of a real API server address, overrides that of the kubeconfig (repeatable)")
	fs.StringVar(&c.Manifests, "manifests", "", "standalone mode: directory of Kubernetes YAML that replaces the API server")
	fs.StringVar(&c.StateDir, "state-dir", "/var/lib/fairlead", "directory that survives a reboot: journal, snapshot, tombstones")
	fs.StringVar(&c.RunDir, "run-dir", "/run/fairlead", "directory of the sockets")
	fs.StringVar(&c.BPFFSDir, "bpffs-dir", "/sys/fs/bpf/fairlead", "directory of the pinned maps and links, on a bpffs")
	fs.StringVar(&c.CgroupRoot, "cgroup-root", "", "cgroup v2 folder whose processes get Services at the system call (default: the mount)")
	fs.Var(choice(&c.RoutingMode, "overlay", "overlay", "direct", "auto"), "routing-mode", "how pods of other nodes are reached: overlay, direct or auto (direct inside an L2)")
	fs.Var(list(&c.ClusterCIDRs, netip.ParsePrefix), "cluster-cidr", "CIDRs of all pods: never masqueraded (default: the pod CIDRs of the known nodes)")
	fs.Var(list(&c.ServiceCIDRs, netip.ParsePrefix), "service-cidr", "CIDRs of all ClusterIPs: no pod CIDR may overlap them")
	fs.IntVar(&c.MTU, "mtu", 0, "largest packet in a pod, in bytes (default: from the device that leads to other nodes)")
	fs.Var(list(&c.NodeIPs, netip.ParseAddr), "node-ip", "addresses of this node, one per family (default: InternalIPs of the Node object)")
	fs.Var(list(&c.Devices, deviceName), "devices", "devices that lead to other nodes; the first that is there decides MTU and direct routes (default: by node IP and default route)")
	fs.Var(number(&c.VXLANPort, 8472, 1, 65535), "vxlan-port", "UDP port of the overlay")
	fs.Var(number(&c.VNI, 1, 1, 1<<24-1), "vni", "VXLAN network identifier of the overlay")
	fs.BoolVar(&c.SocketLB, "socket-lb", true, "choose Service backends at the system call; false: in every packet")
	fs.BoolVar(&c.Masquerade, "masquerade", true, "give traffic from pods to outside the node's address")
	c.NodePortAddresses = []string{"primary", "localhost"}
	fs.Var(list(&c.NodePortAddresses, nodePortAddress), "nodeport-addresses", "where NodePorts answer: primary (the node's InternalIPs), localhost, all, or CIDRs")
	fs.BoolVar(&c.MasqueradeAll, "masquerade-all", false, "give what is sent to a ClusterIP the node's address, wherever it comes from")
	fs.BoolVar(&c.ExternalIPs, "external-ips", true, "serve spec.externalIPs of Services; false: who may write Services cannot take addresses with them (CVE-2020-8554)")
	fs.StringVar(&c.CNIConfDir, "cni-conf-dir", "", "directory that gets 05-fairlead.conflist once the agent is ready (default: not written)")
	fs.Var(optional(&c.HealthAddr, "0.0.0.0:10256", hostPort), "healthz-bind-address", `address of /healthz, /livez and /readyz; "" turns them off`)
	fs.Var(optional(&c.MetricsAddr, "127.0.0.1:10249", hostPort), "metrics-bind-address", `address of /metrics and /proxyMode; "" turns them off`)
	fs.Var(capacities(&c.Capacity), "map-capacity", "MAP=ENTRIES: capacity of a map that does not exist yet (repeatable)")
	fs.TextVar(&c.LogLevel, "log-level", slog.LevelInfo, "least level that is logged: debug, info, warn or error")
	fs.Var(choice(&c.LogFormat, "text", "text", "json"), "log-format", "text or json")
}

// Validate completes what has a computed default and returns every wrong value by its flag.
func (c *Config) Validate(hostname func() (string, error)) error {
	var errs []error
	wrong := func(flag string, value any, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s %v: %s", flag, value, fmt.Sprintf(format, args...)))
	}
	if c.NodeName == "" {
		name, err := hostname()
		if err != nil {
			return fmt.Errorf("read host name for --node-name: %w", err)
		}
		// The kubelet registers the host name in lower case.
		c.NodeName = strings.ToLower(name)
	}
	if !subdomain(c.NodeName) {
		wrong("node-name", strconv.Quote(c.NodeName), "not the name of a Node: lower case letters, digits, '-' and '.' only")
	}
	if c.Manifests != "" && (c.Kubeconfig != "" || len(c.APIServers) > 0) {
		wrong("manifests", c.Manifests, "replaces the API server: --kubeconfig and --api-server cannot be given as well")
	}
	for _, dir := range []struct {
		flag, path string
		needed     bool
	}{
		{"state-dir", c.StateDir, true}, {"run-dir", c.RunDir, true}, {"bpffs-dir", c.BPFFSDir, true},
		{"cgroup-root", c.CgroupRoot, false}, {"cni-conf-dir", c.CNIConfDir, false}, {"manifests", c.Manifests, false},
	} {
		if dir.path == "" && !dir.needed {
			continue
		}
		if !filepath.IsAbs(dir.path) {
			wrong(dir.flag, strconv.Quote(dir.path), "not an absolute path")
		}
	}
	// 108 bytes is the kernel's limit for the path of a unix socket, its end mark included.
	if longest := filepath.Join(c.RunDir, agentSocket); len(longest) > 107 {
		wrong("run-dir", c.RunDir, "socket path %s is longer than the 107 bytes that the kernel allows", longest)
	}
	// 1280 is the smallest MTU of IPv6 (RFC 8200, 5); 65450 leaves room for the outer headers in a packet of 65535 bytes.
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65450) {
		wrong("mtu", c.MTU, "not between 1280 and 65450 bytes")
	}
	if onePerFamily(c.NodeIPs) != nil {
		wrong("node-ip", c.NodeIPs, "more than one address of a family")
	}
	for _, a := range c.NodeIPs {
		if !a.IsGlobalUnicast() {
			wrong("node-ip", a, "not a global unicast address")
		}
	}
	for _, l := range []struct {
		flag  string
		cidrs []netip.Prefix
	}{{"cluster-cidr", c.ClusterCIDRs}, {"service-cidr", c.ServiceCIDRs}} {
		for _, p := range l.cidrs {
			if p != p.Masked() {
				wrong(l.flag, p, "has address bits behind its length, meant is %s", p.Masked())
			}
		}
	}
	for _, cluster := range c.ClusterCIDRs {
		for _, service := range c.ServiceCIDRs {
			if cluster.Overlaps(service) {
				wrong("cluster-cidr", cluster, "overlaps --service-cidr %s", service)
			}
		}
	}
	return errors.Join(errs...)
}

// onePerFamily returns the first address that is the second of its family, or nil.
func onePerFamily(addrs []netip.Addr) *netip.Addr {
	for i, a := range addrs {
		if slices.ContainsFunc(addrs[:i], func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			return &a
		}
	}
	return nil
}

// subdomain says whether s may name an object (RFC 1123 subdomain of at most 253 characters, as the API server has it).
func subdomain(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		if strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}

// deviceName refuses what the kernel takes for no device's name.
func deviceName(s string) (string, error) {
	if s == "" || len(s) > 15 || s == "." || s == ".." || strings.ContainsAny(s, "/: \t\n\v\f\r") {
		return "", fmt.Errorf("%q is not the name of a device", s)
	}
	return s, nil
}

// nodePortAddress refuses what names no address for NodePorts.
func nodePortAddress(s string) (string, error) {
	_, err := node.ParseNodePorts([]string{s})
	return s, err
}

func hostPort(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", errors.New("not of the form HOST:PORT")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("port %q is not between 1 and 65535", port)
	}
	if strings.ContainsAny(host, "/ ") {
		return "", fmt.Errorf("host %q is neither a name nor an address", host)
	}
	return s, nil
}

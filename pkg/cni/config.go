// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// DefaultRunDir is where the agent's socket is when the configuration does not say.
const DefaultRunDir = "/run/fairlead"

// Config is the network configuration as the runtime hands it to the binary.
type Config struct {
	Version     string // cniVersion
	Name        string
	RunDir      string
	HasPrev     bool // there is a prevResult
	DNS         json.RawMessage
	IPs         []netip.Addr // capability ips
	MAC         string       // capability mac
	HostPorts   []HostPort   // capability portMappings
	Annotations map[string]string
	Valid       *[]Attachment // GC; nil: absent or null
}

// Keys of the specification and of libcni that this plugin may find in its configuration, and the one of its own.
var configKeys = []string{"cniVersion", "cniVersions", "name", "type", "capabilities", "runtimeConfig", "prevResult", "dns", "args",
	"disableCheck", "disableGC", "runDir"}

// bandwidth is a capability of the runtime (CNI CONVENTIONS.md).
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// ParseConfig reads a configuration. strict is for ADD and CHECK: what is asked for and cannot be done is an error that names key and value.
// Otherwise only what the verb needs is looked at, so that a pod can always be taken away, whatever became of the configuration. Keys with a
// dot, a slash or a leading underscore belong to others.
func ParseConfig(stdin []byte, strict bool) (*Config, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &all); err != nil {
		return nil, Errorf(CodeDecode, "network configuration: %v", err)
	}
	c := &Config{RunDir: DefaultRunDir, DNS: all["dns"], HasPrev: given(all["prevResult"])}
	for key, to := range map[string]*string{"cniVersion": &c.Version, "name": &c.Name, "runDir": &c.RunDir} {
		if err := read(all, key, to); err != nil {
			return nil, err
		}
	}
	if !strings.HasPrefix(c.RunDir, "/") {
		return nil, Errorf(CodeConfig, "network configuration: runDir %q is no absolute path", c.RunDir)
	}
	for _, key := range []string{"cni.dev/valid-attachments", "cni.dev/attachments"} {
		if c.Valid == nil && given(all[key]) {
			if err := read(all, key, &c.Valid); err != nil {
				return nil, err
			}
		}
	}
	if !strict {
		return c, nil
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		switch {
		case key == "ipam" && empty(all[key]):
		case key == "ipam":
			return nil, Errorf(CodeUnsupported, "network configuration: ipam %s: Fairlead gives addresses itself, remove the key", all[key])
		case !slices.Contains(configKeys, key) && !strings.ContainsAny(key, "./") && !strings.HasPrefix(key, "_"):
			return nil, Errorf(CodeUnsupported, "network configuration: unknown key %s: %s: remove it, or correct it to one of %s", key, all[key],
				strings.Join(configKeys, ", "))
		}
	}
	return c, c.capabilities(all["runtimeConfig"])
}

func (c *Config) capabilities(raw json.RawMessage) error {
	if !given(raw) {
		return nil
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return Errorf(CodeDecode, "network configuration: runtimeConfig: %v", err)
	}
	var rate bandwidth
	var ips []string
	var annotations map[string]string
	for key, to := range map[string]any{"bandwidth": &rate, "ips": &ips, "mac": &c.MAC,
		"io.kubernetes.cri.pod-annotations": &annotations} {
		if given(all[key]) {
			if err := json.Unmarshal(all[key], to); err != nil {
				return Errorf(CodeDecode, "network configuration: runtimeConfig: %s: %v", key, err)
			}
		}
	}
	var err error
	if c.HostPorts, err = parseHostPorts(all["portMappings"]); err != nil {
		return err
	}
	if rate.IngressRate != 0 || rate.EgressRate != 0 {
		return Errorf(CodeUnsupported, "runtimeConfig: bandwidth: %s: bandwidth limits are not supported yet: remove the kubernetes.io/ingress-bandwidth and egress-bandwidth annotations",
			all["bandwidth"])
	}
	for i, s := range ips {
		a, err := netip.ParseAddr(s)
		if p, perr := netip.ParsePrefix(s); perr == nil {
			a, err = p.Addr(), nil
		}
		if err != nil {
			return Errorf(CodeConfig, "runtimeConfig: ips[%d]: %q is no address", i, s)
		}
		c.IPs = append(c.IPs, a.Unmap().WithZone(""))
	}
	for k, v := range annotations {
		if strings.HasPrefix(k, "fairlead.io/") {
			if c.Annotations == nil {
				c.Annotations = map[string]string{}
			}
			c.Annotations[k] = v
		}
	}
	return nil
}

// ParseArgs reads the pod from CNI_ARGS ("KEY=VALUE;…"). Keys that we do not know are ignored, as every runtime asks for (IgnoreUnknown).
func ParseArgs(args string) Pod {
	var p Pod
	for _, kv := range strings.Split(args, ";") {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "K8S_POD_NAMESPACE":
			p.Namespace = v
		case "K8S_POD_NAME":
			p.Name = v
		case "K8S_POD_UID":
			p.UID = v
		}
	}
	return p
}

func given(raw json.RawMessage) bool {
	raw = bytes.TrimSpace(raw)
	return len(raw) > 0 && !bytes.Equal(raw, []byte("null"))
}

func empty(raw json.RawMessage) bool { return !given(raw) || string(bytes.TrimSpace(raw)) == "{}" }

func read(all map[string]json.RawMessage, key string, to any) error {
	if !given(all[key]) {
		return nil
	}
	if err := json.Unmarshal(all[key], to); err != nil {
		return Errorf(CodeDecode, "network configuration: %s: %v", key, fmt.Errorf("%s: %w", all[key], err))
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"net/netip"
	"strings"
)

// HostPort is one element of the capability portMappings (CNI CONVENTIONS.md).
type HostPort struct {
	Addr     netip.Addr `json:"addr,omitzero"` // of the node; 0.0.0.0 or ::: every one of that family; the zero Addr: every one of both
	Port     uint16     `json:"port"`          // of the node, never 0
	Protocol string     `json:"protocol"`      // "tcp", "udp" or "sctp"
	To       uint16     `json:"to"`            // port of the container, never 0
}

// parseHostPorts reads portMappings. Elements whose hostPort is 0 want nothing of the node. As with the portmap plugin, hostIP 0.0.0.0 is
// for IPv4 alone and :: for IPv6 alone.
func parseHostPorts(raw json.RawMessage) (ports []HostPort, err error) {
	if !given(raw) {
		return nil, nil
	}
	var all []json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, Errorf(CodeDecode, "runtimeConfig: portMappings: %s: %v", raw, err)
	}
	for i, one := range all {
		var m struct {
			HostPort      int    `json:"hostPort"`
			ContainerPort int    `json:"containerPort"`
			Protocol      string `json:"protocol"`
			HostIP        string `json:"hostIP"`
		}
		wrong := func(code Code, format string, args ...any) ([]HostPort, error) {
			return nil, Errorf(code, "runtimeConfig: portMappings[%d]: "+format, append([]any{i}, args...)...)
		}
		if err := json.Unmarshal(one, &m); err != nil {
			return wrong(CodeDecode, "%s: %v", one, err)
		}
		if m.HostPort == 0 {
			continue
		}
		p := HostPort{Port: uint16(m.HostPort), To: uint16(m.ContainerPort), Protocol: strings.ToLower(m.Protocol)}
		if int(p.Port) != m.HostPort {
			return wrong(CodeConfig, "hostPort %d is out of range, 1 to 65535", m.HostPort)
		}
		if int(p.To) != m.ContainerPort || p.To == 0 {
			return wrong(CodeConfig, "containerPort %d is out of range, 1 to 65535", m.ContainerPort)
		}
		switch p.Protocol {
		case "":
			p.Protocol = "tcp"
		case "tcp", "udp", "sctp":
		default:
			return wrong(CodeConfig, "protocol %q is none of tcp, udp and sctp", m.Protocol)
		}
		if m.HostIP != "" {
			a, err := netip.ParseAddr(m.HostIP)
			if err != nil || a.Zone() != "" {
				return wrong(CodeConfig, "hostIP %q is no address", m.HostIP)
			}
			p.Addr = a.Unmap()
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
)

// manifests is the directory that all agents read in place of an API server.
type manifests struct {
	dir string
}

// write places an object as a file in one step. JSON is YAML.
func (m manifests) write(name string, object any) error {
	b, err := json.MarshalIndent(object, "", "  ")
	if err != nil {
		return fmt.Errorf("write manifest %s: %w", name, err)
	}
	return m.place(name, b)
}

func (m manifests) place(name string, content []byte) error {
	path := filepath.Join(m.dir, name+".yaml")
	aside, err := os.CreateTemp(m.dir, ".new-")
	if err != nil {
		return fmt.Errorf("write manifest %s: %w", name, err)
	}
	_, err = aside.Write(content)
	err = errors.Join(err, aside.Close())
	if err == nil {
		err = os.Rename(aside.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write manifest %s: %w", name, errors.Join(err, os.Remove(aside.Name())))
	}
	return nil
}

func (m manifests) remove(name string) error {
	if err := os.Remove(filepath.Join(m.dir, name+".yaml")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove manifest %s: %w", name, err)
	}
	return nil
}

// WriteManifest places a file of Kubernetes YAML that all agents read, in one step; the same name replaces it.
func (n *Net) WriteManifest(name, yaml string) error { return n.manifest.place(name, []byte(yaml)) }

// RemoveManifest removes a file; its objects are gone for the agents. One that is not there is no error.
func (n *Net) RemoveManifest(name string) error { return n.manifest.remove(name) }

// Service is a Service of type ClusterIP.
type Service struct {
	Namespace       string // empty: default
	Name            string
	ClusterIPs      []netip.Addr
	Selector        map[string]string
	Ports           []ServicePort
	InternalLocal   bool // internalTrafficPolicy: Local
	AffinitySeconds int  // 0: none
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Name       string
	Protocol   string // empty: TCP
	Port       uint16
	TargetPort uint16 // 0: Port
}

// PutService writes a Service; its backends are the ready pods that the selector finds.
func (n *Net) PutService(s Service) error {
	if s.Namespace == "" {
		s.Namespace = "default"
	}
	families := []string{}
	for _, a := range s.ClusterIPs {
		families = append(families, map[bool]string{true: "IPv4", false: "IPv6"}[a.Is4()])
	}
	var ports []map[string]any
	for _, p := range s.Ports {
		if p.Protocol == "" {
			p.Protocol = "TCP"
		}
		if p.TargetPort == 0 {
			p.TargetPort = p.Port
		}
		ports = append(ports, map[string]any{"name": p.Name, "protocol": p.Protocol, "port": p.Port, "targetPort": p.TargetPort})
	}
	spec := map[string]any{"type": "ClusterIP", "clusterIPs": s.ClusterIPs, "ipFamilies": families, "selector": s.Selector, "ports": ports}
	if len(s.ClusterIPs) > 0 {
		spec["clusterIP"] = s.ClusterIPs[0]
	}
	if s.InternalLocal {
		spec["internalTrafficPolicy"] = "Local"
	}
	if s.AffinitySeconds > 0 {
		spec["sessionAffinity"] = "ClientIP"
		spec["sessionAffinityConfig"] = map[string]any{"clientIP": map[string]any{"timeoutSeconds": s.AffinitySeconds}}
	}
	return n.manifest.write("service-"+s.Namespace+"-"+s.Name, map[string]any{
		"apiVersion": "v1", "kind": "Service",
		"metadata": map[string]any{"namespace": s.Namespace, "name": s.Name, "uid": "uid-" + s.Namespace + "-" + s.Name},
		"spec":     spec,
	})
}

// DeleteService removes what PutService wrote.
func (n *Net) DeleteService(namespace, name string) error {
	return n.manifest.remove("service-" + namespace + "-" + name)
}

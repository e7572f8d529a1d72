// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// PodSpec says what pod to make.
type PodSpec struct {
	Namespace   string // empty: default
	Name        string
	Labels      map[string]string
	Annotations map[string]string
}

// Pod is a pod that a node runs: a network namespace that the CNI plugin connected, and a cgroup for its processes.
type Pod struct {
	Scope
	PodSpec
	Node      *Node
	IPs       []netip.Addr
	Container string // container ID

	attached bool
}

// AddPod makes a pod as a kubelet does: the Pod object first, then namespace and plugin, then the object's status.
func (n *Node) AddPod(ctx context.Context, spec PodSpec) (_ *Pod, err error) {
	if spec.Namespace == "" {
		spec.Namespace = "default"
	}
	p := &Pod{PodSpec: spec, Node: n}
	p.Container = fmt.Sprintf("%x", sha256.Sum256([]byte(n.Name+"/"+spec.Namespace+"/"+spec.Name)))
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("add pod %s/%s: %w", spec.Namespace, spec.Name, err), p.Remove(context.WithoutCancel(ctx)))
		}
	}()
	if err := n.net.manifest.write(p.file(), p.object()); err != nil {
		return nil, err
	}
	full := spec.Namespace + "-" + spec.Name
	if p.Scope, err = n.net.newScope(spec.Name, n.Name+"-"+full, filepath.Join(n.Name, "pods", full)); err != nil {
		return nil, err
	}
	p.attached = true // from here on there may be something to take away
	if err := p.Attach(ctx); err != nil {
		return nil, err
	}
	n.net.say("%s: pod %s/%s has %v", n.Name, spec.Namespace, spec.Name, p.IPs)
	return p, n.net.manifest.write(p.file(), p.object())
}

// conf is the CNI configuration that the node's agent wrote.
func (n *Node) conf() string { return filepath.Join(n.ConfDir, "05-fairlead.conflist") }

// cni returns what the container runtime would call the plugin with.
func (p *Pod) cni() (*libcni.CNIConfig, *libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	list, err := libcni.ConfListFromFile(p.Node.conf())
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read CNI configuration: %w", err)
	}
	cache := filepath.Join(filepath.Dir(p.Node.ConfDir), "cni-cache")
	config := libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(p.Node.net.Binaries.CNI)}, cache, nil)
	return config, list, &libcni.RuntimeConf{
		ContainerID: p.Container, NetNS: p.NetNS, IfName: "eth0",
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.Namespace}, {"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.Container}, {"K8S_POD_UID", p.uid()},
		},
		CapabilityArgs: map[string]any{"io.kubernetes.cri.pod-annotations": p.Annotations},
	}, nil
}

// Attach is the verb ADD; AddPod has called it already.
func (p *Pod) Attach(ctx context.Context) error {
	config, list, rt, err := p.cni()
	if err != nil {
		return err
	}
	answer, err := config.AddNetworkList(ctx, list, rt)
	if err != nil {
		return fmt.Errorf("CNI ADD: %w", err)
	}
	result, err := current.NewResultFromResult(answer)
	if err != nil {
		return fmt.Errorf("CNI ADD: read result: %w", err)
	}
	p.IPs = nil
	for _, ip := range result.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return fmt.Errorf("CNI ADD: %v is no address", ip.Address)
		}
		p.IPs = append(p.IPs, a.Unmap())
	}
	return nil
}

// Detach is the verb DEL.
func (p *Pod) Detach(ctx context.Context) error {
	config, list, rt, err := p.cni()
	if err == nil {
		err = config.DelNetworkList(ctx, list, rt)
	}
	if err != nil {
		return fmt.Errorf("CNI DEL: %w", err)
	}
	return nil
}

// Check is the verb CHECK.
func (p *Pod) Check(ctx context.Context) error {
	config, list, rt, err := p.cni()
	if err == nil {
		err = config.CheckNetworkList(ctx, list, rt)
	}
	if err != nil {
		return fmt.Errorf("CNI CHECK: %w", err)
	}
	return nil
}

// Remove ends the pod: its object, its processes, its network. What is gone already is no error.
func (p *Pod) Remove(ctx context.Context) error {
	errs := []error{p.Node.net.manifest.remove(p.file())}
	if p.attached {
		errs = append(errs, p.Detach(ctx))
		p.attached = false
	}
	if p.net != nil {
		errs = append(errs, p.release())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	p.Node.net.say("%s: pod %s/%s removed", p.Node.Name, p.Namespace, p.Name)
	return nil
}

// IP returns the pod's address of a family.
func (p *Pod) IP(v6 bool) netip.Addr {
	for _, a := range p.IPs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

func (p *Pod) uid() string  { return "uid-" + p.Namespace + "-" + p.Name }
func (p *Pod) file() string { return "pod-" + p.Namespace + "-" + p.Name }

// object is the Pod as the API server would have it: pending without addresses, then running and ready.
func (p *Pod) object() map[string]any {
	status := map[string]any{"phase": "Pending"}
	if len(p.IPs) > 0 {
		var ips []map[string]any
		for _, a := range p.IPs {
			ips = append(ips, map[string]any{"ip": a})
		}
		status = map[string]any{
			"phase": "Running", "podIP": p.IPs[0], "podIPs": ips, "hostIP": p.Node.IPs[0],
			"conditions": []map[string]any{{"type": "Ready", "status": "True"}},
		}
	}
	return map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{
			"namespace": p.Namespace, "name": p.Name, "uid": p.uid(), "labels": p.Labels, "annotations": p.Annotations,
		},
		"spec":   map[string]any{"nodeName": p.Node.Name, "containers": []map[string]any{{"name": "main", "image": "none"}}},
		"status": status,
	}
}

// Serve starts the helper's server in the scope, HTTP and UDP echo, and waits until it listens. It answers with the pod's name.
func (s Scope) Serve(ctx context.Context, port uint16) (*Process, error) {
	cmd := exec.Command(s.net.Binaries.Helper, "serve", strconv.Itoa(int(port)), s.name)
	log, err := os.OpenFile(filepath.Join(s.net.Dir, "helper.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stderr = log
	p, err := s.Start(cmd)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if listens(p.PID(), port) {
			return p, nil
		}
		select {
		case <-p.done:
			return nil, fmt.Errorf("serve in %s: %w (see %s)", s.name, p.err, log.Name())
		case <-ctx.Done():
			p.Kill()
			return nil, fmt.Errorf("serve in %s: %w", s.name, ctx.Err())
		case <-tick.C:
		}
	}
}

// listens says whether there is a TCP socket in state LISTEN (0A) at the port and a UDP socket, in the namespace of a process.
func listens(pid int, port uint16) bool {
	has := func(table, state string) bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 3 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) && (state == "" || f[3] == state) {
				return true
			}
		}
		return false
	}
	return has("tcp6", "0A") && has("udp6", "")
}

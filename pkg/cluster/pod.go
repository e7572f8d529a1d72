// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const (
	annotationPrefix     = "fairlead.io/"
	annotationConfigHash = "kubernetes.io/config.hash" // kubelet: the UID of a static pod, where the mirror pod has another
)

// FromPod converts a Pod. The value is never nil; the error joins *FieldErrors of fields that were left out.
func FromPod(o *corev1.Pod, in *Interner) (*Pod, error) {
	p := problems{kind: "Pod", object: Key{o.Namespace, o.Name}.String()}
	v := &Pod{
		Namespace:   in.intern(o.Namespace),
		Name:        o.Name,
		UID:         string(o.UID),
		ConfigHash:  o.Annotations[annotationConfigHash],
		Node:        in.intern(o.Spec.NodeName),
		HostNetwork: o.Spec.HostNetwork,
		Terminal:    o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed,
		Deleting:    o.DeletionTimestamp != nil,
		Labels:      in.labels(o.Labels),
	}
	for i, a := range o.Status.PodIPs {
		v.address(a.IP, fmt.Sprintf("status.podIPs[%d].ip", i), &p)
	}
	if len(o.Status.PodIPs) == 0 && o.Status.PodIP != "" {
		v.address(o.Status.PodIP, "status.podIP", &p)
	}
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.PodReady {
			v.Ready = c.Status == corev1.ConditionTrue && !v.Deleting
		}
	}
	for k, a := range o.Annotations {
		if strings.HasPrefix(k, annotationPrefix) {
			if v.Annotations == nil {
				v.Annotations = map[string]string{}
			}
			v.Annotations[in.intern(k)] = in.intern(a)
		}
	}
	// A name means the first port that has it; sidecars come after the containers (endpointslice controller, FindPort).
	for i, c := range o.Spec.Containers {
		v.ports(c.Ports, fmt.Sprintf("spec.containers[%d].ports", i), &p, in)
	}
	for i, c := range o.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			v.ports(c.Ports, fmt.Sprintf("spec.initContainers[%d].ports", i), &p, in)
		}
	}
	return v, p.err()
}

func (v *Pod) address(s, field string, p *problems) {
	a, err := parseUnicast(s)
	if err == nil && slices.Contains(v.IPs, a) {
		err = errAddressTwice
	}
	if err != nil {
		p.add(field, s, err)
		return
	}
	v.IPs = append(v.IPs, a)
}

func (v *Pod) ports(list []corev1.ContainerPort, field string, p *problems, in *Interner) {
	for i, c := range list {
		if c.Name == "" {
			continue
		}
		proto, err := parseProtocol(string(c.Protocol))
		if err != nil {
			p.add(fmt.Sprintf("%s[%d].protocol", field, i), string(c.Protocol), err)
			continue
		}
		port, err := parsePort(c.ContainerPort)
		if err != nil {
			p.add(fmt.Sprintf("%s[%d].containerPort", field, i), fmt.Sprint(c.ContainerPort), err)
			continue
		}
		v.Ports = append(v.Ports, PodPort{Name: in.intern(c.Name), Protocol: proto, Port: port})
	}
}

// FromNamespace converts a Namespace, of which nothing can be wrong.
func FromNamespace(o *corev1.Namespace, in *Interner) *Namespace {
	return &Namespace{Name: in.intern(o.Name), Labels: in.labels(o.Labels)}
}

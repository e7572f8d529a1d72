// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

const (
	// AnnotationMTU on a Node is what the node's agent found: bytes that fit through its device, without the overlay's share.
	AnnotationMTU = annotationPrefix + "mtu"

	// taintDeletion is set by the cluster autoscaler on a node that it is about to remove (kube-proxy, KEP-3836).
	taintDeletion = "ToBeDeletedByClusterAutoscaler"

	// The smallest MTU that IPv6 allows (RFC 8200 section 5), and the largest that a device can have.
	minMTU, maxMTU = 1280, 65535
)

var errFamilyTwice = errors.New("a second one of this family; the first one counts")

// FromNode converts a Node. The value is never nil; the error joins *FieldErrors of fields that were left out.
func FromNode(n *corev1.Node, in *Interner) (*Node, error) {
	p := problems{kind: "Node", object: n.Name}
	v := &Node{
		Name:     in.intern(n.Name),
		UID:      string(n.UID),
		Created:  n.CreationTimestamp.Time,
		Zone:     in.intern(n.Labels[corev1.LabelTopologyZone]),
		Deleting: n.DeletionTimestamp != nil,
	}
	cidrs, field := n.Spec.PodCIDRs, "spec.podCIDRs[%d]"
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs, field = []string{n.Spec.PodCIDR}, "spec.podCIDR"
	}
	for i, s := range cidrs {
		name := field
		if len(n.Spec.PodCIDRs) > 0 {
			name = fmt.Sprintf(field, i)
		}
		cidr, err := ParsePrefix(s)
		if err == nil && slices.ContainsFunc(v.PodCIDRs, func(q netip.Prefix) bool { return q.Addr().Is4() == cidr.Addr().Is4() }) {
			err = errFamilyTwice
		}
		if err != nil {
			p.add(name, s, err)
			continue
		}
		v.PodCIDRs = append(v.PodCIDRs, cidr)
	}
	if s := n.Spec.PodCIDR; s != "" && len(n.Spec.PodCIDRs) > 0 && s != n.Spec.PodCIDRs[0] {
		p.add("spec.podCIDR", s, fmt.Errorf("is not spec.podCIDRs[0], which is %q and counts", n.Spec.PodCIDRs[0]))
	}
	for i, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		ip, err := parseUnicast(a.Address)
		if err != nil {
			p.add(fmt.Sprintf("status.addresses[%d].address", i), a.Address, err)
			continue
		}
		if !slices.Contains(v.InternalIPs, ip) { // clouds and kubelets report some twice
			v.InternalIPs = append(v.InternalIPs, ip)
		}
	}
	for _, t := range n.Spec.Taints {
		v.Excluded = v.Excluded || t.Key == taintDeletion
	}
	if s, ok := n.Annotations[AnnotationMTU]; ok {
		mtu, err := strconv.Atoi(s)
		if err != nil || mtu < minMTU || mtu > maxMTU {
			p.add("metadata.annotations["+AnnotationMTU+"]", s, fmt.Errorf("not a number from %d to %d", minMTU, maxMTU))
		} else {
			v.MTU = mtu
		}
	}
	return v, p.err()
}

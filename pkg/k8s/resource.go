// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// notOthers selects, at the server, what no other service proxy serves and what has a virtual address; an object that gets one of the labels
// later arrives as deleted (KEP-2447).
const notOthers = "!" + cluster.LabelProxyName + ",!" + cluster.LabelHeadless

// resource is one API resource that is watched, and how its objects become values.
type resource struct {
	kind    cluster.Kind
	name    string // plural, as in the URL
	group   rest.Interface
	labels  string
	fields  string
	list    func() runtime.Object
	convert func(runtime.Object, *cluster.Interner) (any, error) // nil value: not for us
}

// resources lists what a node watches (DESIGN section 5): of Pods only its own.
func resources(c *client, node string) []resource {
	core, discovery := c.groups[corev1.SchemeGroupVersion], c.groups[discoveryv1.SchemeGroupVersion]
	return []resource{
		{kind: cluster.NodeKind, name: "nodes", group: core, convert: convert(cluster.FromNode),
			list: func() runtime.Object { return &corev1.NodeList{} }},
		{kind: cluster.PodKind, name: "pods", group: core, convert: convert(cluster.FromPod),
			fields: fields.OneTermEqualSelector("spec.nodeName", node).String(),
			list:   func() runtime.Object { return &corev1.PodList{} }},
		{kind: cluster.ServiceKind, name: "services", group: core, convert: convert(cluster.FromService), labels: notOthers,
			list: func() runtime.Object { return &corev1.ServiceList{} }},
		{kind: cluster.SliceKind, name: "endpointslices", group: discovery, convert: convert(cluster.FromSlice), labels: notOthers,
			list: func() runtime.Object { return &discoveryv1.EndpointSliceList{} }},
	}
}

// convert adapts a conversion to any object; a nil pointer becomes a nil value.
func convert[O any, P interface {
	*O
	runtime.Object
}, V any](from func(P, *cluster.Interner) (*V, error)) func(runtime.Object, *cluster.Interner) (any, error) {
	return func(o runtime.Object, in *cluster.Interner) (any, error) {
		p, ok := o.(P)
		if !ok {
			return nil, fmt.Errorf("read object: server sent %T instead of %T", o, p)
		}
		v, err := from(p, in)
		if v == nil {
			return nil, err
		}
		return v, err
	}
}

// keyOf returns the name of an API object.
func keyOf(o metav1.Object) cluster.Key {
	return cluster.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
}

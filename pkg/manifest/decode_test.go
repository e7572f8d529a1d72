// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/pkg/cluster"
)

func TestDecodeProblems(t *testing.T) {
	for _, c := range []struct {
		name, yaml string
		objects    []string // that are good nevertheless
		problems   []string
	}{
		{"nothing wrong", `apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
---
apiVersion: v1
kind: Node
metadata: {name: n1, namespace: ignored}
`, []string{"Service shop/web", "Node n1"}, nil},
		{"unknown field", `apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  clusterIP: 10.96.0.1
  ports:
  - port: 80
    targetport: 8080
`, nil, []string{`f.yaml:9: Service default/web: spec.ports[0].targetport: not a field of this kind, or given twice`}},
		{"field twice", `apiVersion: v1
kind: Node
metadata:
  name: n1
spec:
  podCIDR: 10.0.0.0/24
  podCIDR: 10.0.1.0/24
`, nil, []string{`f.yaml:6: Node n1: spec.podCIDR: not a field of this kind, or given twice`}},
		{"wrong type", `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ports:
  - port: 80
  - name: b
    port: http
`, nil, []string{`f.yaml:8: Service default/web: spec.ports[1].port: "http": string, where int32 belongs`}},
		{"wrong type of a list", `apiVersion: v1
kind: Node
metadata: {name: n1}
spec:
  podCIDRs: 10.0.0.0/24
`, nil, []string{`f.yaml:5: Node n1: spec.podCIDRs: "10.0.0.0/24": string, where []string belongs`}},
		{"wrong type inside a type that decodes itself", `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ports:
  - port: 80
    targetPort: true
`, nil, []string{`f.yaml:7: Service default/web: spec.ports[0].targetPort: bool, where int32 belongs`}},
		{"yes is a string", `apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  hostNetwork: yes
`, nil, []string{`f.yaml:5: Pod default/p: spec.hostNetwork: "yes": string, where bool belongs`}},
		{"bad CIDR", `apiVersion: v1
kind: Node
metadata: {name: n1}
spec:
  podCIDRs:
  - fd00::/64
  - 10.0.0.0/33
`, nil, []string{`f.yaml:7: Node n1: spec.podCIDRs[1]: "10.0.0.0/33": not an address/length`}},
		{"bad annotation", `apiVersion: v1
kind: Node
metadata:
  name: n1
  annotations:
    fairlead.io/mtu: big
`, nil, []string{`f.yaml:6: Node n1: metadata.annotations[fairlead.io/mtu]: "big": not a number from 1280 to 65535`}},
		{"no name", `apiVersion: v1
kind: Pod
metadata: {labels: {a: b}}
`, nil, []string{`f.yaml:3: Pod default/: metadata.name: missing`}},
		{"no cluster address", `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ports: [{port: 80}]
`, nil, []string{`f.yaml:5: Service default/web: spec.clusterIP: missing: nobody allocates addresses in standalone mode, give one, or None for a headless Service`}},
		{"headless", `apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: None}
`, []string{"Service default/web"}, nil},
		{"not our kind", `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
`, nil, []string{`f.yaml:1: Deployment web: apiVersion, kind: "apps/v1, Deployment": not one of v1 Node`}},
		{"no kind", `metadata: {name: web}`, nil, []string{`f.yaml:1:  web: apiVersion, kind: ", "`}},
		{"syntax, and a good object behind it", `# a comment
---
apiVersion: v1
kind: [Node
---
{apiVersion: v1, kind: Node, metadata: {name: n2}}
`, []string{"Node n2"}, []string{`f.yaml:4: not YAML that describes an object: `}},
		{"not an object", `- a
- b
`, nil, []string{`f.yaml:1: array, where object belongs`}},
		{"alias bomb", `a: &a [x,x,x,x,x,x,x,x,x,x]
b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]
c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]
d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]
e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]
f: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]
g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f,*f]
`, nil, []string{`larger than 16777216 bytes`}},
		{"loop", "a: &a\n  b: *a\n", nil, []string{`f.yaml:1: not YAML that describes an object: `}},
		{"merge key", "a: &a {b: c}\nd:\n  <<: *a\n", nil, []string{`f.yaml:3: not YAML that describes an object: the name of a field must be a word`}},
		{"empty", "# only a comment\n---\n", nil, []string{`f.yaml: no objects; remove the file to remove what it described`}},
		{"JSON", `{"apiVersion": "v1", "kind": "List", "items": [
  {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}},
  {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": 7}}
]}`, []string{"Namespace a"}, []string{`f.yaml:3: `}},
		{"dashes in a text", `apiVersion: v1
kind: Namespace
metadata:
  name: a
  annotations:
    text: |
      ---
      still the text
`, []string{"Namespace a"}, nil},
		{"anchors", `apiVersion: v1
kind: Namespace
metadata:
  name: &n a
  labels: {x: *n}
`, []string{"Namespace a"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decode("f.yaml", []byte(c.yaml), cluster.NewInterner())
			var objects []string
			for _, e := range d.entries {
				objects = append(objects, e.id.String())
			}
			if diff := cmp.Diff(c.objects, objects); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
			for i, p := range d.problems {
				if i >= len(c.problems) || !strings.Contains(p.Error(), c.problems[i]) {
					t.Errorf("unexpected problem %q", p.Error())
				}
			}
			if len(d.problems) < len(c.problems) {
				t.Errorf("%d problems, want %q", len(d.problems), c.problems)
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	strict "sigs.k8s.io/json"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// object names one object of any kind.
type object struct {
	kind cluster.Kind
	key  cluster.Key
}

// entry is one object as it stands in a file.
type entry struct {
	id    object
	value any // nil: the object is not for a service proxy, such as a headless Service
	line  int
	doc   int // index of its document
}

// decoder reads the documents of one file.
type decoder struct {
	file     string
	intern   *cluster.Interner
	entries  []entry
	problems []problem

	// of the document being read
	index int
	doc   document
	root  *yaml.Node
}

var errNoClusterIP = errors.New("missing: nobody allocates addresses in standalone mode, give one, or None for a headless Service")

// yamlLine is how the YAML parser names a line.
var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:unmarshal errors:\n\s*)?line (\d+): `)

// indexes are the parts of a path that the JSON decoder leaves out.
var indexes = regexp.MustCompile(`\[\d+\]`)

// decode reads a whole file.
func decode(file string, data []byte, in *cluster.Interner) *decoder {
	d := &decoder{file: file, intern: in}
	docs := split(data)
	for d.index, d.doc = range docs {
		var err error
		if d.root, err = d.doc.parse(); err != nil {
			d.syntax(err)
			continue
		}
		d.value(d.root)
	}
	if len(docs) == 0 {
		// Also what an editor leaves for a moment when it writes in place.
		d.problems = append(d.problems, problem{file: file, reason: "no objects; remove the file to remove what it described"})
	}
	return d
}

func (d *decoder) syntax(err error) {
	line, reason := d.doc.line, err.Error()
	if m := yamlLine.FindStringSubmatch(reason); m != nil {
		n, _ := strconv.Atoi(m[1]) // digits only, by the pattern
		line, reason = d.line(n), reason[len(m[0]):]
		if strings.HasPrefix(reason, "did not find expected") { // of the parser's messages only the scanner's count lines from 1
			line++
		}
		line = min(line, d.doc.line+bytes.Count(bytes.TrimSuffix(d.doc.text, []byte("\n")), []byte("\n"))) // the end is in the last line
	}
	d.problems = append(d.problems, problem{file: d.file, line: line, reason: "not YAML that describes an object: " + reason})
}

// value reads one object, or a List of them.
func (d *decoder) value(n *yaml.Node) {
	var e encoder
	if err := e.encode(n, "", 0); err != nil {
		d.syntax(err)
		return
	}
	var head struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        struct{ Namespace, Name string } `json:"metadata"`
	}
	if err := json.Unmarshal(e.out.Bytes(), &head); err != nil {
		d.typeError(n, "", e.out.Bytes(), &head, err)
		return
	}
	switch head.APIVersion + " " + head.Kind {
	case "v1 Node":
		read(d, n, &e, cluster.NodeKind, &corev1.Node{}, cluster.FromNode)
	case "v1 Pod":
		read(d, n, &e, cluster.PodKind, &corev1.Pod{}, fromPod)
	case "v1 Namespace":
		read(d, n, &e, cluster.NamespaceKind, &corev1.Namespace{}, func(o *corev1.Namespace, in *cluster.Interner) (*cluster.Namespace, error) {
			return cluster.FromNamespace(o, in), nil
		})
	case "v1 Service":
		read(d, n, &e, cluster.ServiceKind, &corev1.Service{}, fromService)
	case "discovery.k8s.io/v1 EndpointSlice":
		read(d, n, &e, cluster.SliceKind, &discoveryv1.EndpointSlice{}, fromSlice)
	case "v1 List":
		for i := 0; i < len(n.Content); i += 2 {
			if items := n.Content[i+1]; n.Content[i].Value == "items" && items.Kind == yaml.SequenceNode {
				for _, item := range items.Content {
					d.value(item)
				}
			}
		}
	default:
		name := cluster.Key{Namespace: head.Metadata.Namespace, Name: head.Metadata.Name}
		d.problems = append(d.problems, problem{
			file: d.file, line: d.line(n.Line), object: fmt.Sprintf("%s %s", head.Kind, name), field: "apiVersion, kind",
			value:  head.APIVersion + ", " + head.Kind,
			reason: "not one of v1 Node, Pod, Namespace, Service, List, discovery.k8s.io/v1 EndpointSlice, which is all that this version reads",
		})
	}
}

// line turns a line of the document into one of the file.
func (d *decoder) line(n int) int { return d.doc.line + max(n, 1) - 1 }

// read decodes strictly and converts. An object with anything wrong is left out as a whole: half of it might be worse than the last good one.
func read[P interface {
	*O
	metav1.Object
}, O, V any](d *decoder, n *yaml.Node, e *encoder, kind cluster.Kind, o P, from func(P, *cluster.Interner) (*V, error)) {
	many, err := strict.UnmarshalStrict(e.out.Bytes(), o)
	if kind == cluster.NodeKind || kind == cluster.NamespaceKind {
		o.SetNamespace("")
	} else if o.GetNamespace() == "" {
		o.SetNamespace("default")
	}
	key := cluster.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
	name := object{kind, key}.String()
	if err != nil {
		d.typeError(n, name, e.out.Bytes(), new(O), err)
		return
	}
	before := len(d.problems)
	for _, err := range many {
		p := problem{file: d.file, object: name, reason: err.Error()}
		var f strict.FieldError
		if errors.As(err, &f) {
			p.field = f.FieldPath()
			p.reason = "not a field of this kind, or given twice"
		}
		d.add(n, p)
	}
	if key.Name == "" {
		d.add(n, problem{file: d.file, object: name, field: "metadata.name", reason: "missing"})
	}
	v, err := from(o, d.intern)
	for _, f := range cluster.FieldErrors(err) {
		d.add(n, problem{file: d.file, object: name, field: f.Field, value: f.Value, reason: f.Reason})
	}
	if len(d.problems) > before {
		return
	}
	x := entry{id: object{kind, key}, line: d.line(n.Line), doc: d.index}
	if v != nil {
		x.value = v
	}
	d.entries = append(d.entries, x)
}

// String returns the object as people write it, "Service default/web".
func (o object) String() string {
	name := [cluster.Kinds]string{"Node", "Pod", "Namespace", "Service", "EndpointSlice"}
	return name[o.kind] + " " + o.key.String()
}

// add completes a problem with the line of its field.
func (d *decoder) add(n *yaml.Node, p problem) {
	e := encoder{paths: true}
	if err := e.encode(n, "", 0); err == nil { // it was encoded before
		p.line = d.line(e.line(p.field))
	}
	d.problems = append(d.problems, p)
}

// typeError reports a value that cannot be decoded. The standard decoder, which fails at the same value, says where that is.
func (d *decoder) typeError(n *yaml.Node, name string, data []byte, o any, err error) {
	p := problem{file: d.file, line: d.line(n.Line), object: name, reason: err.Error()}
	e := encoder{paths: true}
	var t *json.UnmarshalTypeError
	if errors.As(json.Unmarshal(data, o), &t) && e.encode(n, "", 0) == nil {
		at, end := e.at(int(t.Offset)), int(t.Offset)
		if indexes.ReplaceAllString(at.path, "") != t.Field { // a type that decodes itself counts from its own start
			at, end = e.named(t.Field), 0
		}
		p.line, p.field = d.line(at.line), at.path
		if end > at.offset && t.Value != "array" && t.Value != "object" {
			p.value = string(bytes.Trim(e.out.Bytes()[at.offset:min(end, e.out.Len())], `"`))
		}
		want := t.Type.String()
		if t.Type.Kind() == reflect.Struct {
			want = "object"
		}
		p.reason = fmt.Sprintf("%s, where %s belongs", t.Value, want)
	}
	d.problems = append(d.problems, p)
}

// fromPod takes a pod without a Ready condition for ready: in a directory nobody keeps the condition.
func fromPod(o *corev1.Pod, in *cluster.Interner) (*cluster.Pod, error) {
	v, err := cluster.FromPod(o, in)
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.PodReady {
			return v, err
		}
	}
	v.Ready = !v.Deleting
	return v, err
}

func fromService(o *corev1.Service, in *cluster.Interner) (*cluster.Service, error) {
	v, err := cluster.FromService(o, in)
	if v == nil && err == nil && o.Spec.Type != corev1.ServiceTypeExternalName && o.Spec.ClusterIP == "" && len(o.Spec.ClusterIPs) == 0 {
		return nil, &cluster.FieldError{Kind: "Service", Object: cluster.Key{Namespace: o.Namespace, Name: o.Name}.String(),
			Field: "spec.clusterIP", Reason: errNoClusterIP.Error()}
	}
	return v, err
}

// fromSlice applies the API server's default of a port's name.
func fromSlice(o *discoveryv1.EndpointSlice, in *cluster.Interner) (*cluster.Slice, error) {
	for i := range o.Ports {
		if o.Ports[i].Name == nil {
			o.Ports[i].Name = new(string)
		}
	}
	return cluster.FromSlice(o, in)
}

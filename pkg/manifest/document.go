// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The largest document as JSON, and its depth: aliases can make a small file describe a huge value.
const (
	maxSize  = 16 << 20
	maxDepth = 100
)

// document is one YAML document of a file.
type document struct {
	line int // of its first line, from 1
	text []byte
}

// split cuts a file at its document markers, so that a syntax error in one document leaves the others readable. Documents without content are
// left out.
func split(data []byte) []document {
	var docs []document
	doc := document{line: 1}
	line := 0
	flush := func() {
		if hasContent(doc.text) {
			docs = append(docs, doc)
		}
	}
	for text := range bytes.Lines(data) {
		line++
		if marker(text) {
			flush()
			doc = document{line: line + 1}
			if rest := bytes.TrimSpace(text[3:]); len(rest) > 0 && rest[0] != '#' { // "--- {kind: Node, …}"
				doc = document{line: line, text: append([]byte("   "), text[3:]...)}
			}
			continue
		}
		doc.text = append(doc.text, text...)
	}
	flush()
	return docs
}

// marker says that a line begins a document: three dashes at its start, and then space or nothing, also within a block scalar.
func marker(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || strings.IndexByte(" \t\r\n", rest[0]) >= 0)
}

func hasContent(text []byte) bool {
	for line := range bytes.Lines(text) {
		if t := bytes.TrimSpace(line); len(t) > 0 && t[0] != '#' {
			return true
		}
	}
	return false
}

// parse reads a document's YAML.
func (d document) parse() (*yaml.Node, error) {
	var n yaml.Node
	if err := yaml.Unmarshal(d.text, &n); err != nil {
		return nil, err
	}
	if n.Kind != yaml.DocumentNode || len(n.Content) != 1 {
		return nil, errors.New("not one YAML value")
	}
	return n.Content[0], nil
}

// encoder turns YAML into JSON, and remembers where each value came from.
type encoder struct {
	out   bytes.Buffer
	where []place // ascending offsets
	paths bool    // also names of fields, which are needed for errors only
}

// place is where a value came from.
type place struct {
	offset int    // of its first byte in the JSON
	line   int    // in its document, from 1
	path   string // "spec.ports[0].port"
}

func (e *encoder) encode(n *yaml.Node, path string, depth int) error {
	if e.out.Len() > maxSize || depth > maxDepth {
		return fmt.Errorf("line %d: larger than %d bytes or deeper than %d levels", n.Line, maxSize, maxDepth)
	}
	if n.Kind == yaml.AliasNode {
		return e.encode(n.Alias, path, depth+1)
	}
	if e.paths {
		e.where = append(e.where, place{offset: e.out.Len(), line: n.Line, path: path})
	}
	switch n.Kind {
	case yaml.MappingNode:
		e.out.WriteByte('{')
		for i := 0; i < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" {
				return fmt.Errorf("line %d: the name of a field must be a word", k.Line)
			}
			if i > 0 {
				e.out.WriteByte(',')
			}
			if err := e.json(k.Value); err != nil {
				return err
			}
			e.out.WriteByte(':')
			child := ""
			if e.paths {
				child = strings.TrimPrefix(path+"."+k.Value, ".")
			}
			if err := e.encode(v, child, depth+1); err != nil {
				return err
			}
		}
		e.out.WriteByte('}')
	case yaml.SequenceNode:
		e.out.WriteByte('[')
		for i, v := range n.Content {
			if i > 0 {
				e.out.WriteByte(',')
			}
			child := ""
			if e.paths {
				child = fmt.Sprintf("%s[%d]", path, i)
			}
			if err := e.encode(v, child, depth+1); err != nil {
				return err
			}
		}
		e.out.WriteByte(']')
	default:
		return e.scalar(n)
	}
	return nil
}

func (e *encoder) scalar(n *yaml.Node) error {
	var v any = n.Value
	switch n.ShortTag() {
	case "!!null", "!!bool", "!!int", "!!float":
		if err := n.Decode(&v); err != nil {
			return fmt.Errorf("line %d: %w", n.Line, err)
		}
	}
	if err := e.json(v); err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	return nil
}

func (e *encoder) json(v any) error {
	data, err := json.Marshal(v)
	e.out.Write(data)
	return err
}

// at returns the value that a JSON decoder had read when it stopped at an offset.
func (e *encoder) at(offset int) place {
	i, _ := slices.BinarySearchFunc(e.where, offset, func(p place, o int) int { return p.offset - o })
	if i == 0 {
		return place{line: 1}
	}
	return e.where[i-1]
}

// named returns the first value whose path is this one without its indexes, or the whole document.
func (e *encoder) named(path string) place {
	for _, p := range e.where {
		if indexes.ReplaceAllString(p.path, "") == path {
			return p
		}
	}
	return e.at(1)
}

// line returns the line of a field, or of the nearest one around it that is there.
func (e *encoder) line(path string) int {
	for path != "" {
		for _, p := range e.where {
			if p.path == path {
				return p.line
			}
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	if len(e.where) > 0 {
		return e.where[0].line
	}
	return 1
}

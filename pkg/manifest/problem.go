// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"strings"
)

// problem is one thing that is wrong in a file.
type problem struct {
	file   string
	line   int    // 0: the file as a whole
	object string // "Service default/web"; empty: unknown
	field  string // empty: the object as a whole
	value  string // as written; empty: not known
	reason string
}

// Error reads "web.yaml:12: Service default/web: spec.ports[0].port: \"0\": not a port from 1 to 65535".
func (p problem) Error() string {
	var b strings.Builder
	b.WriteString(p.file)
	if p.line > 0 {
		fmt.Fprintf(&b, ":%d", p.line)
	}
	for _, s := range []string{p.object, p.field} {
		if s != "" {
			b.WriteString(": " + s)
		}
	}
	if p.value != "" {
		fmt.Fprintf(&b, ": %q", p.value)
	}
	return b.String() + ": " + p.reason
}

// message joins the first few problems of a file.
func message(list []problem) string {
	const most = 3
	var parts []string
	for _, p := range list[:min(most, len(list))] {
		parts = append(parts, p.Error())
	}
	if n := len(list) - most; n > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(parts, "; ")
}

// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

// The map table of bpf/README.md names every map, and says truly which ones outlive the agent.
func TestMapsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../bpf/README.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{} // kept?
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| [a-z]+\\.[ch] \\| (yes|no) \\|").FindAllSubmatch(text, -1) {
		documented[string(row[1])] = string(row[2]) == "yes"
	}
	seen := map[string]bool{}
	for _, o := range append(objects(), object{"layout", LoadLayout}) {
		spec, err := o.load()
		if err != nil {
			t.Fatal(err)
		}
		for name, m := range spec.Maps {
			if name[0] == '.' { // .rodata, .bss
				continue
			}
			seen[name] = true
			kept, ok := documented[name]
			if !ok {
				t.Errorf("map %s of %s.c is not in the table of bpf/README.md", name, o.name)
			} else if want := slices.Contains(m.Tags, "keep"); kept != want {
				t.Errorf("map %s of %s.c: bpf/README.md says kept %t, the source says %t", name, o.name, kept, want)
			}
		}
	}
	for name := range documented {
		if !seen[name] {
			t.Errorf("bpf/README.md lists the map %s, which no object has", name)
		}
	}
}

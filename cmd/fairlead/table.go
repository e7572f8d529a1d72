// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// table aligns columns for people; programs use -o json.
type table struct {
	w *tabwriter.Writer
}

func newTable(out io.Writer) table {
	return table{w: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
}

// row adds a line. A writer's error comes back from flush.
func (t table) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		texts[i] = fmt.Sprint(c)
	}
	fmt.Fprintln(t.w, strings.TrimRight(strings.Join(texts, "\t"), "\t"))
}

func (t table) flush() error {
	if err := t.w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// none makes an empty cell visible.
func none(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

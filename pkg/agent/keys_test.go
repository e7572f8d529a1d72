// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const root = "../.." // of the module

// keysFrom says at which argument of a call the keys of its log attributes begin; every second one is a key. Names of methods of a
// logger, and of the functions that hand their arguments on to one.
var keysFrom = map[string]int{"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "With": 0, "countRepair": 1, "wait": 1}

// keys returns the log keys in a call.
func keys(call *ast.CallExpr) (found []string) {
	name, on := "", ""
	switch f := call.Fun.(type) {
	case *ast.Ident:
		name = f.Name
	case *ast.SelectorExpr:
		name = f.Sel.Name
		switch x := f.X.(type) {
		case *ast.Ident:
			on = x.Name
		case *ast.SelectorExpr:
			on = x.Sel.Name
		}
	}
	from, ok := keysFrom[name]
	ok = ok && (strings.EqualFold(on, "log") || !ast.IsExported(name))
	for i := from; ok && i < len(call.Args); i += 2 {
		if lit, ok := call.Args[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
			key, _ := strconv.Unquote(lit.Value)
			found = append(found, key)
		}
	}
	return found
}

// One word per concept holds for logs too: people search them.
func TestLogKeysAreThoseOfContributing(t *testing.T) {
	used := map[string][]string{} // key -> places
	files := token.NewFileSet()
	for _, dir := range []string{"pkg", "cmd", "plugins"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					for _, k := range keys(call) {
						used[k] = append(used[k], files.Position(call.Pos()).String())
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(root, "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(text), "lower camel keys: `")
	list, _, ok := strings.Cut(list, "`")
	if !ok {
		t.Fatal("CONTRIBUTING.md has no list of log keys")
	}
	listed := map[string]bool{}
	for key := range strings.SplitSeq(list, ",") {
		listed[strings.TrimSpace(key)] = true
	}
	for _, key := range slices.Sorted(maps.Keys(used)) {
		if !listed[key] {
			t.Errorf("log key %q is not in CONTRIBUTING.md: %v", key, used[key])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(listed)) {
		if used[key] == nil {
			t.Errorf("log key %q of CONTRIBUTING.md is used nowhere", key)
		}
	}
}

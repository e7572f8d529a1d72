// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/pkg/cni"
)

// A thousand cycles leave nothing.
func TestThousandCyclesLeakNothing(t *testing.T) {
	n := newNode(t, nil)
	files := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	warm := n.pod()
	n.mustAdd(warm)
	n.mustDel(warm)
	eventually(t, n.clean)
	before := files()
	var g errgroup.Group
	g.SetLimit(32)
	for range 1000 {
		g.Go(func() error {
			ns, err := makeNamespace()
			if err != nil {
				return err
			}
			p := n.podIn(ns)
			_, err = n.add(p)
			if err == nil {
				err = n.del(p)
			}
			return errors.Join(err, ns.Close())
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	eventually(t, n.clean)
	eventually(t, func() error {
		// Idle netlink sockets are kept, at most 16 of them, and the tests' own pipes end with their processes.
		if now := files(); now > before+16 {
			return fmt.Errorf("%d open files, %d before", now, before)
		}
		return nil
	})
	if err := n.table.Save(); err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, dir := range []string{n.cfg.StateDir, n.cfg.RunDir} {
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				left = append(left, d.Name())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(left, " "); got != "endpoints.journal endpoints.snapshot agent.alive agent.sock" {
		t.Errorf("files: %s", got)
	}
	if v := n.table.Status(); v.Verbs[cni.Add].Calls != 1001 || v.Verbs[cni.Add].Failed != 0 || v.LastError != "" {
		t.Errorf("status: %+v", v)
	}
}

// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/fairlead/fairlead/pkg/link"
)

const foreign = "fl0123456789ab" // of somebody else, by chance named like a pod's

// linksOf names the veths of the node.
func (n *node) linksOf() (names []string) {
	n.t.Helper()
	in(n.t, n.ns, func() error {
		veths, err := link.OpenVeths()
		if err != nil {
			return err
		}
		all, err := veths.List("")
		for _, f := range all {
			names = append(names, f.Name)
		}
		slices.Sort(names)
		if err != nil {
			return err
		}
		return veths.Close()
	})
	return names
}

func TestRemoveLinksLeavesThoseOfOthers(t *testing.T) {
	renamed := [6]byte{2, 0, 0, 0, 0, 0xfd} // the gateway of the node under another name
	for _, test := range []struct {
		name    string
		gateway [6]byte
		lost    bool // the state directory
	}{
		{"by journal and MAC", gateway, false},
		{"by journal", renamed, false},
		{"by MAC", gateway, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t, nil)
			sh(t, n.ns, fmt.Sprintf("ip link add %s type veth peer name other", foreign))
			pods := []*pod{n.pod(), n.pod()}
			for _, p := range pods {
				n.mustAdd(p)
			}
			n.restart() // the agent, too, leaves the link alone
			if have, doomed := n.linksOf(), n.table.Status().Removing; len(have) != 4 || doomed > 0 {
				t.Fatalf("links %v, %d of them to be removed; want those of two pods, %s and its other side", have, doomed, foreign)
			}
			n.stop()
			if test.lost {
				if err := os.RemoveAll(n.cfg.StateDir); err != nil {
					t.Fatal(err)
				}
			}
			var others []string
			in(t, n.ns, func() (err error) {
				others, err = RemoveLinks(n.cfg.StateDir, test.gateway)
				return err
			})
			if left := n.linksOf(); !slices.Equal(left, []string{foreign, "other"}) || !slices.Equal(others, []string{foreign}) {
				t.Errorf("links %v are left, %v said to be of others; want %s and its other side to be left", left, others, foreign)
			}
		})
	}
}

// An ADD that was killed between the link and its record in the programs' table leaves a link without filters, alias and routes.
func TestRemoveLinksFindsHalfMadeOnes(t *testing.T) {
	n := newNode(t, nil)
	n.stop()
	p := n.pod()
	in(t, n.ns, func() error {
		veths, err := link.OpenVeths()
		if err != nil {
			return err
		}
		pair, err := veths.Create(int(p.ns.Fd()), link.Veth{Host: p.link(), Pod: "eth0", HostMAC: gateway, PodMAC: [6]byte{2, 1}, MTU: 1450})
		if err != nil {
			return err
		}
		if err := pair.Close(); err != nil {
			return err
		}
		return veths.Close()
	})
	in(t, n.ns, func() error {
		others, err := RemoveLinks(n.cfg.StateDir, gateway)
		if len(others) > 0 {
			t.Errorf("%v said to be of others", others)
		}
		return err
	})
	if left := n.linksOf(); len(left) > 0 {
		t.Errorf("links %v are left", left)
	}
}

// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/pkg/link"
	"github.com/fairlead/fairlead/pkg/masquerade"
	"github.com/fairlead/fairlead/pkg/nft"
	"github.com/fairlead/fairlead/pkg/query"
	"github.com/fairlead/fairlead/pkg/testnet"
)

// Uninstall leaves nothing of an agent, and everything of others.
func TestUninstall(t *testing.T) {
	n := machines(t, 2)
	a := n.Nodes[0]
	nl := handle(t, a.Scope)
	// A link of somebody else, by chance named like a pod's.
	if err := link.Wire(nl, link.End{Name: "fl0123456789ab"}, nl, link.End{Name: "other"}); err != nil {
		t.Fatal(err)
	}
	start(t, a)
	ready(t, a)
	pod(t, a, "x", nil)
	service := testnet.Service{Name: "web", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Ports: []testnet.ServicePort{{Port: 80}}}
	if err := n.PutService(service); err != nil {
		t.Fatal(err)
	}
	status(t, a, "something to take away", func(s query.Status) bool { return s.Endpoints == 1 && s.Peers == 1 && s.Services == 1 })
	if code, said := daemon(t, a, "uninstall", "--cni-bin-dir="); code != 1 || !strings.Contains(said, "another fairleadd") {
		t.Errorf("with a running agent: exit code %d, %s", code, said)
	}
	ready(t, a)
	stop(t, a)
	foreign := filepath.Join(a.ConfDir, "10-other.conflist")
	if err := os.WriteFile(foreign, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time finds nothing
		code, said := daemon(t, a, "uninstall", "--cni-bin-dir=")
		if code != 0 || !strings.Contains(said, "left alone\" link=fl0123456789ab") {
			t.Fatalf("exit code %d:\n%s", code, said)
		}
	}
	for _, path := range []string{a.BPFFSDir, a.RunDir, a.StateDir, conf(a)} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
	var left []string
	devices, err := nl.Devices()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		left = append(left, d.Name)
	}
	slices.Sort(left)
	if !slices.Equal(left, []string{"eth0", "fl0123456789ab", "lo", "other"}) {
		t.Errorf("devices %v are left", left)
	}
	routes, err := nl.Routes()
	if err != nil || len(routes) > 0 {
		t.Errorf("routes %v are left, %v", routes, err)
	}
	if _, ok, err := nft.New(nl.Descriptor()).Elements(masquerade.Table, nft.Set{Name: "own4"}); ok || err != nil {
		t.Errorf("masquerade table is left: %v, %v", ok, err)
	}
}

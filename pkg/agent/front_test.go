// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"testing"

	"github.com/fairlead/fairlead/pkg/query"
)

// The uplink is found by the node's addresses, and its pods' devices do not count.
func TestFrontOfMachine(t *testing.T) {
	n := machines(t, 1)
	a := n.Nodes[0]
	start(t, a)
	ready(t, a)
	pod(t, a, "x", nil)
	status(t, a, "one device that leads to other machines", func(s query.Status) bool {
		used := map[string]uint64{}
		for _, m := range s.Maps {
			used[m.Name] = m.Used
		}
		// A machine has one address of each family, and a link-local one.
		return len(s.Conditions) == 0 && used["net_devices"] == 1 && used["node_addresses"] == 3
	})
}

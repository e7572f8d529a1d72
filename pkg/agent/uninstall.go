// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/endpoint"
	"github.com/fairlead/fairlead/pkg/link"
	"github.com/fairlead/fairlead/pkg/masquerade"
	"github.com/fairlead/fairlead/pkg/nft"
	"github.com/fairlead/fairlead/pkg/node"
)

// Uninstall takes everything off this node that agents with this configuration made, and the CNI binary in binDir unless that is empty. It
// refuses while an agent runs. Pods that still run lose their network. What cannot be removed does not keep it from the rest; a second
// time does what is left.
func Uninstall(c Config, binDir string, out io.Writer) error {
	log, _ := newLog(&c, out)
	release, err := lockRunDir(c.RunDir)
	if err != nil {
		return err
	}
	var errs []error
	step := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", what, err))
			return
		}
		log.Info("removed", "object", what)
	}
	// First nobody comes any more, then what is there goes, and last the programs, which need nothing of the rest.
	step("CNI configuration and binary", cni.Uninstall(binDir, c.CNIConfDir))
	others, err := endpoint.RemoveLinks(c.StateDir, node.GatewayMAC(c.NodeName))
	step("pods' links", err)
	for _, name := range others {
		log.Warn("link has the name of a pod's but belongs to no pod of this node, left alone", "link", name)
	}
	nl, err := link.Open()
	if err != nil {
		errs = append(errs, err)
	} else {
		defer nl.Close()
		step("overlay device and routes", node.Remove(nl))
		step("filters for traffic from other machines", removeNet(nl))
		step("masquerade table", masquerade.Remove(nft.New(nl.Descriptor())))
	}
	step("programs and maps", bpf.Remove(c.BPFFSDir))
	if len(errs) == 0 { // state is what a second attempt, or the next agent, goes by
		step("state", removeFolder(c.StateDir, "endpoints.journal", "endpoints.journal.old", "endpoints.snapshot", "snapshot.json", "manifests"))
		step("sockets", removeFolder(c.RunDir, agentSocket, querySocket, "agent.alive", "tombstones", lockFile))
	}
	return errors.Join(append(errs, release())...)
}

// removeFolder removes what agents put into a folder, and the folder if nothing else is in it.
func removeFolder(dir string, names ...string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, name)))
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"errors"

	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/link"
)

// owner tells the pods' links of this node from others that happen to have such a name. A link of ours is in the journal, or its host side
// has the gateway's MAC: that follows from the node's name and is there from the moment that the link is, so it tells those whose record
// is lost. The journal tells those that were made when the node had another name.
type owner struct {
	gateway [6]byte
	names   map[string]bool // links that the journal knows, of endpoints that are gone too
}

func (o owner) has(f link.Found) bool {
	return cni.IsLinkName(f.Name) && (o.names[f.Name] || f.MAC == o.gateway)
}

// names returns every link that the files name.
func (l *loaded) names() map[string]bool {
	names := map[string]bool{}
	if l.snapshot != nil {
		for _, e := range l.snapshot.Endpoints {
			names[e.Link] = true
		}
	}
	for _, n := range l.entries {
		if n.Endpoint != nil {
			names[n.Endpoint.Link] = true
		} else if n.Op == opRemove {
			names[n.Link] = true
		}
	}
	return names
}

// RemoveLinks deletes the links of all pods in the network namespace of the calling thread, host side and pod side. No agent may run. It
// returns the names of links that are of the form of a pod's and belong to somebody else: they stay.
func RemoveLinks(stateDir string, gatewayMAC [6]byte) (others []string, err error) {
	l, err := load(stateDir)
	if err != nil {
		l = &loaded{} // what has the MAC can be removed without it
	}
	o := owner{gateway: gatewayMAC, names: l.names()}
	veths, e := link.OpenVeths()
	if e != nil {
		return nil, errors.Join(err, e)
	}
	links, e := veths.List(cni.LinkPrefix)
	err = errors.Join(err, e)
	for _, f := range links {
		switch {
		case o.has(f):
			err = errors.Join(err, veths.Delete(f.Name))
		case cni.IsLinkName(f.Name):
			others = append(others, f.Name)
		}
	}
	return others, errors.Join(err, veths.Close())
}

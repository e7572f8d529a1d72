// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"time"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// Stats counts what there is and what was done.
type Stats struct {
	Services    int           `json:"services"`  // Services of the API
	Ports       int           `json:"ports"`     // service ports per family in the maps
	Frontends   int           `json:"frontends"` // in the maps
	Backends    int           `json:"backends"`  // in the maps, those included that are about to go
	SlotsUsed   uint32        `json:"slotsUsed"`
	SlotsTotal  uint32        `json:"slotsTotal"`
	Changes     uint64        `json:"changes"`  // service changes that were made
	Failures    uint64        `json:"failures"` // tries that failed
	Retrying    int           `json:"retrying"` // things that are to be tried again
	Pending     int           `json:"pending"`  // changes that wait for a grace period
	LastSync    time.Duration `json:"lastSync"` // from an event to its last write
	GateWaitsOn string        `json:"gateWaitsOn,omitempty"`
}

// Stats returns the counts of this moment.
func (s *Proxy) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	for _, r := range s.records {
		if r.service != nil {
			st.Services++
		}
	}
	for _, p := range s.ports {
		if p.installed {
			st.Ports++
		}
		st.Backends += len(p.backends)
	}
	for _, f := range s.frontends {
		if f.at != nil {
			st.Frontends++
		}
	}
	if s.space != nil {
		st.SlotsUsed, st.SlotsTotal = s.space.used, s.space.capacity
	}
	st.Retrying = s.failedPorts.Len() + s.failedFrontends.Len() + s.failedIPs.Len() + s.failedCIDRs.Len()
	st.Pending = s.runner.Pending()
	switch {
	case s.open:
	case s.adoptErr != nil:
		st.GateWaitsOn = fmt.Sprintf("maps: %v", s.adoptErr)
	case !s.synced[cluster.ServiceKind]:
		st.GateWaitsOn = "Services"
	case !s.synced[cluster.SliceKind]:
		st.GateWaitsOn = "EndpointSlices"
	default:
		st.GateWaitsOn = "own Node"
	}
	return st
}

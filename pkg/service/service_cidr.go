// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"slices"
	"time"
)

// adoptCIDRs learns which service CIDRs the map lacks and which it has too many.
func (s *Proxy) adoptCIDRs() error {
	have, err := s.cfg.Tables.ServiceCIDRs()
	if err != nil {
		return err
	}
	s.cidrs = map[netip.Prefix]bool{}
	for _, c := range s.cfg.ServiceCIDRs {
		if !slices.Contains(have, c) {
			s.cidrs[c] = true
		}
	}
	for _, c := range have {
		if !slices.Contains(s.cfg.ServiceCIDRs, c) {
			s.cidrs[c] = false
		}
	}
	return nil
}

// writeCIDRs brings the map of service CIDRs to what is wanted. The addresses of Services are in theirs before: what is in a service
// CIDR and no Service's is dropped.
func (s *Proxy) writeCIDRs(all []netip.Prefix, now time.Time) {
	for _, c := range all {
		write := s.cfg.Tables.DeleteServiceCIDR
		if s.cidrs[c] {
			write = s.cfg.Tables.PutServiceCIDR
		}
		if err := write(c); err != nil {
			s.failedCIDRs.Failed(c, err, now)
			s.stats.Failures++
			continue
		}
		s.failedCIDRs.Forget(c)
		delete(s.cidrs, c)
	}
}

// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestPortMappings(t *testing.T) {
	a := netip.MustParseAddr
	for in, want := range map[string][]HostPort{
		`null`: nil,
		`[]`:   nil,
		`[{"containerPort":80,"protocol":"tcp"},{"hostPort":0,"containerPort":-1,"protocol":"x","hostIP":"x"}]`: nil,
		`[{"hostPort":8080,"containerPort":80}]`:                                      {{Port: 8080, To: 80, Protocol: "tcp"}},
		`[{"hostPort":65535,"containerPort":1,"protocol":"UDP","hostIP":""}]`:         {{Port: 65535, To: 1, Protocol: "udp"}},
		`[{"hostPort":1,"containerPort":65535,"protocol":"Sctp","hostIP":"0.0.0.0"}]`: {{Addr: a("0.0.0.0"), Port: 1, To: 65535, Protocol: "sctp"}},
		`[{"hostPort":1,"containerPort":2,"hostIP":"::"},{"hostPort":3,"containerPort":4,"hostIP":"::ffff:192.0.2.1"}]`: {
			{Addr: a("::"), Port: 1, To: 2, Protocol: "tcp"}, {Addr: a("192.0.2.1"), Port: 3, To: 4, Protocol: "tcp"}},
	} {
		c, err := ParseConfig([]byte(`{"runtimeConfig":{"portMappings":`+in+`}}`), true)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		equal := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
		if d := cmp.Diff(want, c.HostPorts, equal); d != "" {
			t.Errorf("%s: %s", in, d)
		}
		p, err := json.Marshal(Request{Verb: Add, HostPorts: c.HostPorts})
		if err != nil {
			t.Fatal(err)
		}
		var r Request
		if err := json.Unmarshal(p, &r); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		if d := cmp.Diff(want, r.HostPorts, equal, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s: %s", p, d)
		}
	}
	for in, want := range map[string]Error{
		`7`:                                      {CodeDecode, "portMappings: 7"},
		`[7]`:                                    {CodeDecode, "portMappings[0]: 7"},
		`[{},{"hostPort":"80"}]`:                 {CodeDecode, `portMappings[1]: {"hostPort":"80"}`},
		`[{"hostPort":65536,"containerPort":1}]`: {CodeConfig, "portMappings[0]: hostPort 65536"},
		`[{"hostPort":-1,"containerPort":1}]`:    {CodeConfig, "portMappings[0]: hostPort -1"},
		`[{"hostPort":1,"containerPort":65616}]`: {CodeConfig, "portMappings[0]: containerPort 65616"},
		`[{"hostPort":1}]`:                       {CodeConfig, "portMappings[0]: containerPort 0"},
		`[{"hostPort":1,"containerPort":1,"protocol":"icmp"}]`:               {CodeConfig, `portMappings[0]: protocol "icmp"`},
		`[{"hostPort":0},{"hostPort":1,"containerPort":1,"hostIP":"node"}]`:  {CodeConfig, `portMappings[1]: hostIP "node"`},
		`[{"hostPort":1,"containerPort":1,"hostIP":"fe80::1%eth0"}]`:         {CodeConfig, `portMappings[0]: hostIP "fe80::1%eth0"`},
		`[{"hostPort":1,"containerPort":1,"hostIP":"192.0.2.1/24"}]`:         {CodeConfig, `portMappings[0]: hostIP "192.0.2.1/24"`},
		`[{"hostPort":1,"containerPort":1,"protocol":"tcp","hostIP":["a"]}]`: {CodeDecode, "portMappings[0]"},
	} {
		conf := []byte(`{"runtimeConfig":{"portMappings":` + in + `}}`)
		_, err := ParseConfig(conf, true)
		if got := AsError(err); got.Code != want.Code || !strings.Contains(got.Msg, "runtimeConfig: "+want.Msg) {
			t.Errorf("%s: code %d, %q, want %+v", in, got.Code, got.Msg, want)
		}
		if _, err := ParseConfig(conf, false); err != nil {
			t.Errorf("%s: a DEL fails: %v", in, err)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package health_test

import (
	"encoding/json"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/pkg/health"
)

// The answers of an agent whose life is a list of steps, each at a second of its clock.
func TestAnswers(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	type answer struct {
		Healthz, Livez int
		LastUpdated    int // seconds after start, of healthz
		Stuck          []string
	}
	for _, test := range []struct {
		name string
		life func(h *health.Health, at func(second int))
		want answer
	}{
		{"starting", func(h *health.Health, at func(int)) { at(500) }, answer{200, 200, 500, nil}},
		{"work queued, not late", func(h *health.Health, at func(int)) {
			h.Queued("service")
			at(59)
		}, answer{200, 200, 59, nil}},
		{"work queued and late", func(h *health.Health, at func(int)) {
			at(10)
			h.Done("service")
			h.Queued("service")
			at(70)
		}, answer{503, 503, 10, []string{"service"}}},
		{"later work does not excuse the oldest", func(h *health.Health, at func(int)) {
			h.Queued("service")
			at(50)
			h.Queued("service")
			at(61)
		}, answer{503, 503, -1, []string{"service"}}},
		{"done after being late", func(h *health.Health, at func(int)) {
			h.Queued("service")
			at(90)
			h.Done("service")
			at(300)
		}, answer{200, 200, 300, nil}},
		{"another loop's progress does not hide a stuck one", func(h *health.Health, at func(int)) {
			at(1)
			h.Done("node")
			h.Queued("node")
			at(70)
			h.Done("service")
		}, answer{503, 503, 1, []string{"node"}}},
		{"node is taken out of service", func(h *health.Health, at func(int)) {
			at(5)
			h.Done("service")
			h.SetEligible(false)
			at(9)
		}, answer{503, 200, 5, nil}},
		{"node comes back", func(h *health.Health, at func(int)) {
			h.SetEligible(false)
			h.SetEligible(true)
			at(9)
		}, answer{200, 200, 9, nil}},
	} {
		t.Run(test.name, func(t *testing.T) {
			now := start
			counted := map[string]int{}
			h := health.New(func() time.Time { return now }, func(path string, code int) { counted[path] = code })
			test.life(h, func(second int) { now = start.Add(time.Duration(second) * time.Second) })

			get := func(path string) (int, map[string]any) {
				w := httptest.NewRecorder()
				h.Handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
				var body map[string]any
				if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
					t.Fatalf("%s answers %q: %v", path, w.Body, err)
				}
				return w.Code, body
			}
			healthz, body := get("/healthz")
			livez, liveBody := get("/livez")
			last, err := time.Parse(time.RFC3339Nano, body["lastUpdated"].(string))
			if err != nil {
				t.Fatal(err)
			}
			got := answer{Healthz: healthz, Livez: livez, LastUpdated: int(last.Sub(start).Seconds()), Stuck: h.Stuck()}
			if last.IsZero() {
				got.LastUpdated = -1
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if diff := cmp.Diff(map[string]int{"healthz": healthz, "livez": livez}, counted); diff != "" {
				t.Errorf("counted (-answered +counted):\n%s", diff)
			}
			if _, ok := body["nodeEligible"].(bool); !ok {
				t.Errorf("healthz has no nodeEligible: %v", body)
			}
			if _, ok := liveBody["nodeEligible"]; ok {
				t.Errorf("livez has nodeEligible: %v", liveBody)
			}
		})
	}
}

func TestReadyNamesWhatIsMissing(t *testing.T) {
	h := health.New(time.Now, func(string, int) {})
	get := func() (int, string) {
		w := httptest.NewRecorder()
		h.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
		return w.Code, w.Body.String()
	}
	if code, body := get(); code != 503 || body != "waiting for start\n" {
		t.Errorf("at start: %d %q", code, body)
	}
	missing := []string{"Services", "own Node"}
	h.SetWaiting(func() []string { return missing })
	if code, body := get(); code != 503 || body != "waiting for Services, own Node\n" {
		t.Errorf("with closed gates: %d %q", code, body)
	}
	missing = nil
	if code, body := get(); code != 200 || body != "ok\n" {
		t.Errorf("with open gates: %d %q", code, body)
	}
}

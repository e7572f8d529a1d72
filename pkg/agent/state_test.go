// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestCloseWaitsForAnswers(t *testing.T) {
	s := newState(nil)
	inside, goOn, answered := make(chan struct{}), make(chan struct{}), make(chan struct{})
	h := s.guard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(inside)
		<-goOn
		close(answered)
	}))
	go h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	<-inside
	closed := make(chan struct{})
	go func() {
		s.close()
		select {
		case <-answered:
		default:
			t.Error("closed under an answer")
		}
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(50 * time.Millisecond): // close had time to go wrong
	}
	close(goOn)
	<-closed
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil)) // would close inside twice if it came through
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("after close: %d", w.Code)
	}
}

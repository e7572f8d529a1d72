// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"sync"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// queue joins the streams of all kinds. While the consumer works, later changes of an object replace earlier ones, so the queue never holds
// more than one change for each object and a slow consumer gets large batches instead of a backlog.
type queue struct {
	mu     sync.Mutex
	batch  cluster.Batch
	place  map[object]int // index in batch.Changes
	filled chan struct{}  // has an element while the queue is not empty
}

type object struct {
	kind cluster.Kind
	key  cluster.Key
}

func newQueue() *queue {
	return &queue{place: map[object]int{}, filled: make(chan struct{}, 1)}
}

// put appends changes and the kinds that are complete with them.
func (q *queue) put(changes []cluster.Change, synced ...cluster.Kind) {
	if len(changes)+len(synced) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range changes {
		o := object{c.Kind, c.Key}
		if i, ok := q.place[o]; ok {
			q.batch.Changes[i] = c
			continue
		}
		q.place[o] = len(q.batch.Changes)
		q.batch.Changes = append(q.batch.Changes, c)
	}
	q.batch.Synced = append(q.batch.Synced, synced...)
	select {
	case q.filled <- struct{}{}:
	default:
	}
}

// take empties the queue.
func (q *queue) take() cluster.Batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.batch
	q.batch = cluster.Batch{}
	q.place = map[object]int{} // not cleared: a map keeps the buckets of the first list for ever
	return b
}

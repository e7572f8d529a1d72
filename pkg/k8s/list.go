// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// list is a complete list while it is being read. It holds records only: an API object is garbage as soon as it is converted.
type list struct {
	w      *watcher
	values map[cluster.Key]any
}

func (w *watcher) newList() *list {
	return &list{w: w, values: make(map[cluster.Key]any, len(w.known))}
}

func (l *list) add(o runtime.Object, a metav1.Object) {
	v := l.w.value(o, a)
	if v == nil {
		l.remove(keyOf(a))
		return
	}
	l.values[keyOf(a)] = v
}

func (l *list) remove(key cluster.Key) { delete(l.values, key) }

// replace makes a complete list the truth and tells the consumer the difference. A list that is older than what this node has seen before (a store
// that was restored from a backup, a server that lags) may add but not delete, and does not count as complete.
func (w *watcher) replace(l *list, version string) error {
	if w.kind == cluster.NodeKind {
		w.versions.checkCluster(l.values)
	}
	older := w.versions.older(w.kind, version)
	var changes []cluster.Change
	for key, v := range l.values {
		old, ok := w.known[key]
		if ok && (older || reflect.DeepEqual(old, v)) {
			l.values[key] = old // keep the one that the consumer has: it is shared
			continue
		}
		changes = append(changes, cluster.Change{Kind: w.kind, Key: key, Value: v})
	}
	if older {
		for _, c := range changes {
			w.known[c.Key] = c.Value
		}
		w.out.put(changes)
		return errOlderView
	}
	for key := range w.known {
		if _, ok := l.values[key]; !ok {
			changes = append(changes, cluster.Change{Kind: w.kind, Key: key})
		}
	}
	w.known, w.version = l.values, version
	w.versions.accept(w.kind, version)
	w.report.keep(l.values)
	w.out.put(changes, w.kind)
	return nil
}

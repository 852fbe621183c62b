"""What the metrics page reads of a daemon when somebody looks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mesh.metrics import Gauges

if TYPE_CHECKING:
    from mesh.daemon import Daemon


def gauges_of(d: Daemon) -> Gauges:
    view, account = d.membership.view(), d.dispatch.account()
    states: dict[str, int] = {}
    for node in view.nodes:
        states[node.state.value] = states.get(node.state.value, 0) + 1
    return Gauges(
        node=d.config.node_name,
        version=d.version,
        coordinator=view.coordinator == d.id,
        term=view.term,
        elections=d.elections,
        nodes=states,
        queue_depth=account.queue_depth,
        in_flight=account.total - account.queue_depth,
        open_requests=d.edge.open_requests,
        kept_bytes=d.edge.kept_bytes,
        memory=d.host.memory(),
        resident_bytes=d.probe.process_bytes(os.getpid()),
        worker_tokens={name: s.generated_tokens for name, s in d.host.worker_stats().items()},
        models=d.host.models(),
        frames_dropped=d.overlay.dropped() if d.overlay else {},
        links=d.overlay.links_open() if d.overlay else 0,
        connections=d.connections(),
        routes_dropped=d.store.dropped,
        events_dropped=d.events.dropped,
        log_lines_dropped=d.log_lines_dropped,
    )
